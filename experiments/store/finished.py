"""Checks of a finished run: what result.json says of itself, of its numbers and of the files beside it.

A store may have been copied, edited or damaged since. Every reader checks what costs no reading: types, ranges,
counts, the id and the sizes of files. `python -m experiments verify` reads the files as well.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from experiments.runtime.files import FileSum, running_sum
from experiments.store.name import RunName, short_id

LINES = ("metrics.jsonl", "timing.jsonl", "ranks.jsonl")
FILES = ("config.yaml", "manifest.json", *LINES, "predictions.parquet")
ADAPTER = "adapter"
DID_NOT_LEARN = "did not learn"  # a flag of results
NEGATIVE_METRICS = ("mcc", "pearson", "spearman")  # from -100 to 100 points, the others from 0
MOST = 1e15  # of any count, in any unit
ABSENT = object()
ZERO_SHOT, FORGETTING = "zero_shot", "forgetting"  # splits' names in metrics.jsonl: before training; general text
BEFORE = "before training"  # split's name in metrics.jsonl
UNBOUNDED_METRICS = ("token_loss", "perplexity")  # in nats, and from 1; not in points
SLACK = 1e-6  # points by which rounding may lead out of a metric's range
NAMED = {
    "method": "method.name", "variant": "method.variant", "task": "task.name", "model": "model.name",
    "budget": "budget", "protocol": "protocol.name", "seed": "seed",
}  # fmt: skip  # values of a result that its identity has too
KINDS: dict[str, Any] = {
    "id": str, "metric": str, "commit": str | None, "identity": dict, "identity.method.name": str,
    "identity.model.name": str | None, "identity.budget": str | None, "readings.last.report.split": str,
    "readings.last.report.metrics": dict, "ranks.initial": dict, "ranks.final": dict, "ranks.shapes": dict,
    "counts": dict, "moves": dict, "cost": dict, "data": dict, "files": dict | None,
}  # fmt: skip  # what other runs and commands read


def increment_split(number: int) -> str:
    """The split's name in metrics.jsonl of the reported items of an increment, counted from 0."""
    return f"increment {number + 1}"


def id_of(identity: dict[str, Any]) -> str:
    """A run's id: the SHA-256 of its identity, 64 hex digits."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def covered(folder: Path) -> list[str]:
    """Names of a run's files that its result's checksums cover: all but status, contributions and checkpoints."""
    adapter = (folder / ADAPTER).rglob("*")
    inside = sorted(path.relative_to(folder).as_posix() for path in adapter if path.is_file())
    return [name for name in FILES if (folder / name).is_file()] + inside


def check_result(folder: Path, result: dict[str, Any]) -> None:
    """Checks what can be checked without reading a file.

    Args:
        folder: of the run; result: its result.json.

    Raises:
        ValueError: a value is missing, of a wrong type or impossible, the id is not the identity's, or a file is
            missing or has another size than when the run was done.
    """
    _check_types(result)
    if result["id"] != id_of(result["identity"]):
        raise ValueError("its id is not the hash of its identity: the file was edited")
    _check_names(result)
    named = RunName.parse(folder)
    if named is not None and named.id != short_id(result["id"]):
        raise ValueError(f"its folder's name ends in {named.id}, its id begins with {short_id(result['id'])}")
    _check_counts(result)
    for reading in result["readings"].values():
        for part in ("report", "select"):
            _check_scores(((reading or {}).get(part) or {"metrics": {}})["metrics"])
        for scores in ((reading or {}).get("by_rank") or {}).values():
            _check_scores(scores)
    _check_scores(result["data"].get("majority") or {})
    for name, size in _sizes(folder, result).items():
        if not (folder / name).is_file():
            raise ValueError(f"{name} is missing")
        if (found := (folder / name).stat().st_size) != size:
            raise ValueError(f"{name} has {found} bytes, {size} when the run was done")


def changed_files(folder: Path, result: dict[str, Any]) -> list[str]:
    """Names of the files whose content is not what it was when the run was done; reads them all."""
    return [
        name
        for name, size in _sizes(folder, result).items()
        if running_sum(folder / name).value() != FileSum(size, result["files"][name]["sha256"])
    ]


def _sizes(folder: Path, result: dict[str, Any]) -> dict[str, int]:
    """Sizes of the files that must be there; adapter/ may have been deleted as a whole to save space."""
    sizes = {name: entry["size"] for name, entry in (result.get("files") or {}).items()}
    if any(not isinstance(size, int) or name not in FILES and not name.startswith(f"{ADAPTER}/") or ".." in name
           for name, size in sizes.items()):  # fmt: skip
        raise ValueError("files names what does not belong to a run")
    return {n: size for n, size in sizes.items() if n in FILES or (folder / ADAPTER).is_dir()}


def _check_types(result: dict[str, Any]) -> None:
    for name, kind in KINDS.items():
        if not isinstance(_at(result, name, None), kind):
            raise ValueError(f"{name} is missing or of a wrong type")
    if result["metric"] not in result["readings"]["last"]["report"]["metrics"]:
        raise ValueError(f"the score {result['metric']} is missing")


def _check_names(result: dict[str, Any]) -> None:
    """What tables call a run must be what its identity says it computed."""
    for name, place in NAMED.items():
        stored, value = result.get(name), _at(result["identity"], place)
        own_class = name == "method" and ":" in str(value)  # package.module:Class
        if value is not ABSENT and value != stored and not own_class:
            raise ValueError(f"its {name} is {stored}, its identity has {value}")


def _at(tree: Any, place: str, absent: Any = ABSENT) -> Any:
    """The value at a dotted place of a nested object."""
    for key in place.split("."):
        if tree is None or tree is absent:
            return absent
        tree = tree.get(key, absent) if isinstance(tree, dict) else ...
    return tree


def _check_scores(metrics: dict[str, Any]) -> None:
    for metric, value in metrics.items():
        low = -100 if metric in NEGATIVE_METRICS else 0
        high = MOST if metric in UNBOUNDED_METRICS else 100
        if type(value) not in (int, float) or not low - SLACK <= value <= high + SLACK:
            raise ValueError(f"{metric} is {value}; its range is {low} to {high:g}")


def _check_counts(result: dict[str, Any]) -> None:
    ranks, counts = result["ranks"], result["counts"]
    for when in ("initial", "final"):
        for name, rank in ranks[when].items():
            most = min(ranks["shapes"][name]) if name in ranks["shapes"] else math.inf
            if type(rank) is not int or not 0 <= rank <= most:
                raise ValueError(f"the {when} rank of {name} is {rank}")
        # a direction may train before it is one of the ranks (IncreLoRA's reserve); the counts have it
        waiting = counts[when]["rank_sum"] - sum(ranks[when].values())
        if waiting < 0 or (waiting > 0 and (when == "final" or counts[when]["rank_sum"] > counts["peak"]["rank_sum"])):
            raise ValueError(f"counts.{when}.rank_sum is {counts[when]['rank_sum']}, its ranks sum to another number")
    data = {name: value for name, value in result["data"].items() if name.endswith("_items")}
    parts = {part: result[part] for part in ("counts", "moves", "cost")} | {"data": data, "steps": result.get("steps")}
    for name, value in _numbers(parts):
        most = 1 if name == "moves.net_share" else MOST
        if value is not None and (type(value) not in (int, float) or not 0 <= value <= most):
            raise ValueError(f"{name} is {value}, not a number from 0 to {most:g}")


def _numbers(tree: dict[str, Any]) -> list[tuple[str, Any]]:
    """The leaves of a nested object, with dotted names."""
    leaves = []
    for name, value in tree.items():
        inner = _numbers(value) if isinstance(value, dict) else None
        leaves += [(name, value)] if inner is None else [(f"{name}.{key}", leaf) for key, leaf in inner]
    return leaves
