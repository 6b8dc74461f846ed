"""A made-up study with known effects: `python -m experiments.standins.study FOLDER` writes its run store.

Scores, ranks and contributions are drawn from a seeded generator, no model is trained, and the source of every run
says so. The tests and the notebooks read it.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from experiments.standins.stored_runs import TYPES, modules, result, write_run

SEEDS = range(9)  # 11 effects with Holm's correction reach a level of 0.05 from 9 seeds on
SOURCE = "made-up numbers for tests, no model was trained"
BASE = 80.0
EFFECTS = {"random": 0.0, "scored": 1.5, "D1": -1.0, "D2": 0.5, "scored x D1": 1.2}  # in points, put in
STEPS = (20, 40, 60)
LIKED = {"intermediate.dense": 2.0, "output.dense": -1.5}  # which types the scored arm favours


def build(root: Path) -> Path:
    """Writes the factorial, the transplants and LoRA for every seed; returns the root."""
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        level = BASE + rng.normal(scale=1.5)  # of this seed, common to all arms
        ids: dict[str, str] = {}
        patterns = {kind: _course(kind, rng) for kind in ("random", "scored")}
        for kind, d1, d2 in product(("fixed", "random", "scored"), (False, True), (False, True)):
            factors = {kind: True, "D1": d1, "D2": d2, f"{kind} x D1": d1}
            effect = sum(EFFECTS.get(name, 0.0) for name, present in factors.items() if present)
            score = level + effect + rng.normal(scale=0.15)
            folder = _write(root, _settings(kind, D1=d1, D2=d2), seed, score, patterns.get(kind, []))
            if not (d1 or d2):
                ids[kind] = _contributions(folder, rng)
        final = patterns["scored"][-1]["ranks"]
        copied = _settings("fixed", ranks_from=ids["scored"])
        _write(root, copied, seed, level + 0.9 + rng.normal(scale=0.15), [], final, "SVD-LoRA transplant")
        mixed = dict(zip(final, rng.permutation(list(final.values())).tolist(), strict=True))
        shuffled = copied | {"shuffle": True}
        _write(root, shuffled, seed, level + rng.normal(scale=0.15), [], mixed, "SVD-LoRA transplant shuffled")
        _write(root, {"name": "lora"}, seed, level + rng.normal(scale=0.15), [])
    return root


def _settings(kind: str, **knobs: Any) -> dict[str, Any]:
    """The method's settings of an arm of fixed, random or scored ranks."""
    if kind == "fixed":
        base: dict[str, Any] = {"name": "svd_lora", "D4": "off", "ranks_from": None, "shuffle": False}
    else:
        importance = "random" if kind == "random" else "sensitivity_uncertainty"
        base = {"name": "elalora", "variant": "paper", "expansion": "pool", "D4": None, "importance": importance}
    return base | {"D1": False, "D2": False} | knobs


def _course(kind: str, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Rounds that move two directions each, by the liking of a type and layer or at random."""
    names = list(modules())
    liking = np.array([LIKED.get(matrix, 0.0) + 0.4 * layer for layer, matrix in modules().values()])
    if kind == "random":
        liking = np.zeros(len(names))
    ranks = dict.fromkeys(names, 4)
    rounds = []
    for step in STEPS:
        noisy = liking + rng.normal(scale=0.6, size=len(names))
        order = [names[i] for i in np.argsort(noisy)]
        losers, grown = [n for n in order if ranks[n] > 1][:3], order[::-1][:3]
        pruned = [[loser, ranks[loser] - 1] for loser in losers]
        scores = {n: np.sort(rng.lognormal(-9 + 0.4 * noisy[i], 1.0, ranks[n])).tolist() for i, n in enumerate(names)}
        ranks = {n: ranks[n] - (n in losers) + (n in grown) for n in names}
        rounds.append({"step": step, "ranks": ranks, "pruned": pruned, "grown": grown, "scores": scores, "notes": {}})
    return rounds


def _write(
    root: Path,
    method: dict[str, Any],
    seed: int,
    score: float,
    rounds: list[dict[str, Any]],
    ranks: dict[str, int] | None = None,
    label: str | None = None,
) -> Path:
    final = ranks or (rounds[-1]["ranks"] if rounds else dict.fromkeys(modules(), 4))
    params = sum(rank * sum(TYPES[modules()[name][1]]) for name, rank in final.items())
    changes: dict[str, Any] = {"identity__method": method, "data__source": SOURCE, "data__citation": SOURCE}
    changes["recipe"] = "matched"
    changes |= {"ranks__final": final, "counts__final__params": params}
    changes |= {"ranks__initial": ranks} if ranks else {}
    changes |= {"label": label} if label else {}
    return write_run(root, result(method["name"], seed, round(score, 4), **changes), rounds)


def _contributions(folder: Path, rng: np.random.Generator) -> str:
    """Writes contributions that follow the same liking as the scored ranks; returns the run's id."""
    whole = json.loads((folder / "result.json").read_text())
    rises = {
        name: round(float(np.exp(0.5 * LIKED.get(kind, 0.0) + 0.2 * layer - 6 + rng.normal(scale=0.3))), 8)
        for name, (layer, kind) in modules().items()
    }
    facts = {"schema": 1, "id": whole["id"], "asked": 500, "split": "validation", "items": 500, "loss": 0.5}
    (folder / "contributions.json").write_text(json.dumps(facts | {"rises": rises}))
    return whole["id"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Writes the run store of a made-up study; no model is trained.")
    parser.add_argument("folder", type=Path, help="where the store goes")
    print(build(parser.parse_args().folder))
