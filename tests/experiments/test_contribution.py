"""Contribution of each matrix: a finished run is rebuilt as it was, and taking a matrix out is what it says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import MOVES, config, quick
from torch import Tensor

from elalora.errors import UserError
from elalora.export import PREFIX
from experiments.contribution import main, measure, measured, read, rebuild, without
from experiments.runs.plan import make_plan
from experiments.runs.run import run
from experiments.standins.folder import standins


@pytest.fixture(scope="module")
def folder(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished ElaLoRA run whose ranks moved."""
    store = tmp_path_factory.mktemp("contribution")
    plan = make_plan(quick(tiny_model_dir, store, "method=elalora", "budget=r2", *MOVES, "trainer.max_steps=20"))
    run(plan)
    return plan.folder.path


@pytest.fixture(scope="module")
def loud(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run with a much larger update, so that what a matrix does shows in the loss."""
    copied = Path(shutil.copytree(folder, tmp_path_factory.mktemp("loud") / folder.name))
    edit(copied, lambda key, tensor: 5000 * tensor if "lora_B" in key else tensor)
    return copied


def edit(folder: Path, change: Callable[[str, Tensor], Tensor]) -> None:
    path = folder / "adapter" / "adapter_model.safetensors"
    save_file({key: change(key, t) for key, t in load_file(path).items()}, path, metadata={"format": "pt"})


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy to edit, without the checksums that would refuse it first; results of older versions have none."""
    copied = Path(shutil.copytree(folder, tmp_path / "runs" / "task" / folder.name))
    result = json.loads((copied / "result.json").read_text())
    del result["files"]
    (copied / "result.json").write_text(json.dumps(result))
    return copied


def without_factors(folder: Path, matrix: str) -> None:
    """Sets the stored factors of the matrices whose names start so to 0."""
    start = f"{PREFIX}{matrix}"
    edit(folder, lambda key, t: torch.zeros_like(t) if ".lora_" in key and key.startswith(start) else t)


@pytest.mark.slow
def test_the_rebuilt_model_gives_the_losses_of_stock_peft(folder: Path, tiny_model_dir: Path):
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    rebuilt = rebuild(folder, 60)
    bare = AutoModelForSequenceClassification.from_pretrained(tiny_model_dir, dtype=torch.float32)
    stock = PeftModel.from_pretrained(bare, str(folder / "adapter")).eval()
    with torch.inference_mode():
        for _, batch in rebuilt.batches:
            torch.testing.assert_close(rebuilt.model(**batch).loss, stock(**batch).loss, rtol=1e-5, atol=1e-6)


def test_a_base_model_that_changed_after_the_run_is_refused(folder: Path, tiny_model_dir: Path):
    config = (tiny_model_dir / "config.json").read_text()
    try:
        (tiny_model_dir / "config.json").write_text(config.replace('"gelu"', '"relu"'))
        with pytest.raises(UserError, match="config.json changed after the run was planned"):
            rebuild(folder, 60)
    finally:
        (tiny_model_dir / "config.json").write_text(config)


def test_the_rebuilt_model_scores_the_held_out_split_as_the_run_did(folder: Path):
    stored = json.loads((folder / "result.json").read_text())["readings"]["last"]["select"]
    rebuilt = rebuild(folder)
    right = 0
    with torch.inference_mode():
        for _, batch in rebuilt.batches:
            right += int((rebuilt.model(**batch).logits.argmax(1) == batch["labels"]).sum())
    assert rebuilt.split == stored["split"] == "validation"
    assert 100 * right / rebuilt.items == pytest.approx(stored["metrics"]["accuracy"])


def test_the_mean_loss_is_the_mean_over_items_and_not_over_batches(folder: Path):
    rebuilt = rebuild(folder, 70)  # a batch of 64 and one of 6
    losses = []
    with torch.inference_mode():
        for _, batch in rebuilt.batches:
            logits = rebuilt.model(**batch).logits.double()
            losses.append(torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none"))
    assert [len(part) for part in losses] == [64, 6]
    assert read(rebuilt).loss == pytest.approx(torch.cat(losses).mean().item(), rel=1e-6)


def test_taking_a_matrix_out_equals_loading_factors_of_zero(loud: Path, tmp_path: Path):
    found = measure(loud, 60)
    ranks = json.loads((loud / "result.json").read_text())["ranks"]["final"]
    assert set(found["rises"]) == set(ranks) and found["items"] == 60
    matrix = max(found["rises"], key=lambda name: abs(found["rises"][name]))
    assert abs(found["rises"][matrix]) > 1e-3
    zeroed = Path(shutil.copytree(loud, tmp_path / loud.name))
    without_factors(zeroed, f"{matrix}.lora_")
    assert read(rebuild(zeroed, 60)).loss - found["loss"] == pytest.approx(found["rises"][matrix], abs=1e-7)


def test_calibrated_loss_and_score_are_those_of_the_model_without_the_matrix(loud: Path, tmp_path: Path):
    found = measure(loud, 60)
    matrix = max(found["score_falls"], key=lambda name: abs(found["score_falls"][name]))
    assert found["metric"] == "accuracy" and found["score_falls"][matrix] != 0
    zeroed = Path(shutil.copytree(loud, tmp_path / loud.name))
    without_factors(zeroed, f"{matrix}.lora_")
    for folder, calibrated, score in (
        (loud, found["calibrated"], found["score"]),
        (
            zeroed,
            found["calibrated"] + found["calibrated_rises"][matrix],
            found["score"] - found["score_falls"][matrix],
        ),
    ):
        rebuilt = rebuild(folder, 60)
        with torch.inference_mode():
            outputs = [rebuilt.model(**batch).logits.double() for _, batch in rebuilt.batches]
        logits, labels = torch.cat(outputs), torch.cat([batch["labels"] for _, batch in rebuilt.batches])
        assert score == pytest.approx(100 * (logits.argmax(1) == labels).double().mean().item())
        grid = torch.logspace(-3, 4, 20_001, dtype=torch.double)
        best = min(torch.nn.functional.cross_entropy(logits / t, labels).item() for t in grid[::20])
        assert best - 1e-3 <= calibrated <= best + 1e-9


def test_with_nothing_taken_out_the_loss_is_the_same_bit_for_bit(folder: Path):
    rebuilt = rebuild(folder, 60)
    before = read(rebuilt).loss
    for adapter in rebuilt.adapters.values():
        with without(adapter):
            pass
    assert read(rebuilt).loss == before == read(rebuild(folder, 60)).loss


def test_all_matrices_out_is_the_base_model_with_the_trained_head(loud: Path, tmp_path: Path):
    rebuilt = rebuild(loud, 60)
    whole = read(rebuilt).loss
    with ExitStack() as stack:
        for adapter in rebuilt.adapters.values():
            stack.enter_context(without(adapter))
        nothing = read(rebuilt).loss
    zeroed = Path(shutil.copytree(loud, tmp_path / loud.name))
    without_factors(zeroed, "")
    assert nothing == pytest.approx(read(rebuild(zeroed, 60)).loss, abs=1e-7)
    assert nothing != whole


def test_a_matrix_without_rank_contributes_nothing(copy: Path):
    path = copy / "result.json"
    result = json.loads(path.read_text())
    result["ranks"]["final"]["a.matrix.of.rank.0"] = 0
    path.write_text(json.dumps(result))
    assert measure(copy, 20)["rises"]["a.matrix.of.rank.0"] == 0.0


def test_a_store_is_measured_once_and_again_when_asked_for_more_items(copy: Path, capsys: pytest.CaptureFixture[str]):
    store = copy.parents[1]
    assert main([str(store), "--items", "20"]) == 0
    first = (copy / "contributions.json").read_bytes()
    assert "loss " in capsys.readouterr().out
    assert main([str(store), "--items", "20"]) == 0
    assert "measured before" in capsys.readouterr().out
    assert main([str(copy), "--items", "30"]) == 0 and measured(copy, 30)
    assert main([str(copy.parent), "--items", "20"]) == 0
    assert (copy / "contributions.json").read_bytes() == first
    assert [path.name for path in copy.glob(".contributions*")] == []


def test_a_damaged_answer_is_measured_again(copy: Path):
    (copy / "contributions.json").write_text('{"schema": 1')
    assert not measured(copy, 20)
    assert main([str(copy), "--items", "20"]) == 0 and measured(copy, 20)


def test_only_held_out_data_is_read(copy: Path, capsys: pytest.CaptureFixture[str]):
    path = copy / "config.yaml"
    path.write_text(path.read_text().replace("name: clean", "name: paper_last"))
    assert main([str(copy)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "protocol=paper_last" in line and "protocol=clean" in line
    assert not (copy / "contributions.json").exists()


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda run: (run / "config.yaml").unlink(), "config.yaml cannot be read"),
        (lambda run: (run / "config.yaml").write_text("nonsense: 1\n"), "does not fit this version"),
        (lambda run: (run / "result.json").write_text("{"), "is damaged"),
    ],
)
def test_a_broken_run_is_one_line_and_the_others_are_measured(
    copy: Path, folder: Path, break_it, words: str, capsys: pytest.CaptureFixture[str]
):
    other = Path(shutil.copytree(folder, copy.parent / "other"))
    (other / "contributions.json").write_text(json.dumps(measure(folder, 8)))
    break_it(copy)
    assert main([str(copy.parent), "--items", "8"]) == 2
    said = capsys.readouterr()
    assert words in said.err and len(said.err.splitlines()) == 1
    assert "measured before" in said.out


def test_a_folder_without_runs_says_what_makes_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(tmp_path)]) == 2
    assert "no finished run" in capsys.readouterr().err
    assert main([str(tmp_path / "none")]) == 2
    assert "folder of runs" in capsys.readouterr().err


def test_a_method_without_lora_form_is_passed_over(copy: Path, capsys: pytest.CaptureFixture[str]):
    adapter = copy / "adapter"
    (adapter / "adapter_model.safetensors").rename(adapter / "trained.safetensors")  # as head and bitfit leave it
    assert main([str(copy)]) == 0
    assert "no adapter in LoRA form" in capsys.readouterr().out


# -- images and summaries ----------------------------------------------------------------------------------

OTHERS = {  # task -> stand-in model, protocol, the held-out split
    "xsum": ("bart", "clean", "validation"),
    "eurosat": ("vit", "tune", "validation"),
}


def other(task: str, protocol: str, store: Path) -> Path:
    """A finished LoRA run of a few steps on a stand-in, with a much larger update than it trained."""
    words = ["method=lora", "budget=r2", f"task={task}", "task.verify=false", "task.fingerprint=null", "model=local"]
    words += [
        f"model.path={standins()}/models/{OTHERS[task][0]}",
        f"data.root={standins()}/data",
        f"protocol={protocol}",
    ]
    words += ["trainer.max_steps=3", "trainer.batch_size=4", "data.train_items=24", "store.checkpoint_every=0"]
    words += ["task.max_length=48", "task.generate_length=4", "task.beams=1"] if task == "xsum" else []
    plan = make_plan(config(*words, f"store.root={store}"))
    run(plan)
    edit(plan.folder.path, lambda key, tensor: 2000 * tensor if "lora_B" in key else tensor)
    return plan.folder.path


@pytest.mark.parametrize("task", list(OTHERS))
def test_images_and_summaries_are_measured_and_agree_with_stock_peft(task: str, tmp_path: Path):
    import transformers
    from peft import PeftModel

    name, protocol, split = OTHERS[task]
    folder = other(task, protocol, tmp_path)
    found = measure(folder, 12)
    result = json.loads((folder / "result.json").read_text())
    assert (found["split"], found["items"]) == (split, 12) and set(found["rises"]) == set(result["ranks"]["final"])
    family, labels = {
        "bart": (transformers.BartForConditionalGeneration, {}),
        "vit": (transformers.ViTForImageClassification, {"num_labels": 10}),
    }[name]
    rebuilt = rebuild(folder, 12)

    def stock() -> float:
        """Mean over items, or over target tokens, by stock PEFT and a loss from its logits."""
        bare = family.from_pretrained(standins() / "models" / name, dtype=torch.float32, **labels)
        model = PeftModel.from_pretrained(bare, str(folder / "adapter")).eval()
        losses = []
        with torch.inference_mode():
            for _, batch in rebuilt.batches:
                logits = model(**batch).logits.double()
                wanted = batch["labels"].flatten()
                each = torch.nn.functional.cross_entropy(
                    logits.flatten(0, -2), wanted, reduction="none", ignore_index=-100
                )
                losses.append(each[wanted != -100])
        return torch.cat(losses).mean().item()

    assert found["loss"] == pytest.approx(stock(), rel=1e-5)
    matrix = max(found["rises"], key=lambda one: abs(found["rises"][one]))
    without_factors(folder, f"{matrix}.lora_")
    assert abs(found["rises"][matrix]) > 1e-4
    assert stock() - found["loss"] == pytest.approx(found["rises"][matrix], rel=1e-2, abs=1e-5)


def test_vtab_under_clean_holds_nothing_out_and_says_what_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = other("eurosat", "clean", tmp_path)
    capsys.readouterr()
    assert main([str(folder)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "protocol=clean holds out no data of eurosat" in line and "on VTAB-1k protocol=tune" in line


def test_items_of_an_image_task_are_drawn_from_every_class_alike():
    from types import SimpleNamespace

    from datasets import Dataset

    from experiments.data.protocols import draw_rows

    rows = Dataset.from_dict({"idx": range(40), "label": [i % 4 for i in range(40)]})
    drawn = draw_rows(rows, SimpleNamespace(kind="image", name="a task"), 12, "contribution")
    assert sorted(rows[drawn]["label"]) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
