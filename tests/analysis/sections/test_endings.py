"""How runs ended, from real runs that end in every way to the printed table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ended_runs import ENDS, end

from analysis.output.writers import to_markdown
from analysis.reading.runs import load_runs
from analysis.sections.endings import failures
from experiments.standins.stored_runs import failed, result, status, write_run

COLUMNS = {"nan": "NaN", "budget": "Over budget", "never_acted": "Method failed", "crash": "Crash"}


@pytest.fixture(scope="module")
def store(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ends")
    for kind in ENDS:
        end(kind, tiny_model_dir, root)
    return root


def test_every_kind_of_failure_has_its_column_in_the_printed_table(store: Path) -> None:
    runs = load_runs(store)
    states = sorted((run.state, run.failure) for run in runs.attrs["unfinished"])
    failed = [("failed", kind) for kind in sorted(COLUMNS)]
    assert states == [*failed, ("preempted", "preempted"), ("refused", "refused")]
    table = failures(runs, runs.attrs["unfinished"])
    assert table is not None
    rows = table.frame.set_index("arm")
    assert rows.loc["elalora-r4", ["done", "over budget", "open"]].tolist() == [1, 1, 0]
    assert rows.loc["elalora-r2", "method failed"] == 1
    assert rows.loc["lora-r4", ["NaN", "crash", "open"]].tolist() == [1, 1, 2]  # refused and preempted are open
    printed = to_markdown(table).splitlines()
    head = next(line for line in printed if line.startswith("| Arm"))
    titles = [cell.strip() for cell in head.split("|")]
    for kind, arm in (
        ("nan", "lora-r4"),
        ("crash", "lora-r4"),
        ("budget", "elalora-r4"),
        ("never_acted", "elalora-r2"),
    ):
        row = next(line for line in printed if line.startswith(f"| {arm} "))
        assert [cell.strip() for cell in row.split("|")][titles.index(COLUMNS[kind])] == "1", (kind, row)


def form(value: object) -> object:
    """The keys and types of a JSON value."""
    if isinstance(value, dict):
        return {key: form(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [form(inner) for inner in value]
    return type(value).__name__


def result_form(whole: dict) -> object:
    """The form of a result.json; names of matrices, metrics and settings are free, and so is what may be null."""
    out = json.loads(json.dumps(whole))
    out["identity"] = sorted({"method", "task", "seed", "budget"} & out["identity"].keys())
    out["ranks"] = {key: form(next(iter(values.values()))) for key, values in out["ranks"].items()}
    out["data"]["majority"] = sorted({type(score).__name__ for score in out["data"]["majority"].values()})
    report = out["readings"]["last"]["report"]
    report["metrics"] = sorted({type(score).__name__ for score in report["metrics"].values()})
    out["readings"]["last"]["select"] = out["cost"]["peak_memory_mib"] = out["recipe"] = out["flags"] = out["files"] = (
        None
    )
    return form(out)


def test_a_made_up_result_has_the_keys_and_types_of_a_real_one(store: Path) -> None:
    [path] = store.glob("*/*/result.json")
    assert result_form(result("elalora", 0, 80.0)) == result_form(json.loads(path.read_text()))


@pytest.mark.parametrize("kind", ["done", *COLUMNS])
def test_a_made_up_status_has_the_keys_and_types_of_a_real_one(kind: str, store: Path) -> None:
    real = [json.loads(path.read_text()) for path in store.glob("*/*/status.json")]
    [real_one] = [status for status in real if status.get("failure", status["state"]) == kind]
    assert real_one["state"] == ("done" if kind == "done" else "failed")
    made_up = status("done") if kind == "done" else failed(kind, "an error")
    progress = {"step": "int", "total": "int"} if "step" in real_one else {}  # none before the first logged step
    assert form(made_up) | progress == form(real_one)


def test_a_failed_transplant_is_counted_as_one_and_not_as_svd_lora(tmp_path: Path) -> None:
    """Both have folders named svd_lora-r4; only the configuration tells them apart."""
    write_run(tmp_path, result("svd_lora", 0, 80.0))
    copied = {"name": "svd_lora", "ranks_from": "f" * 64}
    write_run(tmp_path, result("svd_lora", 0, 80.0, label="SVD-LoRA transplant", identity__method=copied))
    folder = tmp_path / "vader_movies" / "svd_lora-r4-s1-0123456789"
    folder.mkdir()
    (folder / "status.json").write_text(json.dumps(failed("nan", "NotFinite: the loss is nan")))
    (folder / "config.yaml").write_text(f"method: {{name: svd_lora, ranks_from: {'f' * 64}, shuffle: false}}\n")
    runs = load_runs(tmp_path)
    table = failures(runs, runs.attrs["unfinished"])
    assert table is not None
    rates = table.frame.set_index("arm")["failure_rate"].to_dict()
    assert rates == {"svd_lora-r4": 0.0, "svd_lora-r4 transplant": 0.5}
