"""Numbers do not change behind the identity of a run."""

from __future__ import annotations

import json

import pytest

from experiments.runtime.places import CHECKOUT
from experiments.tools.golden_trajectories import METHODS, make

FOLDER = CHECKOUT / "tests" / "golden"
AGAIN = "raise the numerics revision and run: python -m experiments.tools.golden_trajectories"


@pytest.mark.parametrize("name", [*METHODS, "trainer"])
def test_numbers_change_only_with_the_numerics_revision(name):
    stored, now = json.loads((FOLDER / f"{name}.json").read_text()), make(name)
    assert now["numerics"] == stored["numerics"], f"the revision was raised, the trajectory was not made again: {AGAIN}"
    assert now["losses"] == pytest.approx(stored["losses"], rel=1e-8), f"numbers changed: {AGAIN}"
    assert now["ranks"] == stored["ranks"], f"rank decisions changed: {AGAIN}"


def test_every_stored_trajectory_is_compared():
    assert {p.stem for p in FOLDER.glob("*.json")} == {*METHODS, "trainer"}


def test_adaptive_trajectories_move_ranks():
    for name in ("elalora", "elalora-official", "adalora", "trainer"):
        ranks = json.loads((FOLDER / f"{name}.json").read_text())["ranks"]
        assert any(before != after for before, after in zip(ranks, ranks[1:], strict=False)), name
