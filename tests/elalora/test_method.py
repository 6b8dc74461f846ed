"""What a method says of itself before it is attached, and how many rounds it plans."""

import pytest

from baselines.registry import method_class
from elalora.budget import Budget


def made(name, **knobs):
    cls = method_class(name)
    return cls(cls.Config(**knobs), Budget(4) if cls.capabilities.budget != "none" else None)


@pytest.mark.parametrize(
    ("name", "knobs", "label", "variant", "ranks_from"),
    [
        ("elalora", {"variant": "official"}, "ElaLoRA", "official", None),
        ("lora", {}, "LoRA", None, None),
        ("head", {}, "Head only", None, None),
        ("svd_lora", {}, "SVD-LoRA", None, None),
        ("svd_lora", {"ranks_from": "elalora"}, "SVD-LoRA transplant", None, "elalora"),
        ("svd_lora", {"ranks_from": "elalora", "shuffle": True}, "SVD-LoRA transplant shuffled", None, "elalora"),
    ],
)
def test_a_method_names_its_arm_before_it_is_attached(name, knobs, label, variant, ranks_from):
    method = made(name, **knobs)
    assert (method.label, method.variant, method.ranks_from) == (label, variant, ranks_from)


def test_only_methods_that_move_ranks_plan_rounds():
    elalora, timed = made("elalora"), made("svd_lora", D1=True)
    for method in (elalora, timed):
        method.check_length(100)
    assert elalora.rounds_due() == len(elalora.phases.rounds()) == 3
    assert timed.phases.rounds() and timed.rounds_due() == 0
    assert made("lora").rounds_due() == 0


def test_a_method_without_a_budget_is_within_it():
    made("head").check_budget()
