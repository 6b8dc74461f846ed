"""The picture of all methods has every method, and is the one that their capabilities make."""

from __future__ import annotations

from analysis.docs_pages import family
from baselines.registry import METHODS
from experiments.runtime.places import CHECKOUT


def test_every_method_has_its_place():
    placed = [name for methods in family.FAMILY.values() for name in methods]
    assert len(placed) == len(set(placed)) and set(placed) == set(METHODS) - set(family.NO_RANKS) == set(family.NAMES)


def test_the_picture_is_the_one_that_the_capabilities_make():
    drawn = (CHECKOUT / family.PICTURE).read_text(encoding="utf-8")
    assert drawn == family.draw(), "run: python -m analysis.docs_pages.family"
