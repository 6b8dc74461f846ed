"""Verdicts of the reproduction check: means over seeds against stated ranges."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from elalora.errors import UserError
from experiments import reproduce_check
from experiments.reproduce_check import Range, judge, main, ranges, table
from experiments.standins.stored_runs import result, write_run
from experiments.store.folder import RunFolder
from experiments.studies.expansion import Cell

RTE = Range("lora", "rte", "last", 80.0, 84.0, "T1")
BEST = {"step": 40, "report": {"split": "test", "metrics": {"accuracy": 90.0}}, "select": None}


class FinishedPlan:
    """A plan whose run may be in the store."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def finished(self) -> RunFolder | None:
        return None if self.folder is None else RunFolder(self.folder)


def cells(root: Path, *scores: float | None, best: bool = False) -> list[Cell]:
    """A seed of LoRA on RTE for each score; None for a run that is not done."""
    more = {"readings__best": BEST} if best else {}
    folders = [None if s is None else write_run(root, result("lora", i, s, **more)) for i, s in enumerate(scores)]
    return [
        Cell("main", "confirmatory", "lora", "rte", "r2", seed, (), FinishedPlan(folder))  # type: ignore[arg-type]
        for seed, folder in enumerate(folders)
    ]


@pytest.mark.parametrize(
    ("scores", "mean", "passed"),
    [
        ((81.0, 83.0), 82.0, True),
        ((80.0, 80.0), 80.0, True),  # the ends of the range belong to it
        ((84.0, 84.0), 84.0, True),
        ((79.0, 80.0), 79.5, False),
        ((85.0, 84.0), 84.5, False),
        ((82.0, None), 82.0, False),  # a missing seed has not passed, whatever the others say
        ((None, None), None, False),
    ],
)
def test_a_cell_passes_where_every_seed_is_done_and_their_mean_is_in_the_range(scores, mean, passed, tmp_path):
    [verdict] = judge(cells(tmp_path, *scores), [RTE])
    assert (verdict.mean, verdict.passed) == (mean, passed)
    assert verdict.seeds == sum(score is not None for score in scores)


def test_the_stated_reading_counts_and_a_run_without_it_has_not_passed(tmp_path):
    best = Range("lora", "rte", "best", 89.0, 91.0, "T1")
    [with_best] = judge(cells(tmp_path / "a", 82.0, best=True), [best])
    [without] = judge(cells(tmp_path / "b", 82.0), [best])
    assert (with_best.mean, with_best.passed) == (90.0, True)
    assert (without.mean, without.passed) == (None, False)


def test_a_range_without_a_cell_fails_and_other_arms_do_not_count(tmp_path):
    verdicts = judge(cells(tmp_path, 82.0), [Range("adalora", "rte", "last", 0, 100, "T1"), RTE])
    assert [verdict.passed for verdict in verdicts] == [False, True]


def test_the_table_has_a_line_for_each_cell_with_its_verdict(tmp_path):
    stored = cells(tmp_path, 82.0, 83.0)
    other = Range("lora", "cola", "best", 1, 2, "LOG")
    head, passed, failed = table(judge(stored, [RTE, other])).splitlines()
    assert head.split() == ["arm", "task", "reading", "mean", "seeds", "range", "source", "verdict"]
    assert passed.split() == ["lora", "rte", "last", "82.50", "2", "80.00", "..", "84.00", "T1", "pass"]
    assert failed.split()[3:5] == ["-", "0"] and failed.endswith("FAIL")
    assert table(judge(stored, [RTE], apply=False)).endswith("not applied")


@pytest.mark.parametrize(
    ("score", "smoke", "study", "code"),
    [(82.0, False, 0, 0), (70.0, False, 0, 1), (70.0, True, 0, 0), (82.0, False, 1, 1), (None, False, 0, 1)],
)
def test_the_exit_code_is_1_for_a_failed_cell_or_run(score, smoke, study, code, tmp_path, monkeypatch, capsys):
    stored = cells(tmp_path, score)
    monkeypatch.setattr(
        reproduce_check, "compose_run", lambda words: SimpleNamespace(study=SimpleNamespace(smoke=smoke))
    )
    monkeypatch.setattr(reproduce_check, "run_study", lambda config, do: study)
    monkeypatch.setattr(reproduce_check, "cells_of", lambda config: stored)
    monkeypatch.setattr(reproduce_check, "check", lambda plans: 0)
    monkeypatch.setattr(reproduce_check, "ranges", lambda: [RTE])
    assert main([]) == code
    assert ("not applied" in capsys.readouterr().out) == smoke


def test_a_mistake_is_one_line_and_exit_code_2(capsys, monkeypatch):
    assert main(["store.rooot=x"]) == 2
    line = capsys.readouterr().err
    assert "store.rooot" in line and len(line.splitlines()) == 1

    def refuse(config, do):
        raise UserError("no GLUE here")

    monkeypatch.setattr(reproduce_check, "check", lambda plans: 0)
    monkeypatch.setattr(reproduce_check, "run_study", refuse)
    assert main([]) == 2 and "no GLUE here" in capsys.readouterr().err


def test_every_stated_range_names_a_cell_of_the_study():
    from experiments.config.compose import compose_run
    from experiments.studies.expansion import cells_of

    study = {(cell.arm, cell.task) for cell in cells_of(compose_run(["+study=reproduce_check"]))}
    assert {(r.arm, r.task) for r in ranges()} <= study
    assert all(r.low < r.high and r.reading in ("last", "best") and r.source for r in ranges())


def test_it_starts_with_the_check_and_trains_nothing_if_that_fails(capsys, monkeypatch):
    checked = []
    monkeypatch.setattr(reproduce_check, "check", lambda plans: checked.extend(plans) or 1)
    monkeypatch.setattr(reproduce_check, "run_study", lambda config, do: pytest.fail("trained"))
    assert main([]) == 1 and "nothing was trained" in capsys.readouterr().out
    assert {plan.config.task.name for plan in checked} == {"rte", "cola", "sst2"}
    assert {plan.config.model.name for plan in checked} == {"deberta_v3_base"}
