"""Reads run stores and chooses the runs of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.output.table import summarise
from analysis.reading.arms import with_names
from analysis.reading.folders import Unfinished
from analysis.reading.runs import in_one_block, load_runs, quick_texts, select
from elalora.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from analysis.reading.study import Study


BASELINE = "lora"
TUNING = "tune"  # the protocol of a study's tuning stage, which reads data that no table is about


@dataclass(frozen=True, eq=False)
class Stored:
    """The runs of a report, and the choices that its sections share.

    Attributes:
        runs: the chosen runs; tuning: those of a study's tuning stage where they are not among them.
        known: all runs before any filter, so that a filter makes no run missing.
        facts: lines on what was chosen; left_out: results that could not be read.
        unfinished: runs without a result; declared: the study, None for none.
        reading: the checkpoint that is read.
        baseline: the method that others are compared with.
        spread: "sd" or "interval", shown after means.
        failed: a line for every section that could not be made from these runs; filled in by the report.
    """

    runs: pd.DataFrame
    tuning: pd.DataFrame
    known: pd.DataFrame
    facts: list[str]
    left_out: list[str]
    unfinished: list[Unfinished]
    declared: Study | None
    reading: str
    baseline: str = BASELINE
    spread: str = "sd"
    failed: list[str] = field(default_factory=list)


@quick_texts()
def read_stores(
    roots: Sequence[str | Path],
    filters: Mapping[str, Sequence[str]] | None = None,
    study: str = "",
    reading: str = "last",
    baseline: str = "",
    spread: str = "sd",
) -> Stored:
    """Reads and chooses runs; arguments and errors as in `report`."""
    filters = {key: list(values) for key, values in (filters or {}).items() if values}
    runs = load_runs(*roots, reading=reading)
    left_out, unfinished = list(runs.attrs["problems"]), list(runs.attrs["unfinished"])
    runs.attrs = {}  # pandas copies them at every step
    declared = None
    if study:
        from analysis.reading.study import load_study

        declared = load_study(study, roots)
        if len(runs):
            runs, unfinished = declared.only(runs, unfinished)
    if not len(runs):
        if reading != "last" and (others := _finished(roots, declared)):
            raise UserError(
                f"none of the {others} finished runs{f' of study {study}' if study else ''} in "
                f"{', '.join(map(str, roots))} has a {reading} reading; runs with `trainer.evaluations=N` have one, "
                "where their protocol selects a checkpoint"
            )
        raise UserError(
            f"no finished run{f' of study {study}' if study else ''} in {', '.join(map(str, roots))}; "
            f"`python run.py{f' -m +study={study}' if study else ''}` makes one"
            + "".join(f"; {line}" for line in summarise([*left_out, *map(str, unfinished)]).splitlines())
        )
    chosen = select(runs, filters)
    if not len(chosen):
        asked = " ".join(f"--{key} {','.join(values)}" for key, values in filters.items())
        raise UserError(f"no finished run has {asked} at once; leave one of them out")
    facts = [f"{len(chosen)} finished runs of {', '.join(map(str, roots))}, {reading} checkpoint."]
    facts += [f"Only --study {study}."] if study else []
    facts += [f"Only --{key} {','.join(values)}." for key, values in filters.items()]
    tuning = chosen["protocol"] == TUNING
    if "protocol" in filters or tuning.all():
        tuning &= False
    if tuning.any():
        facts.append(f"{tuning.sum()} tuning runs are not shown; --protocol {TUNING} shows them.")
        facts.append(_spent(chosen[tuning]))
    chosen = in_one_block(with_names(chosen))  # names of the arms that are left
    kept, aside = (chosen[mask].reset_index(drop=True) for mask in (~tuning, tuning))
    if baseline and baseline not in set(kept["method"]):
        raise UserError(f"--baseline {baseline} is in {_elsewhere(baseline, kept, runs)}")
    return Stored(kept, aside, runs, facts, left_out, unfinished, declared, reading, baseline or BASELINE, spread)


def _elsewhere(method: str, chosen: pd.DataFrame, known: pd.DataFrame) -> str:
    if method in set(known["method"]):
        return f"none of the chosen runs; chosen: {', '.join(sorted(set(chosen['method'])))}"
    return f"no finished run; stored: {', '.join(sorted(set(known['method'])))}"


def _finished(roots: Sequence[str | Path], declared: Study | None) -> int:
    """How many runs have a last checkpoint, of the study where there is one."""
    runs = load_runs(*roots)
    return len(runs) if declared is None or not len(runs) else len(declared.only(runs, [])[0])


def _spent(tuning: pd.DataFrame) -> str:
    """What finding the settings cost: every method's runs and their hours of training."""
    by_method = tuning.groupby("method")["train_seconds"].agg(["size", "sum"])
    shares = [f"{name} {row['size']:.0f} runs, {row['sum'] / 3600:.2f} h" for name, row in by_method.iterrows()]
    return f"Tuning took {tuning['train_seconds'].sum() / 3600:.2f} hours of training: {'; '.join(shares)}."
