"""Every run in a row of its own: its seed, score and state, and the command that continues one without a result."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.output.section import Section
from analysis.output.table import Table
from analysis.reading.folders import Unfinished
from analysis.reading.stored import Stored
from analysis.sections.arms import method_order
from experiments.store.name import RunName, short_id
from experiments.store.status import read_run, retry

COLUMNS = ["Method", "Seed", "Score", "State", "Task", "Protocol", "Model", "Budget", "Run", "Command"]
ALWAYS = ("Method", "Seed", "Score", "State", "Run")  # the others only where runs differ in them


def sections(stored: Stored, folder: Path | None) -> list[Section]:
    """The table of runs."""
    return [Section("Single runs", {"runs": run_list(stored.runs, stored.unfinished)})]


def run_list(runs: pd.DataFrame, unfinished: list[Unfinished]) -> Table:
    """A row for every run, those without a result first.

    Args:
        runs: rows of `load_runs` with their names.
        unfinished: the others.
    """
    records: list[dict[str, Any]] = [_open(run) for run in unfinished]
    order = [(method_order(method), shown) for method, shown in zip(runs["method"], runs["shown"], strict=True)]
    for run in runs.assign(order=order).sort_values(["task", "budget", "order", "seed"]).to_dict("records"):
        state = "collapsed" if run["collapsed"] else "done"
        key = {name: run[name] for name in ("task", "protocol", "model", "budget")}
        record = {"method": run["shown"], "seed": str(run["seed"]), "score": run["score"], "state": state}
        records.append(key | record | {"run": short_id(run["id"]), "command": ""})
    texts = [{**r, "score": f"{r['score']:.2f}" if "score" in r else ""} for r in records]
    shown = [c for c in COLUMNS if c in ALWAYS or len({r.get(c.lower(), "") for r in texts} - {""}) > (c != "Command")]
    rows = [[str(r.get(column.lower(), "")) for column in shown] for r in texts]
    notes = ["Scores are points on the reported split. The command continues a run from its checkpoint, if it has one."]
    return Table("Every run.", shown, rows, notes, pd.DataFrame(records))


def _open(run: Unfinished) -> dict[str, Any]:
    name, path = RunName.parse(run.folder), Path(run.folder)
    known = {"method": name.arm, "seed": str(name.seed), "run": name.id} if name else {"method": path.name}
    state = f"{run.state}: {run.error[:120]}" if run.error else run.state
    return {"task": path.parent.name, **known, "state": state, "command": _command(path)}


def _command(folder: Path) -> str:
    """What continues a run that stopped; "" for one that is running or whose command is unknown."""
    commands = retry([read_run(folder, str(folder.parent.parent), time.time())])
    return commands[0][0] if commands else ""
