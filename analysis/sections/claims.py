"""The sentence of a declared comparison, made from its tests.

None says "better" or "worse" unless the corrected p is below the family's level, the settings were matched, the data is
the official one, and blow-ups that the runs do not rule out could not cancel the difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from analysis.output.table import p_value, signed, signed_range
from analysis.sections.arms import PARAMETER_TOLERANCE

if TYPE_CHECKING:
    from experiments.config.study import FamilyConfig

CORRECTIONS = {"holm": "Holm's correction", "maxt": "step-down maxT"}


def sentence(record: Mapping[str, Any], family: FamilyConfig) -> str:
    """What one comparison says, with its interval and p, and with what limits it."""
    arm, base, where = record["arm_name"], record["baseline_name"], f"at {record['budget']}"
    if record["missing"]:
        return f"{arm} and {base} {where} are not tested yet: {record['missing']} runs are missing."
    if "p" not in record:
        return f"{arm} and {base} {where} cannot be tested: no seed has a result of both on every task."
    parts = [_claim(record, family, arm, base, where), _equivalence(record, family), _unseen(record), record["setting"]]
    return " ".join(filter(None, [*parts, *_limits(record, arm, base)]))


def _claim(record: Mapping[str, Any], family: FamilyConfig, arm: str, base: str, where: str) -> str:
    facts, level = _facts(record, family), f"{family.alpha:g}"
    if record["claim"]:
        up = record["mean"] > 0
        if record["better"]:
            return f"{arm} is {'better' if up else 'worse'} than {base} {where}: {facts}, below the level {level}."
        word = "higher" if up else "lower"
        return f"{arm} scored {word} than {base} {where} in a typical run: {facts}, below the level {level}."
    if record["p_corrected"] < family.alpha:
        reasons = "; ".join(filter(None, [record["no_claim"], record["withheld"]]))
        return f"{arm} and {base} differ {where}, but no claim is made because {reasons}: {facts}."
    return f"No difference between {arm} and {base} was shown {where}: {facts}, not below the level {level}."


def _facts(record: Mapping[str, Any], family: FamilyConfig) -> str:
    over = f"{record['tasks']} tasks" if record["tasks"] > 1 else "1 task"
    reach = "" if math.isnan(record["low"]) else f", 95 % t interval{signed_range(record['low'], record['high'])}"
    if "low_items" in record:
        reach += f" over seeds and{signed_range(record['low_items'], record['high_items'])} over seeds and items"
    correction = f"{CORRECTIONS[str(family.correction)]} over {family.m} comparisons"
    return (
        f"{signed(record['mean'])} points, mean over {over} of the paired difference{reach}, {record['n']} seeds, "
        f"p = {p_value(record['p'], exact=True)}, with {correction} p = {p_value(record['p_corrected'], exact=True)}"
    )


def _equivalence(record: Mapping[str, Any], family: FamilyConfig) -> str:
    if family.margin is None or "p_equivalent" not in record:
        return ""
    found = f"two one-sided sign-flip tests, corrected p = {p_value(record['p_equivalent'], exact=True)}"
    if record["equivalent"] and not record["no_claim"]:
        return f"The two are equivalent in a typical run, within {family.margin:g} points ({found})."
    return f"Equivalence within {family.margin:g} points was not shown ({found})."


def _unseen(record: Mapping[str, Any]) -> str:
    """What keeps a claim about typical runs from being one about the mean."""
    if not record["claim"] or record["better"]:
        return ""
    ahead = record["arm_name"] if record["mean"] > 0 else record["baseline_name"]
    return (
        f"Whether the mean of {ahead} is higher too stays open: its {record['n'] * record['tasks']} runs do not "
        f"rule out that up to {100 * record['rate']:.0f} % of runs fall to the constant answer, which could cost "
        f"{record['unseen']:.1f} points."
    )


def _limits(record: Mapping[str, Any], arm: str, base: str) -> list[str]:
    """Sizes, learning rates, failed, collapsed and unstable runs."""
    lines = []
    if sizes := record["sizes"]:
        larger = {name: _sizes(sizes, first) for name, first in ((arm, True), (base, False))}
        lines += [f"{name} has more adapter parameters: {text}." for name, text in larger.items() if text]
    if record["rates"]:
        lines.append(f"Learning rates differ: {record['rates']}.")
    if record["failures"]:
        lines.append(f"Failed: {record['failures']}.")
        if "mean_worst" in record:
            lines.append(
                f"With the constant answer's score for failed runs the difference is {signed(record['mean_worst'])} "
                f"points, corrected p = {p_value(record['p_worst'], exact=True)}."
            )
    if record["collapses"]:
        lines.append(f"Collapsed: {record['collapses']}.")
    if not record["failures"] and not record["collapses"]:
        lines.append("No run failed or collapsed.")
    if record["unstable"]:
        lines.append(f"Unstable runs: {record['unstable']}.")
    return lines


def _sizes(sizes: Mapping[str, tuple[float, float]], first: bool) -> str:
    """By how much an arm is larger than the other, on the tasks where it is more than the tolerance."""
    shares = {}
    for task, pair in sizes.items():
        large, small = pair if first else pair[::-1]
        if small > 0 and large / small - 1 > PARAMETER_TOLERANCE:
            shares[task] = f"{100 * (large / small - 1):.1f} %"
    if len(set(shares.values())) == 1 and len(shares) == len(sizes):
        return next(iter(shares.values()))
    return ", ".join(f"{share} on {task}" for task, share in shares.items())
