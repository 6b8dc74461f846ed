"""A made-up study with known effects: `python -m experiments.standins.study FOLDER` writes its run store.

Scores, ranks and contributions are drawn from a seeded generator, no model is trained, and the source of every run
says so. The tests and the notebooks read it.
"""

from __future__ import annotations

import argparse
import json
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
        for kind in ("fixed", "random", "scored"):
            for d1 in (False, True):
                for d2 in (False, True):
                    score = level + _effect(kind, d1, d2) + rng.normal(scale=0.15)
                    rounds = patterns.get(kind, [])
                    folder = _write(root, _settings(kind, d1, d2), seed, score, rounds)
                    if not (d1 or d2):
                        _contributions(folder, rng)
                        ids[kind] = json.loads((folder / "result.json").read_text())["id"]
        final = patterns["scored"][-1]["ranks"]
        source = {"ranks_from": ids["scored"]}
        _write(root, _svd(**source), seed, level + 0.9 + rng.normal(scale=0.15), [], final, "SVD-LoRA transplant")
        mixed = dict(zip(final, rng.permutation(list(final.values())).tolist(), strict=True))
        shuffled = _svd(**source, shuffle=True)
        _write(root, shuffled, seed, level + rng.normal(scale=0.15), [], mixed, "SVD-LoRA transplant shuffled")
        _write(root, {"name": "lora"}, seed, level + rng.normal(scale=0.15), [])
    return root


def _effect(kind: str, d1: bool, d2: bool) -> float:
    names = [kind, "D1" if d1 else "", "D2" if d2 else "", f"{kind} x D1" if d1 else ""]
    return sum(EFFECTS.get(name, 0.0) for name in names)


def _settings(kind: str, d1: bool, d2: bool) -> dict[str, Any]:
    if kind == "fixed":
        return _svd(D1=d1, D2=d2)
    chosen = {"importance": "random"} if kind == "random" else {"importance": "sensitivity_uncertainty"}
    return {"name": "elalora", "variant": "paper", "expansion": "pool", "D4": None, **chosen, "D1": d1, "D2": d2}


def _svd(**knobs: Any) -> dict[str, Any]:
    return {"name": "svd_lora", "D1": False, "D2": False, "D4": "off", "ranks_from": None, "shuffle": False} | knobs


def _course(kind: str, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Rounds that move two directions each, by the liking of a type and layer or at random."""
    names = list(modules())
    liking = np.array([LIKED.get(modules()[n][1], 0.0) + 0.4 * modules()[n][0] for n in names])
    if kind == "random":
        liking = np.zeros(len(names))
    ranks = dict.fromkeys(names, 4)
    rounds = []
    for step in STEPS:
        noisy = liking + rng.normal(scale=0.6, size=len(names))
        order = [names[i] for i in np.argsort(noisy)]
        before, pruned, grown = dict(ranks), [], []
        for loser, winner in zip([n for n in order if ranks[n] > 1][:3], order[::-1][:3], strict=True):
            pruned.append([loser, ranks[loser] - 1])
            grown.append(winner)
        scores = {n: np.sort(rng.lognormal(-9 + 0.4 * noisy[i], 1.0, before[n])).tolist() for i, n in enumerate(names)}
        for (loser, _), winner in zip(pruned, grown, strict=True):
            ranks[loser] -= 1
            ranks[winner] += 1
        rounds.append(
            {"step": step, "ranks": dict(ranks), "pruned": pruned, "grown": grown, "scores": scores, "notes": {}}
        )
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
    changes: dict[str, Any] = {
        "identity__method": method,
        "ranks__final": final,
        "data__source": SOURCE,
        "data__citation": SOURCE,
    }
    changes["counts__final__params"] = sum(rank * sum(TYPES[modules()[name][1]]) for name, rank in final.items())
    if ranks:
        changes["ranks__initial"] = ranks
    if label:
        changes["label"] = label
    return write_run(root, result(method["name"], seed, round(score, 4), **changes), rounds)


def _contributions(folder: Path, rng: np.random.Generator) -> None:
    """Contributions that follow the same liking as the scored ranks."""
    whole = json.loads((folder / "result.json").read_text())
    rises = {
        name: round(float(np.exp(0.5 * LIKED.get(kind, 0.0) + 0.2 * layer - 6 + rng.normal(scale=0.3))), 8)
        for name, (layer, kind) in modules().items()
    }
    found = {"schema": 1, "id": whole["id"], "asked": 500, "split": "validation", "items": 500, "loss": 0.5}
    (folder / "contributions.json").write_text(json.dumps(found | {"rises": rises}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Writes the run store of a made-up study; no model is trained.")
    parser.add_argument("folder", type=Path, help="where the store goes")
    print(build(parser.parse_args().folder))
