"""How often the report claims something false: `python -m analysis.error_rates`.

Null studies are drawn: arms whose true mean is that of the baseline. Each is judged as a report judges it, and a study
counts once however many of its comparisons err. `--disk` writes every study as a run store and reads it back, so that
the whole way from run folders to sentences is covered.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.random import Generator

from analysis.reading.runs import load_runs
from analysis.reading.study import Study
from analysis.sections.confirmatory import confirm
from analysis.stats.seeds import Array
from analysis.stats.verdicts import Evidence, judge
from experiments.config.study import Correction, FamilyConfig
from experiments.runtime.pipes import as_command
from experiments.standins.stored_runs import result, write_run

LEVEL, CONSTANT = 80.0, 50.6  # score of a run that goes well, and of the constant answer
SPREAD = 0.8  # standard deviation of a run's score, shared by no arms
ARMS = ("svd_lora", "elalora", "adalora", "prilora")  # compared with lora


@dataclass(frozen=True)
class World:
    """What the runs of a study are drawn from.

    Attributes:
        seeds, tasks, arms: sizes of the study; arms beside the baseline.
        rate: share of an arm's runs that blow up; the baseline's never do.
        drop: points that such a run loses. The other runs are raised, so that the mean stays the baseline's.
        shift: true difference of the arms' means to the baseline; 0 is a null study.
        correction: of the family.
        margin: of equivalence; None tests none.
    """

    seeds: int = 10
    tasks: int = 2
    arms: int = 4
    rate: float = 0.0
    drop: float = 0.0
    shift: float = 0.0
    correction: str = "holm"
    margin: float | None = None


def scores(world: World, rng: Generator) -> Array:
    """(1 + arms, seeds, tasks), the baseline first; a seed moves all arms together by as much as a run alone."""
    shape = (1 + world.arms, world.seeds, world.tasks)
    drawn = LEVEL + rng.normal(0, SPREAD, shape) + rng.normal(0, SPREAD, shape[1:])
    blown = rng.random((world.arms, *shape[1:])) < world.rate
    drawn[1:] += world.shift + world.rate * world.drop - world.drop * blown
    return drawn


def in_memory(world: World, rng: Generator) -> Counter[str]:
    """What one study claims, from its scores alone."""
    x = scores(world, rng)
    family = [Evidence(arm - x[0], None, np.stack([arm.mean(axis=0), x[0].mean(axis=0)]) - CONSTANT) for arm in x[1:]]
    verdicts = judge(family, np.random.default_rng(0), 0.05, world.correction, world.margin)
    found = {
        "corrected p below the level": any(v.corrected < 0.05 for v in verdicts),
        "claims a typical run": any(v.direction for v in verdicts),
        "claims a mean": any(v.better for v in verdicts),
        "claims equivalence": any(v.equivalent for v in verdicts),
    }
    return Counter(name for name, said in found.items() if said)


def from_disk(world: World, rng: Generator, root: Path) -> Counter[str]:
    """What one study claims in its sentences, from run folders written below `root`."""
    x, cells = scores(world, rng), []
    names = ("lora", *ARMS[: world.arms])
    for (arm, seed, task), score in np.ndenumerate(x):
        name = f"task{task}"
        changes = {"task": name, "identity__task": {"name": name}, "recipe": "matched"}
        whole = result(names[arm], seed, float(score), **changes, data__majority={"accuracy": CONSTANT})
        write_run(root, whole)
        cells.append((names[arm], name, seed, whole["id"]))
    frame = pd.DataFrame(cells, columns=["arm", "task", "seed", "id"])
    frame = frame.assign(part="main", kind="confirmatory", budget="r4")
    correction = Correction(world.correction)
    family = FamilyConfig(
        "main", [f"{name} - lora" for name in names[1:]], ["r4"], 0.05, correction, world.arms, world.margin
    )
    runs = load_runs(root)
    confirmation = confirm(runs, Study("null", frame, family), runs.attrs["unfinished"])
    text = " ".join(confirmation.sentences)
    said = {
        "corrected p below the level": bool((confirmation.table.frame[f"p_{correction}"] < 0.05).any()),
        "claims a typical run": "in a typical run: " in text or "better than" in text or "worse than" in text,
        "claims a mean": "better than" in text or "worse than" in text,
        "claims equivalence": "are equivalent" in text,
    }
    return Counter(name for name, found in said.items() if found)


def rates(world: World, studies: int, seed: int = 0, disk: bool = False) -> dict[str, float]:
    """Share of studies with at least one claim of each kind."""
    rng = np.random.default_rng(seed)
    counts: Counter[str] = Counter()
    for _ in range(studies):
        if disk:
            with tempfile.TemporaryDirectory() as folder:
                counts += from_disk(world, rng, Path(folder))
        else:
            counts += in_memory(world, rng)
    kinds = ("corrected p below the level", "claims a typical run", "claims a mean", "claims equivalence")
    return {kind: counts[kind] / studies for kind in kinds}


WORLDS = {
    "no difference, Holm": World(),
    "no difference, maxT": World(correction="maxt"),
    "no difference, margin 0.5": World(margin=0.5),
    "one arm blows up in 10 % by 25, one task": World(arms=1, tasks=1, rate=0.1, drop=25.0),
    "one arm blows up in 10 % by 25, two tasks": World(arms=1, rate=0.1, drop=25.0),
    "one arm blows up in 5 % by 25, two tasks": World(arms=1, rate=0.05, drop=25.0),
    "one arm blows up in 20 % by 5, one task": World(arms=1, tasks=1, rate=0.2, drop=5.0),
    "four arms blow up in 5 % by 25": World(rate=0.05, drop=25.0),
    **{
        f"one arm truly {shift:g} points higher": World(arms=1, shift=shift) for shift in (0.5, 1.0, 2.0, 4.0, 5.0, 6.0)
    },
    "truly 1 point higher, 30 seeds": World(arms=1, seeds=30, shift=1.0),
    "truly 2 points higher, 30 seeds": World(arms=1, seeds=30, shift=2.0),
}


def main(words: Sequence[str] | None = None) -> int:
    """Prints a line for every world; returns 0."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.error_rates",
        description="Simulates studies and counts what their reports claim.",
    )
    parser.add_argument("--studies", type=int, default=1000, metavar="N", help="studies of each kind (default 1000)")
    parser.add_argument("--disk", action="store_true", help="from run folders on disk, about a second each")
    args = parser.parse_args(words)
    print(f"{'share of studies in which':44} p < 0.05   typical   mean   equivalent")
    for name, world in WORLDS.items():
        found = rates(world, args.studies, disk=args.disk)
        print(f"{name:44} " + "   ".join(f"{100 * share:6.1f} %" for share in found.values()), flush=True)
    return 0


if __name__ == "__main__":
    as_command(main)
