"""The comparison table: one row per method, budget, task, model, protocol and settings, never averaged across.

A row is one exact configuration apart from its seed. Runs that share a name but differ in a setting get separate rows
that name the setting. Arms that cannot be compared (other settings, more than 1 % apart in parameters, other versions
or hardware) are still shown, with a note that says why. The table states differences and intervals; it never says
which method wins.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.output.section import Section
from analysis.output.table import Table, leaders, mean_sd, signed, signed_range
from analysis.reading.arms import CELL, NAMES
from analysis.reading.result_row import NO_BUDGET
from analysis.reading.stored import Stored
from analysis.sections.arms import (
    AT_ONCE,
    PARAMETER_TOLERANCE,
    RECONSTRUCTED,
    budget_order,
    cell_label,
    cell_notes,
    listed,
    matching_baselines,
    method_order,
    protocol_notes,
    start_to_end,
    timed_apart,
    training_differences,
)  # fmt: skip
from analysis.sections.differences import difference_chart, difference_lines
from analysis.stats.seeds import summary
from elalora.errors import UserError
from experiments.data.vtab import LOSSY

REFERENCES = {"majority": "Constant answer", "zero_shot": "Zero-shot"}  # rows that no run trained, and their names
SPREADS = ("sd", "interval")
TIMES = ("step_seconds", "train_seconds")
MOST_NAMED = 5  # arms of one size in a note
SIZES = [f"{count}_{when}" for count in ("rank_sum", "params") for when in ("initial", "peak", "final")]
MEANS = [*SIZES, "head_params", "other_params", "gross_share", "net_share", "adapter_bytes", "peak_memory_mib"]
SOME = ["rank_sum_trained", "params_trained", "forgetting"]  # a column only where some arm has it
METRIC_TITLES = {
    "accuracy": "Accuracy", "token_accuracy": "Token accuracy", "f1": "F1", "mcc": "MCC", "pearson": "Pearson",
    "spearman": "Spearman",
    "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L",
    "rouge1_unicode": "ROUGE-1 (Unicode)", "rouge2_unicode": "ROUGE-2 (Unicode)", "rougeL_unicode": "ROUGE-L (Unicode)",
}  # fmt: skip


def sections(stored: Stored, folder: Path | None) -> list[Section]:
    """The comparison table, and its differences in sentences and as a chart where no study declares a test."""
    table = compared(stored)
    if stored.declared is not None and stored.declared.family is not None:
        return [Section("Comparison", {"comparison": table})]
    lines = difference_lines(table.frame, stored.baseline)
    return [Section("Comparison", {"comparison": table}, lines=lines, lead=difference_chart(stored, table.frame))]


@lru_cache(maxsize=1)
def compared(stored: Stored) -> Table:
    """The comparison table of a report, made once for the sections that read it."""
    return comparison(stored.runs, stored.baseline, stored.spread)


def comparison(runs: pd.DataFrame, baseline: str = "lora", spread: str = "sd", level: float = 0.95) -> Table:
    """Compares every method with a baseline at the same task, model, budget and protocol.

    Args:
        baseline: name of the method to compare against.
        spread: "sd" (standard deviation, ddof 1) or "interval" (t interval from 3 seeds on) after each mean.
        level: of all intervals.

    Raises:
        UserError: there is no run, or `spread` is unknown.
    """
    if spread not in SPREADS:
        raise UserError(f"spread={spread} is unknown; allowed: {', '.join(SPREADS)}")
    if not len(runs):
        raise UserError("no finished run to compare; make one with `python run.py`")
    records: list[dict[str, Any]] = []
    notes: list[str] = []
    for _, cell in runs.groupby(CELL, sort=False):
        records += _cell(cell, baseline, level, notes)
    records += _reference_rows(runs)
    frame = pd.DataFrame(sorted(records, key=_order))
    whole = [column for column in ("n", "diff_n", "collapsed") if column in frame]
    frame = frame.astype(dict.fromkeys(whole, "Int64"))
    columns, rows = _shown(frame, baseline, spread)
    records = frame.to_dict("records")
    places = [
        None if r["method"] in REFERENCES or r["off_budget"] is True else tuple(r[k] for k in CELL) for r in records
    ]
    ahead = leaders(places, list(frame["score_mean"]), columns.index("n") + 1)
    return Table(_caption(runs), columns, rows, _notes(runs, baseline, spread, level, notes), frame, ahead)


def _cell(cell: pd.DataFrame, baseline: str, level: float, notes: list[str]) -> list[dict[str, Any]]:
    """The rows of all arms that share task, model, budget and protocol."""
    arms = [arm.sort_values("seed") for _, arm in cell.groupby(["arm", "fingerprint"], sort=False)]
    baselines = [arm for arm in arms if arm["method"].iloc[0] == baseline]
    label = cell_label(cell)
    within = [arm for arm in arms if not arm["off_budget"].any()]
    for name in [arm["shown"].iloc[0] for arm in arms if arm["off_budget"].any()]:
        notes.append(f"{label}: {name} is off the budget and stands outside the comparison.")
    sizes = {arm["shown"].iloc[0]: arm["params_final"].mean() for arm in within}
    least, most = min(sizes.values(), default=0.0), max(sizes.values(), default=0.0)
    gap = (most - least) / least if least > 0 else 0.0
    mismatch = bool(cell["budget"].iloc[0] != NO_BUDGET and gap > PARAMETER_TOLERANCE)
    if mismatch:
        notes.append(f"‡ {label}: final adapter parameters differ by {100 * gap:.1f} % ({_sizes(sizes)}).")
    notes += [*_training_notes(arms, label), *cell_notes(cell)]
    if apart := timed_apart(cell):
        notes.append(f"{label}: step and training times are withheld, the arms were timed in different sessions.")
    records = []
    without: dict[str, list[str]] = {}
    for arm in arms:
        off = bool(arm["off_budget"].any())
        record = _arm(arm, level) | {"params_mismatch": mismatch and not off, "off_budget": off}
        record |= dict.fromkeys([f"{time}_median" for time in TIMES], math.nan) if apart else {}
        if arm["method"].iloc[0] != baseline and not off:
            record |= _difference(arm, baselines, level, without)
        records.append(record)
    notes += [f"{label}: {sentence.format(', '.join(names))}" for sentence, names in without.items()]
    return records


def _arm(arm: pd.DataFrame, level: float) -> dict[str, Any]:
    """One row: means over the seeds of one configuration."""
    first, s = arm.iloc[0], summary(arm["score"], level)
    labels = ("split", "metric", "method", "variant", "label", "shown", "reconstructed", "citation")
    record: dict[str, Any] = {key: first[key] for key in (*CELL, *labels)}
    record |= {"n": s.n, "seeds": " ".join(map(str, arm["seed"])), "score_mean": s.mean}
    record |= {"score_sd": s.sd, "score_low": s.low, "score_high": s.high}
    record |= {column: arm[column].mean() for column in MEANS}
    record |= {column: arm[column].mean() for column in SOME if arm[column].notna().any()}
    record |= {f"{column}_median": arm[column].median() for column in TIMES}
    if arm["data_pass_seconds"].notna().any():
        record["data_pass_seconds_median"] = arm["data_pass_seconds"].median()
    flags = sorted({flag for flags in arm["flags"] for flag in flags} - {LOSSY})  # a note on the data set says it
    return record | {"collapsed": int(arm["collapsed"].sum()), "flags": ", ".join(flags)}


def _difference(
    arm: pd.DataFrame, baselines: list[pd.DataFrame], level: float, without: dict[str, list[str]]
) -> dict[str, Any]:
    """Paired differences in score to the baseline arm over the seeds that both have; what has none goes to `without`.

    There a sentence with a place for names has the names of all arms that it is true of.
    """
    name = arm["shown"].iloc[0]
    matches = matching_baselines(arm, baselines)
    if len(matches) != 1:
        if baselines:
            reason = "several baseline arms fit" if matches else "no baseline arm has the same data and settings"
            without.setdefault(f"no difference for {{}}, {reason}.", []).append(name)
        return {}
    base = dict(zip(matches[0]["seed"], matches[0]["score"], strict=True))
    gaps = [score - base[seed] for seed, score in zip(arm["seed"], arm["score"], strict=True) if seed in base]
    if alone := len(arm) + len(base) - 2 * len(gaps):
        sentence = f"{alone} seeds of {{}} or its baseline have no counterpart and enter no difference."
        without.setdefault(sentence, []).append(name)
    if not gaps:
        return {"diff_n": 0}
    s = summary(gaps, level)
    numbers = {"diff_n": s.n, "diff_mean": s.mean, "diff_sd": s.sd, "diff_low": s.low, "diff_high": s.high}
    return numbers | {"diffs": " ".join(f"{gap:.4f}" for gap in gaps)}


def _reference_rows(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """A row for the best constant answer of every reported split, and for every untrained model that answers.

    Untrained scores of one model differ by rounding, where a method starts from changed weights, so their mean counts.
    """
    split = ["task", "protocol", "split", "metric", "citation"]
    constant = runs.dropna(subset="majority").drop_duplicates([*split[:-1], "majority"])[[*split, "majority"]]
    untrained = runs.dropna(subset="zero_shot").groupby([*split, "model"], as_index=False)["zero_shot"].mean()
    return [
        {key: row[key] for key in row if key != name} | {"method": name, "shown": title, "score_mean": row[name]}
        for (name, title), rows in zip(REFERENCES.items(), (constant, untrained), strict=True)
        for row in rows.to_dict("records")
    ]


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


def _order(record: dict[str, Any]) -> tuple[Any, ...]:
    """Task, protocol, constant answer first, then model, recipe, budget by size, arms within their budget, method."""
    place = [*REFERENCES, record["method"]].index(record["method"])
    return (
        record["task"], record["protocol"], place > 0, record.get("model", ""), place > 1, record.get("recipe", ""),
        *budget_order(str(record.get("budget", ""))), record.get("off_budget", False),
        method_order(record["method"]), record["shown"],
    )  # fmt: skip


def _training_notes(arms: Iterable[pd.DataFrame], label: str) -> Iterable[str]:
    if unlike := training_differences(arm["settings"].iloc[0] for arm in arms):
        yield f"{label}: the arms were not trained alike ({listed(unlike)})."
    prints = list(dict.fromkeys(p for arm in arms for p in arm["fingerprint"]))
    if len(prints) > 1:
        yield f"{label}: the arms saw different data (fingerprints {', '.join(p[:12] for p in prints)})."


def _caption(runs: pd.DataFrame) -> str:
    tasks, models = ", ".join(sorted(set(runs["task"]))), ", ".join(sorted(set(runs["model"])))
    cites: dict[str, set[str]] = {}
    for task, citation in zip(runs["task"], runs["citation"], strict=True):
        cites.setdefault(citation, set()).add(task)
    data = [f"{cite} ({', '.join(sorted(of))})" for cite, of in sorted(cites.items()) if cite]
    cited = f" Data: {'; '.join(data)}." if data else ""
    return f"{tasks} with {models}, protocol {', '.join(sorted(set(runs['protocol'])))}.{cited}"


def _notes(runs: pd.DataFrame, baseline: str, spread: str, level: float, cell_notes: list[str]) -> list[str]:
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
    if runs["rank_sum_trained"].notna().any():
        notes.append(AT_ONCE)
    if runs["reconstructed"].any():
        notes.append(RECONSTRUCTED)
    if runs["majority"].notna().any():
        notes.append("Constant answer: the commonest class (or mean) of the reported split.")
    if runs["forgetting"].notna().any():
        notes.append("Forgetting: rise of the loss on general text in training, in nats a token (mean over seeds).")
    if runs["zero_shot"].notna().any():
        notes.append("Zero-shot: the model before its first step, with the same prompt and reading.")
    return notes + list(dict.fromkeys(cell_notes))


def _shown(frame: pd.DataFrame, baseline: str, spread: str) -> tuple[list[str], list[list[str]]]:
    """Columns and rows as text, without key columns of one value and without empty columns."""
    records = [{k: v for k, v in r.items() if pd.notna(v)} for r in frame.to_dict("records")]
    arms = [r for r in records if r["method"] not in REFERENCES]
    keys = [k for k in CELL if len({r[k] for r in arms}) > 1]
    metrics = {r["metric"] for r in arms}
    score = METRIC_TITLES.get(min(metrics), min(metrics)) if len(metrics) == 1 else "Score"
    keys += ["metric"] if len(metrics) > 1 else []
    texts: dict[str, list[str]] = {
        "n": [f"{r['n']:.0f}" if "n" in r else "" for r in records],
        score: [_score(r, spread) for r in records],
        f"Δ to {NAMES.get(baseline, baseline)}": [_diff(r) for r in records],
        "Forgetting": [f"{r['forgetting']:+.3f}" if "forgetting" in r else "" for r in records],
        "Rank sum": [start_to_end(r, "rank_sum") for r in records],
        "Parameters": [start_to_end(r, "params") + ("‡" if r.get("params_mismatch") else "") for r in records],
        "Moved %": [
            f"{100 * r['gross_share']:.1f} / {100 * r['net_share']:.1f}" if r.get("gross_share") else ""
            for r in records
        ],
        "Step ms": [f"{1000 * r['step_seconds_median']:.0f}" if "step_seconds_median" in r else "" for r in records],
        "Flags": [_flags(r) for r in records],
    }
    texts = {title: cells for title, cells in texts.items() if title in ("n", score) or any(cells)}
    columns = [*(key.capitalize() for key in keys), "Method", *texts]
    rows = [
        [*(str(r.get(key, "")) for key in keys), r["shown"], *cells]
        for r, *cells in zip(records, *texts.values(), strict=True)
    ]
    return columns, rows


def _score(record: dict[str, Any], spread: str) -> str:
    if spread == "interval" and "score_low" in record:
        return f"{record['score_mean']:.2f} [{record['score_low']:.2f}, {record['score_high']:.2f}]"
    return mean_sd(record["score_mean"], record.get("score_sd", math.nan) if spread == "sd" else math.nan)


def _diff(record: dict[str, Any]) -> str:
    if "diff_low" in record:
        text = signed(record["diff_mean"]) + signed_range(record["diff_low"], record["diff_high"])
    elif "diffs" in record:
        text = ", ".join(signed(float(gap)) for gap in record["diffs"].split())
    else:
        return ""
    return text + (f" (n={record['diff_n']:.0f})" if record["diff_n"] != record["n"] else "")


def _flags(record: dict[str, Any]) -> str:
    words = [flag for flag in record.get("flags", "").split(", ") if flag not in ("", "collapsed")]
    if record.get("collapsed"):
        words.insert(0, f"collapsed {record['collapsed']:.0f}/{record['n']:.0f}")
    return ", ".join(words)
