"""The comparison table: one row per method, budget, task, model, protocol and settings, never averaged across.

What is unusual: a row stands for one exact configuration apart from its seed. Runs that share a name but differ
in any setting get rows of their own that name the difference; arms that cannot be compared (other settings, more
than 1 % apart in parameters, other versions or hardware) are still shown, with a note that says so. The table
states differences and intervals; it never says which method wins.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from analysis.output.table import Table, signed, signed_range
from analysis.reading.arms import CELL, NAMES
from analysis.reading.result_row import NO_BUDGET
from analysis.sections.arms import (
    LEAST_FOR_INTERVAL,
    METRICS,
    PARAMETER_TOLERANCE,
    _unlike,
    fitting,
    note_manifests,
    place_of,
    protocol_notes,
    start_to_end,
)
from elalora.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

SPREADS = ("sd", "interval")
MOST_NAMED = 5  # arms of one size in a note


def comparison(runs: pd.DataFrame, baseline: str = "lora", spread: str = "sd", level: float = 0.95) -> Table:
    """Compares every method with `baseline` at the same task, model, budget and protocol.

    Args:
        runs: from `analysis.reading.runs.load_runs`.
        baseline: name of the method that differences are taken to.
        spread: "sd" (standard deviation, ddof 1) or "interval" (t interval from 3 seeds on) after each mean.
        level: of all intervals.

    Raises:
        UserError: there is no run, or `spread` is unknown.
    """
    import pandas as pd

    if spread not in SPREADS:
        raise UserError(f"spread={spread} is unknown; allowed: {', '.join(SPREADS)}")
    if not len(runs):
        raise UserError("there is no finished run to compare; `python run.py` makes one")
    records: list[dict[str, Any]] = []
    notes: list[str] = []
    for _, cell in runs.groupby(CELL, sort=False):
        records += _cell(cell, baseline, level, notes)
    records += _majorities(runs)
    frame = pd.DataFrame(sorted(records, key=_order))
    whole = [column for column in ("n", "diff_n", "collapsed") if column in frame]
    frame = frame.astype(dict.fromkeys(whole, "Int64"))
    shown = _Shown(frame, baseline, spread)
    return Table(_caption(runs), shown.columns(), shown.rows(), _notes(runs, baseline, spread, level, notes), frame)


# -- numbers -----------------------------------------------------------------------------------------------


def _cell(cell: pd.DataFrame, baseline: str, level: float, notes: list[str]) -> list[dict[str, Any]]:
    """The rows of all arms that share task, model, budget and protocol."""
    arms = {key: arm.sort_values("seed") for key, arm in cell.groupby(["arm", "fingerprint"], sort=False)}
    bases = [arm for arm in arms.values() if arm["method"].iloc[0] == baseline]
    where = place_of(cell)
    off = {key for key, arm in arms.items() if any("off budget" in flags for flags in arm["flags"])}
    for key in off:
        notes.append(f"{where}: {arms[key]['shown'].iloc[0]} is off the budget and stands outside the comparison.")
    params = {arm["shown"].iloc[0]: arm["params_final"].mean() for key, arm in arms.items() if key not in off}
    if mismatched := cell["budget"].iloc[0] != NO_BUDGET and _apart(params.values()):
        notes.append(
            f"‡ {where}: final adapter parameters differ by {100 * _gap(params.values()):.1f} % ({_sizes(params)})."
        )
    _note_settings(arms.values(), where, notes)
    note_manifests(cell, where, notes)
    records = []
    for key, arm in arms.items():
        record = _arm(arm, level) | {"params_mismatch": bool(mismatched) and key not in off, "off_budget": key in off}
        if arm["method"].iloc[0] != baseline and key not in off:
            record |= _difference(arm, bases, level, where, notes)
        records.append(record)
    return records


def _arm(arm: pd.DataFrame, level: float) -> dict[str, Any]:
    """One row: means over the seeds of one configuration."""
    first, scores = arm.iloc[0], arm["score"].to_numpy(float)
    low, high = _interval(scores, level)
    record: dict[str, Any] = {
        **{key: first[key] for key in (*CELL, "split", "metric", "method", "variant", "label", "shown")},
        "reconstructed": first["reconstructed"],
        "citation": first["citation"],
        "n": len(arm),
        "seeds": " ".join(str(seed) for seed in arm["seed"]),
        "score_mean": scores.mean(),
        "score_sd": scores.std(ddof=1) if len(arm) > 1 else math.nan,
        "score_low": low,
        "score_high": high,
    }
    for count in ("rank_sum", "params"):
        for when in ("initial", "peak", "final"):
            record[f"{count}_{when}"] = arm[f"{count}_{when}"].mean()
    for column in ("head_params", "other_params", "gross_share", "net_share", "adapter_bytes", "peak_memory_mib"):
        record[column] = arm[column].mean()
    record["step_seconds_median"] = arm["step_seconds"].median()
    record["train_seconds_median"] = arm["train_seconds"].median()
    record["collapsed"] = sum("collapsed" in flags for flags in arm["flags"])
    record["flags"] = ", ".join(sorted({flag for flags in arm["flags"] for flag in flags}))
    return record


def _difference(
    arm: pd.DataFrame, bases: list[pd.DataFrame], level: float, where: str, notes: list[str]
) -> dict[str, Any]:
    """Paired differences in score to the baseline arm over the seeds that both have."""
    import numpy as np

    name = arm["shown"].iloc[0]
    fit = fitting(arm, bases)
    if len(fit) != 1:
        if bases:
            reason = "several baseline arms fit" if fit else "no baseline arm has the same data and settings"
            notes.append(f"{where}: no difference for {name}, {reason}.")
        return {}
    base = dict(zip(fit[0]["seed"], fit[0]["score"], strict=True))
    pairs = [(score, base[seed]) for seed, score in zip(arm["seed"], arm["score"], strict=True) if seed in base]
    alone = len(arm) + len(base) - 2 * len(pairs)
    if alone:
        notes.append(f"{where}: {alone} seeds of {name} or its baseline have no counterpart and enter no difference.")
    if not pairs:
        return {"diff_n": 0}
    gaps = np.array([score - other for score, other in pairs])
    low, high = _interval(gaps, level)
    return {
        "diff_n": len(gaps),
        "diff_mean": gaps.mean(),
        "diff_sd": gaps.std(ddof=1) if len(gaps) > 1 else math.nan,
        "diff_low": low,
        "diff_high": high,
        "diffs": " ".join(f"{gap:.4f}" for gap in gaps),
    }


def _interval(values: Any, level: float) -> tuple[float, float]:
    from analysis.stats.seeds import t_interval

    return t_interval(values, level) if len(values) >= LEAST_FOR_INTERVAL else (math.nan, math.nan)


def _majorities(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """A row for the best constant answer of every reported split."""
    known = runs.dropna(subset="majority").drop_duplicates(["task", "protocol", "split", "metric", "majority"])
    return [
        {key: row[key] for key in ("task", "protocol", "split", "metric", "citation")}
        | {"method": "majority", "shown": "Constant answer", "score_mean": row["majority"]}
        for row in known.to_dict("records")
    ]


def _gap(counts: Iterable[float]) -> float:
    known = list(counts)
    return (max(known) - min(known)) / min(known) if known and min(known) > 0 else 0.0


def _sizes(params: dict[str, float]) -> str:
    """Arms by their number of parameters, smallest first; of many arms of one size a few are named."""
    same: dict[str, list[str]] = {}
    for name, count in sorted(params.items(), key=lambda item: (item[1], item[0])):
        same.setdefault(f"{count:,.0f}", []).append(name)
    return "; ".join(
        f"{count}: {', '.join(names[:MOST_NAMED])}"
        + (f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else "")
        for count, names in same.items()
    )


def _apart(counts: Iterable[float]) -> bool:
    return _gap(counts) > PARAMETER_TOLERANCE


def _order(record: dict[str, Any]) -> tuple[Any, ...]:
    """Task, protocol, constant answer first, then model, recipe, budget by size, baseline-like names first."""
    budget = str(record.get("budget", ""))
    digits = "".join(filter(str.isdigit, budget))
    rank = list(NAMES).index(record["method"]) if record["method"] in NAMES else len(NAMES)
    first = {"majority": -2, "lora": -1}.get(record["method"], rank)
    return (
        record["task"], record["protocol"], record["method"] != "majority", record.get("model", ""),
        record.get("recipe", ""), int(digits or 0), budget, record.get("off_budget", False), first, record["shown"],
    )  # fmt: skip


# -- notes -------------------------------------------------------------------------------------------------


def _note_settings(arms: Iterable[pd.DataFrame], where: str, notes: list[str]) -> None:
    if unlike := _unlike(arms):
        listed = "; ".join(f"{key}: {', '.join(values)}" for key, values in unlike.items())
        notes.append(f"{where}: the arms were not trained alike ({listed}).")
    prints = list(dict.fromkeys(p for arm in arms for p in arm["fingerprint"]))
    if len(prints) > 1:
        notes.append(f"{where}: the arms saw different data (fingerprints {', '.join(p[:12] for p in prints)}).")


def _caption(runs: pd.DataFrame) -> str:
    tasks, models = ", ".join(sorted(set(runs["task"]))), ", ".join(sorted(set(runs["model"])))
    cites: dict[str, set[str]] = {}
    for task, citation in zip(runs["task"], runs["citation"], strict=True):
        cites.setdefault(citation, set()).add(task)
    data = [f"{cite} ({', '.join(sorted(of))})" for cite, of in sorted(cites.items()) if cite]
    cited = f" Data: {'; '.join(data)}." if data else ""
    return f"{tasks} with {models}, protocol {', '.join(sorted(set(runs['protocol'])))}.{cited}"


def _notes(runs: pd.DataFrame, baseline: str, spread: str, level: float, found: list[str]) -> list[str]:
    splits = ", ".join(sorted(set(runs["split"])))
    how = "standard deviation (ddof 1)" if spread == "sd" else f"{level:.0%} t interval (from 3 seeds on)"
    notes = [f"Scores are points on the {splits} split: mean over n seeds and {how}."]
    notes += protocol_notes(runs)
    if baseline in set(runs["method"]) and set(runs["method"]) != {baseline}:
        notes.append(
            f"Differences are to {NAMES.get(baseline, baseline)} with the same seed; from 3 seeds on their mean with a "
            f"{level:.0%} t interval, which covers seeds only and is no test; below that every difference."
        )
    elif baseline not in set(runs["method"]):
        others = ", ".join(sorted(set(runs["method"])))
        notes.append(f"No differences: there is no run of the baseline {baseline} here; methods: {others}.")
    notes.append(
        "Parameters are the adapter's at the end (start → end where they differ); the head is not counted. "
        "Moved: share of directions grown anew / net change of the shares that the matrices have of all ranks. Step: "
        "median over seeds; step times compare only on one machine without other work."
    )
    if runs["reconstructed"].any():
        notes.append("† reconstructed, not checked against its authors' code or its paper in full (docs/methods.md).")
    if runs["majority"].notna().any():
        notes.append("Constant answer: the commonest class (or mean) of the reported split.")
    return notes + list(dict.fromkeys(found))


# -- what is shown -----------------------------------------------------------------------------------------


class _Shown:
    """Turns the frame's numbers into the cells of a page; a column with one value throughout is left out."""

    def __init__(self, frame: pd.DataFrame, baseline: str, spread: str) -> None:
        self.records = [{k: v for k, v in r.items() if not _missing(v)} for r in frame.to_dict("records")]
        self.spread = spread
        arms = [r for r in self.records if r["method"] != "majority"]
        self.keys = [k for k in CELL if len({r[k] for r in arms}) > 1]
        metrics = {r["metric"] for r in arms}
        self.score = METRICS.get(min(metrics), min(metrics)) if len(metrics) == 1 else "Score"
        if len(metrics) > 1:
            self.keys.append("metric")
        self.cells = {
            "n": lambda r: f"{r['n']:.0f}" if "n" in r else "",
            self.score: self._score,
            f"Δ to {NAMES.get(baseline, baseline)}": _diff,
            "Rank sum": lambda r: start_to_end(r, "rank_sum"),
            "Parameters": lambda r: start_to_end(r, "params") + ("‡" if r.get("params_mismatch") else ""),
            "Moved %": _moved,
            "Step ms": lambda r: f"{1000 * r['step_seconds_median']:.0f}" if "step_seconds_median" in r else "",
            "Flags": _flags,
        }
        self.cells = {k: f for k, f in self.cells.items() if k in ("n", self.score) or any(map(f, self.records))}

    def columns(self) -> list[str]:
        return [*(key.capitalize() for key in self.keys), "Method", *self.cells]

    def rows(self) -> list[list[str]]:
        return [
            [*(str(r.get(key, "")) for key in self.keys), r["shown"], *(cell(r) for cell in self.cells.values())]
            for r in self.records
        ]

    def _score(self, record: dict[str, Any]) -> str:
        text = f"{record['score_mean']:.2f}"
        if self.spread == "interval" and "score_low" in record:
            return f"{text} [{record['score_low']:.2f}, {record['score_high']:.2f}]"
        return f"{text} ± {record['score_sd']:.2f}" if self.spread == "sd" and "score_sd" in record else text


def _missing(value: Any) -> bool:
    return value is None or isinstance(value, float) and math.isnan(value)


def _diff(record: dict[str, Any]) -> str:
    if "diff_low" in record:
        text = signed(record["diff_mean"]) + signed_range(record["diff_low"], record["diff_high"])
    elif "diffs" in record:
        text = ", ".join(signed(float(gap)) for gap in record["diffs"].split())
    else:
        return ""
    return text + (f" (n={record['diff_n']:.0f})" if record["diff_n"] != record["n"] else "")


def _moved(record: dict[str, Any]) -> str:
    if not record.get("gross_share"):
        return ""
    return f"{100 * record['gross_share']:.1f} / {100 * record['net_share']:.1f}"


def _flags(record: dict[str, Any]) -> str:
    words = [flag for flag in record.get("flags", "").split(", ") if flag not in ("", "collapsed")]
    if record.get("collapsed"):
        words.insert(0, f"collapsed {record['collapsed']:.0f}/{record['n']:.0f}")
    return ", ".join(words)
