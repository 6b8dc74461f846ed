"""Pooling over tasks: only what all arms share, against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis.output.writers import to_markdown
from analysis.reading.runs import load_runs
from analysis.sections.overall import overall
from analysis.sections.shared_tasks import shared_tasks, unshared
from experiments.standins.stored_runs import result, write_run


def run(root: Path, method: str, seed: int, task: str, score: float, **changes: Any) -> None:
    write_run(root, result(method, seed, score, task=task, identity__task={"name": task}, **changes))


def test_arms_are_pooled_over_shared_tasks_and_seeds_only(tmp_path: Path) -> None:
    for seed in range(2):
        for task, score in (("a", 80.0), ("b", 60.0)):
            run(tmp_path, "lora", seed, task, score)
            run(tmp_path, "svd_lora", seed, task, score + (2.0 if task == "a" else -1.0))
            run(tmp_path, "adalora", seed, task, score)
    run(tmp_path, "lora", 0, "c", 1.0)  # the others were never run there
    run(tmp_path, "lora", 2, "a", 1.0)  # and not with this seed
    table = overall(shared_tasks(load_runs(tmp_path)))
    assert table is not None
    frame = table.frame.set_index("shown")
    assert frame["tasks"].tolist() == [2, 2, 2] and frame["n"].tolist() == [2, 2, 2]
    assert frame["mean"].to_dict() == {"AdaLoRA": 70.0, "LoRA": 70.0, "SVD-LoRA": 70.5}
    assert frame.loc["SVD-LoRA", ["above", "wtl"]].tolist() == [0.5, "1/0/1"]
    assert frame.loc["AdaLoRA", ["above", "wtl"]].tolist() == [0.5, "0/2/0"]
    # ranks: SVD-LoRA 1 and 3, the tied others 2.5 and 1.5
    assert "SVD-LoRA 2.00" in table.notes[-1] and "LoRA 2.00" in table.notes[-1] and "p = 1.000" in table.notes[-1]
    assert "better" not in to_markdown(table)


def test_an_arm_off_its_budget_on_one_task_stands_outside_and_is_named(tmp_path: Path) -> None:
    for task in ("a", "b"):
        for method, score in (("lora", 80.0), ("svd_lora", 81.0), ("adalora", 82.0), ("sora", 99.0)):
            off = (method, task) == ("sora", "b")
            run(tmp_path, method, 0, task, score, flags=["off budget"] if off else [])
    [pool] = shared_tasks(load_runs(tmp_path))
    assert sorted(pool.methods.values()) == ["adalora", "lora", "svd_lora"] and pool.off == ["SoRA"]
    table = overall(shared_tasks(load_runs(tmp_path)))
    assert table is not None and table.frame["shown"].tolist() == ["AdaLoRA", "LoRA", "SVD-LoRA"]
    where = "minilm, clean, r4"
    assert f"{where}: off the budget and outside of all means, ranks and figures: SoRA." in table.notes
    assert "1 is highest) AdaLoRA 1.00, SVD-LoRA 2.00, LoRA 3.00" in table.notes[-1]


def test_from_four_seeds_on_the_mean_has_an_interval(tmp_path: Path) -> None:
    for seed in range(4):
        for task in ("a", "b"):
            run(tmp_path, "lora", seed, task, 80.0 + seed)
            run(tmp_path, "sora", seed, task, 81.0 + seed)
    table = overall(shared_tasks(load_runs(tmp_path)))
    assert table is not None
    row = table.frame.set_index("shown").loc["SoRA"]
    assert row["mean"] == pytest.approx(82.5) and row["low"] < 82.5 < row["high"]


def test_one_task_or_one_arm_is_nothing_to_pool(tmp_path: Path) -> None:
    run(tmp_path, "lora", 0, "a", 80.0)
    run(tmp_path, "sora", 0, "a", 80.0)
    assert overall(shared_tasks(load_runs(tmp_path))) is None


def test_an_arm_that_lacks_a_task_is_named(tmp_path: Path) -> None:
    for task in ("a", "b"):
        for method in ("lora", "svd_lora"):
            run(tmp_path, method, 0, task, 80.0)
    run(tmp_path, "adalora", 0, "a", 82.0)
    run(tmp_path, "lora", 0, "c", 82.0)
    table = overall(shared_tasks(load_runs(tmp_path)))
    assert table is not None and table.frame["shown"].tolist() == ["LoRA", "SVD-LoRA"]
    assert "minilm, clean, r4: left out: AdaLoRA, which has a only; c, which SVD-LoRA lacks." in table.notes


def test_arms_that_share_too_little_are_named_with_their_tasks(tmp_path: Path) -> None:
    for method, tasks in (("lora", "ab"), ("svd_lora", "bc")):
        for task in tasks:
            run(tmp_path, method, 0, task, 80.0)
    runs = load_runs(tmp_path)
    assert shared_tasks(runs) == []
    [line] = unshared(runs)
    assert line.startswith("minilm, clean, r4: no means over tasks") and line.endswith("(LoRA: a, b; SVD-LoRA: b, c).")
