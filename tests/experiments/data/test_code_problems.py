"""HumanEval and MBPP: which problems train and test, what their published solutions score, and what is refused."""

from __future__ import annotations

import json
from dataclasses import asdict
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet as parquet
import pytest
import torch
from datasets_on_disk import task_config
from hub_content import shards
from hub_server import Repo, serving
from tiny_causal import save_tiny_causal, tiny_tokenizer
from transformers import GenerationConfig

from elalora.errors import UserError
from experiments.__main__ import main
from experiments.config.compose import compose_run
from experiments.config.task import DataConfig, check_task
from experiments.data import load_task
from experiments.data.digests import digests
from experiments.data.items import make_items
from experiments.runs.plan import make_plan
from experiments.runs.run import run
from experiments.training.execution import passes, program_of
from experiments.training.parsers import PARSERS
from experiments.training.readout import make_readout
from experiments.verify import problems

NUMBERS = (3, 11, 12, 510, 511, 512, 600, 601, 602, 974)
RUN = {"execute": True, "metrics": ["accuracy", "parse_failures"]}


def problem(number: int) -> dict:
    """A row in MBPP's schema."""
    return {
        "task_id": number, "text": f"Write a function that adds {number}.", "test_setup_code": "one = 1",
        "code": f"def add(x):\r\n  return x + {number}", "challenge_test_list": [],
        "test_list": [f"assert add(one) == {number + 1}", f"assert add(0) == {number}"],
    }  # fmt: skip


def function(number: int) -> dict:
    """A row in HumanEval's schema."""
    return {
        "task_id": f"HumanEval/{number}", "entry_point": "times",
        "prompt": f'import math\n\n\ndef times(x):\n    """ {number} times x """\n',
        "canonical_solution": f"    return math.prod([x, {number}])\n",
        "test": f"METADATA = {{}}\n\n\ndef check(candidate):\n    assert candidate(2) == {2 * number}\n",
    }  # fmt: skip


def written(folder, **change):
    (folder / "code").mkdir(exist_ok=True)
    mbpp = [problem(number) | change for number in NUMBERS]
    (folder / "code" / "mbpp.jsonl").write_text("\n".join(map(json.dumps, mbpp)))
    (folder / "code" / "HumanEval.jsonl").write_text("\n".join(json.dumps(function(n)) for n in range(3)))
    return DataConfig(root=str(folder))


@pytest.mark.parametrize(("name", "tested"), [("mbpp", 3), ("humaneval", 3)])
def test_parts_are_those_of_the_authors_and_published_solutions_pass(tmp_path, name, tested):
    task = task_config(name, verify=False)
    splits = load_task(task, written(tmp_path)).splits
    assert {part: len(rows) for part, rows in splits.items()} == {"train": 3, "validation": 3, "test": tested}
    assert splits["train"]["idx"][:] == [601, 602, 974] and splits["validation"]["idx"][:] == [511, 512, 600]
    for label, references in zip(splits["test"]["label"][:], splits["test"]["references"][:], strict=True):
        code = PARSERS[task.parser].parse(f"\n```python\n{label}\n```\nassert False", [])
        assert passes(program_of(code, references)) and not passes(
            program_of(code.replace("return", "0 #"), references)
        )
    items = make_items(splits["train"], tiny_tokenizer(), task, str(tmp_path))
    assert len(items) == 3


def test_code_comes_from_the_hub_at_commits_that_the_user_gives(tmp_path, monkeypatch):
    tables = {"train": [601], "validation": [511], "test": [11]}
    mbpp = {}
    for split, numbers in tables.items():
        mbpp |= shards("full", split, {key: [problem(n)[key] for n in numbers] for key in problem(1)})
    humaneval = shards("openai_humaneval", "test", {key: [function(3)[key]] for key in function(3)})
    repos = [
        Repo("google-research-datasets/mbpp", {"a" * 40: mbpp}, kind="datasets"),
        Repo("openai/openai_humaneval", {"b" * 40: humaneval}, kind="datasets"),
    ]
    with serving(*repos) as hub:
        hub.use(monkeypatch, tmp_path)
        with pytest.raises(
            UserError, match=r"mbpp on the hub is not pinned; put mbpp.jsonl .* task.hub_revision=COMMIT"
        ):
            load_task(task_config("mbpp", verify=False), DataConfig())
        task = task_config("humaneval", verify=False, hub_revision="a" * 40)
        with pytest.raises(UserError, match="humaneval on the hub is not pinned; .* task.test_hub_revision=COMMIT"):
            load_task(task, DataConfig())
        task = task_config("humaneval", verify=False, hub_revision="a" * 40, test_hub_revision="b" * 40)
        loaded = load_task(task, DataConfig())
    assert {part: len(rows) for part, rows in loaded.splits.items()} == {"train": 1, "validation": 1, "test": 1}
    assert "a" * 40 in loaded.source and "b" * 40 in loaded.source


def test_what_is_missing_or_of_another_size_is_named(tmp_path):
    (tmp_path / "code").mkdir()
    with pytest.raises(UserError, match=r"task mbpp: put mbpp.jsonl into FOLDER/code/"):
        load_task(task_config("mbpp"), DataConfig(root=str(tmp_path)))
    data = written(tmp_path)
    before = digests(task_config("humaneval"), data.root)
    assert set(before) >= {"train", "test"} and digests(task_config("mbpp"), data.root) != before
    with pytest.raises(UserError, match=r"code/mbpp \(train\) has 3 rows; the official split has 374"):
        load_task(task_config("mbpp"), data)
    with pytest.raises(UserError, match="code/mbpp: row 8 has no tests"):
        load_task(task_config("mbpp", verify=False), written(tmp_path, test_list=[]))


def test_code_is_run_only_on_request_and_other_answers_never():
    for changes, words in [
        ({"metrics": ["accuracy"]}, "type task.execute=true 'task.metrics="),
        ({"execute": True}, "task.metrics has accuracy if and only if generated code is run"),
        ({"execute": True, "parser": "exact_v1"}, "task.execute=true runs generated code, of which task=mbpp"),
        ({"source": "files"}, "task.parser=code_block_v1 reads programs"),
    ]:
        with pytest.raises(UserError, match=words):
            check_task(task_config("mbpp", **changes))
    check_task(task_config("mbpp", **RUN))


def rows(task, data, tmp_path):
    """What a readout makes of the test problems if a model writes a right, a wrong and no program."""
    tokenizer = tiny_tokenizer()
    items = make_items(load_task(task, data).splits["test"], tokenizer, task, str(tmp_path), False)
    texts = ["\n```python\ndef add(x):\n    return x + 11\n```", "\n```python\ndef add(x):\n    return 0\n```", "\n"]

    def generate(input_ids, **rest):
        return torch.cat([input_ids, torch.arange(3)[:, None]], 1)

    bare = SimpleNamespace(generate=generate, generation_config=GenerationConfig(eos_token_id=[-1]))
    words = SimpleNamespace(decode=lambda ids, **rest: texts[ids[0]])
    readout = make_readout(task, words, bare)
    return readout, readout.read(None, items, [0, 1, 2], items.batch([0, 1, 2]))


def test_without_the_switch_code_is_kept_unrun_and_a_command_scores_it_later(tmp_path, monkeypatch, capsys):
    data = written(tmp_path)
    task = task_config("mbpp", verify=False)
    with monkeypatch.context() as patch:
        patch.setattr("subprocess.Popen", None)  # any process would fail
        readout, kept = rows(task, data, tmp_path)
    assert [row[4] for row in kept] == [None] * 3 and kept[2][5] is None
    scores = readout.score(kept)[0]
    assert set(scores) == {"rougeL", "parse_failures"} and scores["parse_failures"] == pytest.approx(100 / 3)
    assert readout.constant(kept) == {}
    assert load_task(task, data).remarks == ["generated code not run"]

    done = tmp_path / "run"
    done.mkdir()
    (done / "result.json").write_text("{}")
    (done / "config.yaml").write_text(json.dumps({"task": asdict(task)}))
    table = {"label": [row[1] for row in kept], "parsed": [row[5] for row in kept]}
    parquet.write_table(pyarrow.table(table), done / "predictions.parquet")
    assert main(["pass_at_1", str(done)]) == 2
    assert "runs 3 generated programs on this machine; type --execute" in capsys.readouterr().err
    assert main(["pass_at_1", str(done), "--execute"]) == 0
    assert capsys.readouterr().out == "pass@1 33.3 (1 of 3)\n"
    (done / "config.yaml").write_text(json.dumps({"task": asdict(task_config("gsm8k"))}))
    assert main(["pass_at_1", str(done)]) == 2 and "task=gsm8k generates no code" in capsys.readouterr().err
    assert main(["pass_at_1", str(tmp_path)]) == 2 and "no result.json" in capsys.readouterr().err


def test_with_the_switch_the_score_is_the_share_of_programs_that_pass(tmp_path):
    task = task_config("mbpp", verify=False, **RUN)
    readout, found = rows(task, written(tmp_path), tmp_path)
    assert [row[4] for row in found] == [True, False, False] and [row[3] for row in found] == [100.0, 0.0, 0.0]
    assert readout.score(found)[0] == {"accuracy": pytest.approx(100 / 3), "parse_failures": pytest.approx(100 / 3)}
    assert readout.constant(found) == {} and load_task(task, written(tmp_path)).remarks == []


@pytest.mark.slow
def test_a_run_keeps_its_code_with_the_tests_and_its_id_knows_the_switch_only_when_set(tmp_path, capsys):
    save_tiny_causal(tmp_path / "model")
    written(tmp_path)
    words = [
        "task=mbpp", "task.verify=false", f"data.root={tmp_path}", "model=local", f"model.path={tmp_path}/model",
        "model.targets=[all]", "method=lora", "trainer.max_steps=2", "trainer.batch_size=2", "task.max_length=250",
        "task.truncation=left", "task.generate_length=4", "threads=1", f"store.root={tmp_path}/runs",
    ]  # fmt: skip
    plan = make_plan(compose_run(words))
    assert "execute" not in plan.identity["task"]
    executed = make_plan(compose_run([*words, "task.execute=true", "task.metrics=[accuracy,parse_failures]"]))
    assert executed.identity["task"]["execute"] is True
    result = run(plan)
    assert result["metric"] == "rougeL" and "generated code not run" in result["flags"]
    assert f"python -m experiments pass_at_1 {plan.folder.path} --execute" in capsys.readouterr().out
    assert problems(plan.folder.path) == []
    stored = parquet.read_table(plan.folder.path / "predictions.parquet").to_pylist()
    assert [row["label"][1].splitlines()[0] for row in stored] == ["one = 1"] * 3
    assert main(["pass_at_1", str(plan.folder.path), "--execute"]) == 0
    assert capsys.readouterr().out.endswith("pass@1 0.0 (0 of 3)\n")
    assert run(executed)["readings"]["last"]["report"]["metrics"]["accuracy"] == 0.0
