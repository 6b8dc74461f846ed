"""Writes run folders as literal JSON, without training: for tests of what reads a run store."""

from __future__ import annotations

import json
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from experiments.store.finished import NAMED, id_of
from experiments.store.folder import SCHEMA

TYPES = {
    "attention.self.query": (384, 384),
    "attention.self.value": (384, 384),
    "intermediate.dense": (1536, 384),
    "output.dense": (384, 1536),
}
VADER = "Hutto and Gilbert, VADER, ICWSM 2014"


def modules(layers: int = 3) -> dict[str, tuple[int, str]]:
    """Names of a small encoder's matrices and where they stand."""
    return {f"bert.encoder.layer.{i}.{kind}": (i, kind) for i in range(layers) for kind in TYPES}


def result(method: str, seed: int, score: float, **changes: Any) -> dict[str, Any]:
    """The content of a result.json; dotted keys in `changes` replace single values ("counts__final__params")."""
    names = modules()
    ranks = {name: 4 for name in names}
    params = sum(4 * sum(TYPES[kind]) for _, kind in names.values())
    count = {"rank_sum": 4 * len(names), "params": params}
    identity = {
        "method": {"name": method, "alpha": 16.0},
        "task": {"name": "vader_movies", "metrics": ["accuracy"]},
        "trainer": {"lr": 0.001, "max_steps": 100},
        "data": {"train_items": 1600},
        "numerics": {"trainer": 1, "method": 1},
        "budget": "r4",
        "seed": seed,
    }
    report = {"split": "test", "metrics": {"accuracy": score, "f1": score - 1}}
    whole: dict[str, Any] = {
        "schema": SCHEMA, "commit": "0123456789abcdef", "method": method,
        "variant": "paper" if method == "elalora" else None, "label": method, "reconstructed": method == "prilora",
        "task": "vader_movies", "model": "minilm", "budget": "r4", "protocol": "clean", "recipe": None, "seed": seed,
        "metric": "accuracy", "steps": 100,
        "readings": {"last": {"step": 100, "report": report, "select": None}, "best": None},
        "ranks": {
            "initial": ranks, "final": ranks,
            "places": {name: list(place) for name, place in names.items()},
            "shapes": {name: list(TYPES[kind]) for name, (_, kind) in names.items()},
        },
        "counts": {"initial": count, "peak": count, "final": count, "head_params": 148610, "other_params": 0},
        "moves": {
            "rounds_due": 0, "rounds": 0, "pruned": 0, "grown": 0,
            "gross_share": 0.0, "net_share": 0.0, "blocked": 0, "replaced_in_place": 0,
        },
        "cost": {
            "step_seconds_median": 0.5, "train_seconds": 50.0, "eval_seconds": 5.0,
            "peak_memory_mib": None, "adapter_bytes": 1_000_000, "optimizer_bytes": 2_000_000, "train_tokens": 50_000,
            "step_flops": 1_000_000_000,
        },
        "data": {
            "fingerprint": "babc0ad7ab152ede", "source": "vaderSentiment 3.3.2", "verified": True, "citation": VADER,
            "train_items": 1600, "available_items": 1600, "report_items": 1059, "truncated": 1, "truncated_targets": 0,
            "majority": {"accuracy": 50.6, "f1": 67.2}, "guessing_loss": 0.693,
        },
        "flags": [],
        "files": None,
        "identity": identity,
    }  # fmt: skip
    whole = json.loads(json.dumps(whole))  # no part is shared, so that a change replaces one value only
    for key, value in changes.items():
        *path, last = key.split("__")
        reduce(getitem, path, whole)[last] = value
    for when in ("initial", "final"):
        if (total := whole["counts"][when]["rank_sum"]) != sum(whole["ranks"][when].values()):
            each, more = divmod(total, len(names))
            whole["ranks"][when] = {name: each + (i < more) for i, name in enumerate(names)}
    _name(whole, changes)
    whole["id"] = id_of(whole["identity"])
    return whole


def _name(whole: dict[str, Any], changes: dict[str, Any]) -> None:
    """Lets a result and its identity say the same of method, task, seed and so on, as `changes` sets one of them."""
    whole["identity"] = json.loads(json.dumps(whole["identity"]))
    for name, place in NAMED.items():
        *path, last = place.split(".")
        tree = reduce(lambda inner, key: inner.get(key, {}), path, whole["identity"])
        if last in tree and name in changes:
            tree[last] = whole[name]
        elif last in tree:
            whole[name] = tree[last]


def status(state: str, **more: Any) -> dict[str, Any]:
    """The content of a status.json."""
    return {"state": state, "attempts": 1, "heartbeat": 1.8e9, "pid": 4711} | more


def failed(failure: str, error: str) -> dict[str, Any]:
    """The content of a failed run's status.json; `failure` is nan, budget, never_acted, crash or refused."""
    return status("failed", failure=failure, error=error, traceback=f"Traceback: {error}")


def write_run(root: Path, whole: dict[str, Any], rounds: list[dict[str, Any]] | None = None, **manifest: Any) -> Path:
    """Writes one run folder; `manifest` replaces parts of manifest.json. Returns the folder."""
    name = f"{whole['method']}-{whole['budget']}-s{whole['seed']}-{whole['id'][:10]}"
    folder = root / whole["task"] / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "status.json").write_text(json.dumps(status("done")))
    facts = {
        "versions": {"torch": "2.13.0", "python": "3.11.7"},
        "commit": "0123456789abcdef",
        "dirty": False,
        "changes": None,
        "host": {"machine": "x86_64", "cpu": "a processor", "gpu": None, "threads": 2, "processes": 1},
        "deterministic_algorithms": False,
        "from_step": 0,
        "earlier": [],
    }
    (folder / "manifest.json").write_text(json.dumps(facts | manifest))
    lines = [{"step": -1, "ranks": whole["ranks"]["initial"], "pruned": [], "grown": []}, *(rounds or [])]
    (folder / "ranks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "result.json").write_text(json.dumps(whole))
    return folder


def moved_run(root: Path, seed: int, score: float, **changes: Any) -> Path:
    """An ElaLoRA run in which two rounds move one rank each from ffn in of layer 0 to other matrices."""
    names = list(modules())
    loser = "bert.encoder.layer.0.intermediate.dense"
    ranks = {name: 4 for name in names}
    rounds = []
    for number, step in enumerate((20, 40)):
        winner = names[(5 + 3 * number + seed) % len(names)]
        if winner == loser:
            winner = names[0]
        ranks = ranks | {loser: ranks[loser] - 1, winner: ranks[winner] + 1}
        rounds.append({"step": step, "ranks": ranks, "pruned": [[loser, 3 - number]], "grown": [winner]})
    params = sum(rank * sum(TYPES[modules()[name][1]]) for name, rank in ranks.items())
    moves = {"moves__gross_share": 2 / 48, "moves__net_share": 2 / 48, "moves__rounds": 2}
    counts = {"ranks__final": ranks, "counts__final__params": params}
    return write_run(root, result("elalora", seed, score, **counts | moves | changes), rounds)


def three_seeds(root: Path) -> Path:
    """LoRA 80, 82, 84 and ElaLoRA 81, 84, 84 on seeds 0, 1, 2."""
    for seed, (lora, ela) in enumerate(((80.0, 81.0), (82.0, 84.0), (84.0, 84.0))):
        write_run(root, result("lora", seed, lora))
        moved_run(root, seed, ela)
    return root
