"""The transplant study reads layout and dynamics apart."""

from __future__ import annotations

import pandas as pd
import pytest

from analysis.sections.transplant import arm_of, transplant


def test_the_transplant_reads_layout_and_dynamics_apart(runs: pd.DataFrame):
    steps = {step.name: step for step in transplant(runs)}
    wide = runs.assign(arm_name=[arm_of(s) for s in runs["settings"]])
    means = wide.groupby("arm_name")["score"].mean()
    assert steps["layout"].mean == pytest.approx(means["transplant"] - means["svd_lora"])
    assert steps["dynamics"].mean == pytest.approx(means["elalora"] - means["transplant"])
    assert steps["whole"].mean == pytest.approx(steps["layout"].mean + steps["dynamics"].mean)
    assert abs(steps["layout"].mean - 0.9) < 0.2  # as put in
    assert all(step.p == 2.0**-8 and step.corrected == 4 * 2.0**-8 for step in steps.values())


def test_two_arms_under_one_name_are_no_transplant_control(runs: pd.DataFrame):
    twice = pd.concat([runs, runs[[arm_of(s) == "svd_lora" for s in runs["settings"]]]])
    assert transplant(twice) == []
