"""`python -m experiments export`: every form loads in stock PEFT or transformers and computes what the run computed."""

from __future__ import annotations

import json
import shlex

import pytest
import torch
from architectures import SMALL, random_model, save_tokenizer
from tiny_runs import quick

from elalora import UserError
from experiments.__main__ import main
from experiments.export import VLLM_RANKS, export
from experiments.runs.plan import make_plan
from experiments.runs.run import run

IDS = torch.arange(4, 28).view(2, 12)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llama")
    save_tokenizer(folder, pad_token="<pad>", eos_token="</s>")
    random_model(LlamaForCausalLM, LlamaConfig(**SMALL | {"initializer_range": 0.2})).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory):
    """A run whose ranks are uneven at the end."""
    words = ["model.head=null", "budget=r3", "trainer.max_steps=12", "method.t_initial=3", "method.t_final=3",
             "method.interval=2", "method.b=6"]  # fmt: skip
    plan = make_plan(quick(base, tmp_path_factory.mktemp("runs"), *words))
    result = run(plan)
    assert len(set(result["ranks"]["final"].values())) > 1
    return plan.folder.path


@pytest.fixture(scope="module")
def causal(base, finished, tmp_path_factory):
    """The same run as one of a causal model has it: no module trained whole, and PEFT's other task type."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("causal") / "run"
    (folder / "adapter").mkdir(parents=True)
    for name in ("config.yaml", "result.json"):
        content = json.loads((finished / name).read_text()) if name.endswith("json") else (finished / name).read_text()
        if name.endswith("json"):
            content.pop("files")
            content = json.dumps(content)
        (folder / name).write_text(content)
    tensors = load_file(finished / "adapter" / "adapter_model.safetensors")
    lora = {name: tensor for name, tensor in tensors.items() if ".lora_" in name}
    save_file(lora, folder / "adapter" / "adapter_model.safetensors")
    config = json.loads((finished / "adapter" / "adapter_config.json").read_text())
    config |= {"task_type": "CAUSAL_LM", "modules_to_save": None}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    return folder


def logits(folder, cls):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    auto = AutoModelForSequenceClassification if cls == "SEQ_CLS" else AutoModelForCausalLM
    with torch.no_grad():
        if not (folder / "adapter_config.json").is_file():
            return auto.from_pretrained(folder).eval()(input_ids=IDS).logits
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["task_type"] == cls
        more = {"num_labels": 2} if cls == "SEQ_CLS" else {}
        plain = auto.from_pretrained(config["base_model_name_or_path"], **more)
        return PeftModel.from_pretrained(plain, folder).eval()(input_ids=IDS).logits


def test_every_form_of_a_causal_adapter_has_the_logits_of_the_runs_own(causal, tmp_path, base):
    expected = logits(causal / "adapter", "CAUSAL_LM")
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        assert (AutoModelForCausalLM.from_pretrained(base)(input_ids=IDS).logits - expected).abs().max() > 1e-3
    for form in ("peft", "uniform"):
        export(causal, tmp_path / form, form)
        torch.testing.assert_close(logits(tmp_path / form, "CAUSAL_LM"), expected, rtol=1e-5, atol=1e-6)
    config = json.loads((tmp_path / "uniform" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 8 and not config["rank_pattern"] and not config["alpha_pattern"]
    assert config["base_model_name_or_path"] == str(base.resolve())


def test_merged_weights_are_a_plain_model_with_head_and_tokenizer(finished, tmp_path):
    from transformers import AutoTokenizer

    lines = export(finished, tmp_path / "merged", "merged")
    merged, own = logits(tmp_path / "merged", "SEQ_CLS"), logits(finished / "adapter", "SEQ_CLS")
    torch.testing.assert_close(merged, own, rtol=1e-4, atol=1e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")("a b").input_ids == [4, 5, 2]
    assert lines[-1] == "lm-evaluation-harness and vLLM take causal language models, which this is not"


def test_the_printed_commands_are_those_of_the_programs(causal, tmp_path, capsys):
    assert main(["export", str(causal), "--out", str(tmp_path / "one"), "--form", "uniform", "--rank", "11"]) == 0
    lines = capsys.readouterr().out.splitlines()
    evaluation, serving = (shlex.split(line) for line in lines if line.startswith("    "))
    place = str(tmp_path / "one")
    assert evaluation[:2] == ["lm_eval", "run"] and f",peft={place},dtype=float32" in evaluation[5]
    assert serving[:2] == ["vllm", "serve"]
    assert serving[-4:] == ["--lora-modules", f"tuned={place}", "--max-lora-rank", "16"]
    assert f"one of {', '.join(map(str, VLLM_RANKS))}" in lines[-1]
    assert main(["export", str(causal), "--out", str(tmp_path / "two")]) == 0
    assert "one rank for all matrices; export with --form uniform" in capsys.readouterr().out


def test_a_pinned_model_of_the_hub_is_named_with_its_commit(causal, tmp_path):
    from experiments.export import Trained, _lines, _write_adapter

    trained = Trained.read(causal)
    trained.model.path, trained.model.revision = "owner/model", "a" * 40
    (tmp_path / "out").mkdir()
    _write_adapter(trained, tmp_path / "out", 8)
    text = "\n".join(_lines(trained, tmp_path / "out", "uniform"))
    assert f"pretrained=owner/model,revision={'a' * 40},peft=" in text and f"--revision {'a' * 40}" in text


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--rank", "2", "--form", "uniform"], "--rank 2 is below .*, the largest rank of this run; type "),
        (["--out", "."], "--out . exists; give a folder that does not"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(words, line, causal, tmp_path, capsys):
    import re

    out = tmp_path / "out"
    assert main(["export", str(causal), "--out", str(out), *words]) == 2
    assert re.search(line, capsys.readouterr().err) and not out.exists()


def test_what_is_no_finished_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not the folder of a finished run: it has no result.json"):
        export(tmp_path, tmp_path / "out")
