"""Reads run stores into one data frame, a row per finished run.

A store may come from a stranger: only JSON is read here (never pickle), every value is checked for its type, and
a damaged or foreign result becomes a line in `frame.attrs["problems"]`; it never stops the others from being
read and never passes in silence. Runs that began and have no result stand in `frame.attrs["unfinished"]`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elalora.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
FILTERS = ("method", "task", "budget", "protocol")
NO_BUDGET = "none"


def load_runs(*roots: str | Path, reading: str = "last") -> pd.DataFrame:
    """Every finished run below the given stores.

    Args:
        roots: stores, folders of one task, or folders of one run.
        reading: "last" or "best", the checkpoint whose score is taken.

    Returns:
        One row per run, ordered by task, method and seed, with `COLUMNS` of `_row`. `attrs["problems"]` and
        `attrs["unfinished"]` are lists of lines for people.

    Raises:
        UserError: a root is no folder, or `reading` is unknown.
    """
    import pandas as pd

    if reading not in ("last", "best"):
        raise UserError(f"reading={reading} is unknown; allowed: last, best")
    problems: list[str] = []
    rows: dict[str, dict[str, Any]] = {}
    for path in _results(roots):
        try:
            row = _row(path, reading)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            problems.append(f"{path}: left out, {_reason(error)}")
            continue
        known = rows.setdefault(row["id"], row)
        if known is not row and known["score"] != row["score"]:
            problems.append(
                f"{path}: left out, the same run in {known['folder']} scored {known['score']:.4f}, "
                f"here {row['score']:.4f}"
            )
    frame = pd.DataFrame(list(rows.values()))
    if len(frame):
        frame = frame.sort_values(["task", "method", "variant", "budget", "seed", "id"], ignore_index=True)
    frame.attrs["problems"] = problems
    frame.attrs["unfinished"] = _unfinished(roots)
    return frame


def select(runs: pd.DataFrame, filters: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """The rows whose method, task, budget and protocol are among the wanted ones; no entry means all.

    Raises:
        UserError: a key is no filter, or a wanted value occurs in no run.
    """
    for key, wanted in filters.items():
        if key not in FILTERS:
            raise UserError(f"filter {key} is unknown; allowed: {', '.join(FILTERS)}")
        if not wanted or not len(runs):
            continue
        stored = sorted(set(runs[key]))
        for value in wanted:
            if value not in stored:
                raise UserError(f"--{key} {value} is in no finished run; stored: {', '.join(stored)}")
    for key, wanted in filters.items():
        if wanted and len(runs):
            runs = runs[runs[key].isin(list(wanted))]
    return runs.reset_index(drop=True)


def load_rounds(run_dir: str | Path) -> list[dict[str, Any]]:
    """The rounds of one run, from ranks.jsonl; the first has step -1 and holds the ranks at the start.

    Returns:
        Dicts with step, ranks, pruned, grown, scores and notes; empty for a method without ranks. A last line
        that was only half written is dropped.

    Raises:
        UserError: a line in the middle is damaged.
    """
    path = Path(run_dir) / "ranks.jsonl"
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    rounds = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            ranks = {str(name): int(rank) for name, rank in entry["ranks"].items()}
            step = int(entry["step"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if number == len(lines):
                break
            raise UserError(f"{path} line {number} is damaged ({_reason(error)}); run the member again") from error
        empty: dict[str, Any] = {"pruned": [], "grown": [], "scores": {}, "notes": {}}
        rounds.append(empty | entry | {"step": step, "ranks": ranks})
    return rounds


def load_predictions(run_dir: str | Path) -> pd.DataFrame:
    """Items of the reported split: idx, label, prediction, score, ordered by idx.

    Raises:
        UserError: the file is missing or has other columns.
    """
    import pandas as pd

    path = Path(run_dir) / "predictions.parquet"
    try:
        return pd.read_parquet(path, columns=["idx", "label", "prediction", "score"]).sort_values("idx")
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({_reason(error)}); run the member again") from error


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys, the way they are typed as overrides."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differing(settings: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Dotted keys that are not the same in all of the given settings, with their distinct values as text."""
    flats = [flatten(tree) for tree in settings]
    keys = sorted({key for flat in flats for key in flat})
    found = {key: list(dict.fromkeys(_text(flat.get(key)) for flat in flats)) for key in keys}
    return {key: values for key, values in found.items() if len(values) > 1}


def digest(value: Any) -> str:
    """Twelve hex digits that stand for a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _folders(roots: Sequence[str | Path]) -> list[Path]:
    folders: dict[Path, None] = {}
    for root in map(Path, roots):
        if not root.is_dir():
            raise UserError(f"{root} is no folder of runs; `python run.py` makes one, or name another store")
        for pattern in ("", "*", "*/*"):
            found = root.glob(pattern) if pattern else [root]
            folders |= dict.fromkeys(sorted(p for p in found if p.is_dir() and not p.name.startswith(".")))
    return list(folders)


def _results(roots: Sequence[str | Path]) -> list[Path]:
    return [path for f in _folders(roots) if (path := f / "result.json").is_file()]


def _unfinished(roots: Sequence[str | Path]) -> list[str]:
    lines = []
    for folder in _folders(roots):
        if not (folder / "status.json").is_file() or (folder / "result.json").is_file():
            continue
        try:
            status = json.loads((folder / "status.json").read_text(encoding="utf-8"))
            state, error = str(status["state"]), str(status.get("error") or "")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            state, error = "unreadable status", ""
        lines.append(f"{folder}: {state}{': ' + error[:200] if error else ''}")
    return lines


def _reason(error: BaseException) -> str:
    """One line that says what is wrong, whatever the exception prints."""
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _row(path: Path, reading: str) -> dict[str, Any]:
    """One result as a flat row; any wrong type raises."""
    result = json.loads(path.read_text(encoding="utf-8"))
    if result["schema"] != SCHEMA:
        raise ValueError(f"it has schema {result['schema']}, this version reads {SCHEMA}")
    read = result["readings"][reading]
    if read is None:
        raise ValueError(f"it has no reading '{reading}'")
    metric, counts, moves, cost, data = (result[k] for k in ("metric", "counts", "moves", "cost", "data"))
    metrics = {str(k): _number(v) for k, v in read["report"]["metrics"].items()}
    identity = {k: v for k, v in dict(result["identity"]).items() if k != "seed"}
    folder = path.parent
    places = {str(k): (int(v[0]), _string(v[1])) for k, v in result["ranks"]["places"].items()}
    row: dict[str, Any] = {
        "folder": str(folder),
        "id": _string(result["id"]),
        "method": _string(result["method"]),
        "variant": _string(result["variant"] or ""),
        "label": _string(result["label"]),
        "reconstructed": bool(result["reconstructed"]),
        "task": _string(result["task"]),
        "model": _string(result["model"]),
        "budget": _string(result["budget"] or NO_BUDGET),
        "protocol": _string(result["protocol"]),
        "recipe": _string(result["recipe"] or ""),
        "seed": int(result["seed"]),
        "steps": int(result["steps"]),
        "metric": _string(metric),
        "score": metrics[metric],
        "metrics": metrics,
        "split": _string(read["report"]["split"]),
        "majority": _optional(data["majority"].get(metric)),
        "head_params": int(counts["head_params"]),
        "other_params": int(counts["other_params"]),
        "gross_share": _number(moves["gross_share"]),
        "net_share": _number(moves["net_share"]),
        "rounds": int(moves["rounds"]),
        "blocked": int(moves["blocked"]),
        "step_seconds": _optional(cost["step_seconds_median"]),
        "train_seconds": _optional(cost["train_seconds"]),
        "peak_memory_mib": _optional(cost["peak_memory_mib"]),
        "adapter_bytes": _optional(cost["adapter_bytes"]),
        "fingerprint": _string(data["fingerprint"]),
        "citation": _string(data["citation"]),
        "source": _string(data["source"]),
        "train_items": int(data["train_items"]),
        "report_items": int(data["report_items"]),
        "flags": tuple(_string(flag) for flag in result["flags"]),
        "ranks_initial": {name: int(result["ranks"]["initial"][name]) for name in places},
        "ranks_final": {name: int(result["ranks"]["final"][name]) for name in places},
        "places": places,
        "settings": identity,
        "arm": digest(identity),
        "manifest": _manifest(folder),
    }
    for when in ("initial", "peak", "final"):
        row[f"rank_sum_{when}"] = int(counts[when]["rank_sum"])
        row[f"params_{when}"] = int(counts[when]["params"])
    if "count" in read:  # the best checkpoint has ranks of its own
        row["rank_sum_final"], row["params_final"] = int(read["count"]["rank_sum"]), int(read["count"]["params"])
        row["ranks_final"] = {name: int(read["ranks"][name]) for name in places}
    return row


def _manifest(folder: Path) -> dict[str, Any]:
    """What a comparison must be warned about: versions, commit and machine; empty when there is no manifest."""
    try:
        whole = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    host = whole.get("host") or {}
    return {
        "versions": dict(whole.get("versions") or {}),
        "commit": whole.get("commit"),
        "dirty": bool(whole.get("dirty")),
        "host": {key: host.get(key) for key in ("machine", "cpu", "gpu", "threads", "processes")},
    }


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.60} stands where a name should be")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"{value!r:.60} stands where a finite number should be")
    return float(value)


def _optional(value: Any) -> float:
    return math.nan if value is None else _number(value)
