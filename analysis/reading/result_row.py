"""One stored result as a flat row of checked values.

A store may come from other people: only JSON is read (never pickle), any value of a wrong type raises here, and texts
are cleaned here, so that later code can rely on the types and show any text.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elalora.errors import first_line
from experiments.runtime.files import sum_of
from experiments.runtime.text import clean, clean_tree
from experiments.store.finished import check_result
from experiments.store.folder import SCHEMA, other_schema
from experiments.store.foreign import read_bytes, read_json
from experiments.verify import check_best, check_score

if TYPE_CHECKING:
    import pyarrow

NO_BUDGET = "none"
READINGS = ("last", "best")
CHECKED_SINCE = {("elalora", "paper")}  # compared with its authors' code after runs were stored as reconstructed


def row_of(folder: Path, reading: str) -> dict[str, Any]:
    """The row of one run.

    Args:
        folder: of the run.
        reading: "last" or "best", the checkpoint whose score is taken.

    Raises:
        Any of DAMAGE: the result is damaged, foreign, of another schema, or has no such reading.
    """
    result = read_json(folder / "result.json")
    if result["schema"] != SCHEMA:
        raise ValueError("it " + other_schema(result["schema"], folder.parent.parent))
    check_result(folder, result)
    items = None
    if result.get("files") or os.path.lexists(folder / "predictions.parquet"):
        items = check_score(folder, result)
        if reading == "best":
            check_best(folder, result)
    if result["readings"][reading] is None:
        raise ValueError(f"it has no reading '{reading}'")
    row = _row(clean_tree(result), clean_tree(_manifest(folder)), reading) | {"lines": losses_of(folder, result)}
    if items is not None and math.isnan(row["guessing"]):
        row["guessing"] = _entropy(items["label"], row["settings"])
    return row


def _entropy(labels: pyarrow.ChunkedArray, settings: dict[str, Any]) -> float:
    """The loss of the best constant answer to the reported items, of a result from before the training items' was kept.

    It differs from theirs by as much as the shares of the classes do; regression and summaries give none.
    """
    if settings.get("task", {}).get("kind", "classification") != "classification":
        return math.nan
    import numpy as np

    shares = [count / len(labels) for count in sorted(np.unique(labels, return_counts=True)[1].tolist(), reverse=True)]
    return float(sum(-share * math.log(share) for share in shares))


def losses_of(folder: Path, result: dict[str, Any]) -> str | None:
    """The SHA-256 of metrics.jsonl, which no two trainings share; read from the file where the result has none."""
    with suppress(FileNotFoundError):
        files = result.get("files")
        return files["metrics.jsonl"]["sha256"] if files else sum_of(read_bytes(folder / "metrics.jsonl")).sha256
    return None


def reason(error: Exception) -> str:
    """An error in one line of at most 200 characters."""
    if isinstance(error, KeyError):
        return clean(f"{error} is missing", 200)
    return clean(first_line(error), 200)


def digest(value: Any) -> str:
    """The first twelve hex digits of a JSON value's SHA-256."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _row(result: dict[str, Any], manifest: dict[str, Any], reading: str) -> dict[str, Any]:
    read = result["readings"][reading]
    metric, counts, moves, cost, data = (result[k] for k in ("metric", "counts", "moves", "cost", "data"))
    metrics = _metrics(read["report"]["metrics"])
    places = _places(result["ranks"]["places"])
    settings = _settings({k: v for k, v in dict(result["identity"]).items() if k != "seed"})
    split = _string(read["report"]["split"])
    settings["data"] = {**settings.get("data", {}), "split": split}  # scores of unlike splits are never compared
    flags = _flags(result["flags"])
    row: dict[str, Any] = {
        "id": _string(result["id"]),
        "method": _string(result["method"]),
        "variant": _string(result["variant"] or ""),
        "label": _string(result["label"]),
        "reconstructed": bool(result["reconstructed"]) and (result["method"], result["variant"]) not in CHECKED_SINCE,
        "task": task_name(result),
        "increments": _increments(result.get("increments")),
        "model": _string(result["model"]),
        "budget": _string(result["budget"] or NO_BUDGET),
        "protocol": _string(result["protocol"]),
        "recipe": "" if result["recipe"] in (None, "none") else _string(result["recipe"]),
        "seed": _whole(result["seed"]),
        "steps": _whole(result["steps"]),
        "metric": _string(metric),
        "score": metrics[metric],
        "metrics": metrics,
        "by_rank": {int(rank): _metrics(scores)[metric] for rank, scores in (read.get("by_rank") or {}).items()},
        "split": split,
        "majority": _optional((data["majority"] or {}).get(metric)),
        "zero_shot": _optional((data.get("zero_shot") or {}).get(metric)),
        "forgetting": _forgetting(data.get("forgetting")),
        "head_params": _whole(counts["head_params"]),
        "other_params": _whole(counts["other_params"]),
        "gross_share": _number(moves["gross_share"]),
        "net_share": _number(moves["net_share"]),
        "rounds": _whole(moves["rounds"]),
        "blocked": _whole(moves["blocked"]),
        "step_seconds": _optional(cost["step_seconds_median"]),
        "train_seconds": _optional(cost["train_seconds"]),
        "data_pass_seconds": _optional(cost.get("data_pass_seconds")),
        "peak_memory_mib": _optional(cost["peak_memory_mib"]),
        "eval_seconds": _optional(cost["eval_seconds"]),
        "adapter_bytes": _optional(cost["adapter_bytes"]),
        # results of before these were recorded lack them
        **{name: _optional(cost.get(name)) for name in ("optimizer_bytes", "train_tokens", "step_flops")},
        "guessing": _optional(data.get("guessing_loss")),
        "fingerprint": _string(data["fingerprint"]),
        "citation": _string(data["citation"]),
        "source": _string(data["source"]),
        "verified": bool(data.get("verified", True)),
        "train_items": _whole(data["train_items"]),
        "report_items": _whole(data["report_items"]),
        "flags": flags,
        "off_budget": "off budget" in flags,
        "collapsed": "collapsed" in flags,
        "ranks_initial": _ranks({name: result["ranks"]["initial"][name] for name in places}),
        "ranks_final": _ranks({name: result["ranks"]["final"][name] for name in places}),
        "places": places,
        "settings": settings,
        "arm": digest(settings),
        "manifest": {key: value for key, value in manifest.items() if key != "started"},
        "started": manifest.get("started", math.nan),
    }
    for when in ("initial", "peak", "final"):
        row[f"rank_sum_{when}"] = _whole(counts[when]["rank_sum"])
        row[f"params_{when}"] = _whole(counts[when]["params"])
    for count in ("rank_sum", "params"):  # of the largest piece, for methods that add up pieces
        row[f"{count}_trained"] = _optional((counts.get("trained") or {}).get(count))
    if "count" in read:  # the best checkpoint has other ranks than the last
        row["rank_sum_final"], row["params_final"] = _whole(read["count"]["rank_sum"]), _whole(read["count"]["params"])
        row["ranks_final"] = _ranks({name: read["ranks"][name] for name in places})
    return row


def task_name(result: dict[str, Any]) -> str:
    """The task as tables name it: runs of a sequence are no runs of the ordinary task."""
    name, parts = _string(result["task"]), result.get("increments")
    count = 1 if parts is None else len(parts["groups"])
    return name if count == 1 else f"{name} in {count} parts"


def _increments(value: Any) -> dict[str, Any] | None:
    """The readings of a sequence of several parts, missing ones as NaN; None for other runs."""
    if value is None or len(value["groups"]) < 2:
        return None
    count = len(value["groups"])
    matrix = [[_optional(cell) for cell in row] for row in value["matrix"]]
    if [len(row) for row in matrix] != [count] * count or len(value["seen"]) != count or len(value["ends"]) != count:
        raise ValueError(f"its increments are {count}, and their readings another number")
    return {
        "kind": _string(value["kind"]),
        "ends": [_whole(end) for end in value["ends"]],
        "matrix": matrix,
        "seen": [_number(seen) for seen in value["seen"]],
        **{name: _optional(value[name]) for name in ("anytime_accuracy", "forgetting", "forward_transfer")},
    }


def _forgetting(losses: Any) -> float:
    """How much the loss on general text rose in training, in nats a token; NaN for runs without such a text."""
    return math.nan if losses is None else _number(losses["after"]) - _number(losses["before"])


def _manifest(folder: Path) -> dict[str, Any]:
    """What may make runs incomparable: versions, commit, machine and settings; empty without a manifest."""
    try:
        whole = read_json(folder / "manifest.json")
    except FileNotFoundError:
        return {}
    host = whole.get("host") or {}
    return {
        "versions": dict(whole.get("versions") or {}),
        "commit": None if whole.get("commit") is None else _string(whole["commit"]),
        "dirty": bool(whole.get("dirty")),
        "host": {key: host.get(key) for key in ("machine", "cpu", "gpu", "threads", "processes")},
        "deterministic_algorithms": whole.get("deterministic_algorithms"),
        "started": _time(whole.get("started")),
    }


def _time(value: Any) -> float:
    """Seconds of an ISO time; NaN for a manifest without one."""
    if value is None:
        return math.nan
    try:
        return datetime.fromisoformat(_string(value)).timestamp()
    except OverflowError as error:
        raise ValueError(f"{value!r:.60} is no time") from error


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {value!r:.60}")
    return value


def _whole(value: Any) -> int:
    if type(value) is not int or abs(value) >= 2**63:
        raise TypeError(f"expected a whole number, got {value!r:.60}")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"expected a finite number, got {value!r:.60}")
    return float(value)


def _optional(value: Any) -> float:
    return math.nan if value is None else _number(value)


def _metrics(value: Any) -> dict[str, float]:
    return {str(k): _number(v) for k, v in value.items()}


def _flags(value: Any) -> tuple[str, ...]:
    return tuple(_string(flag) for flag in value)


def _ranks(value: Any) -> dict[str, int]:
    return {str(name): _whole(rank) for name, rank in value.items()}


def _places(value: Any) -> dict[str, tuple[int, str]]:
    return {str(k): (_whole(v[0]), _string(v[1])) for k, v in value.items()}


def _settings(value: Any) -> dict[str, Any]:
    for name in ("method", "task", "model", "protocol", "trainer", "data"):
        if not isinstance(value.get(name, {}), dict):
            raise TypeError(f"expected the settings of {name}, got {value[name]!r:.60}")
    return {_string(k): v for k, v in value.items()}
