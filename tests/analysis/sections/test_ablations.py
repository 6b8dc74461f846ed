"""Ablations: every arm of a method has a row, whether or not the method was run as configured."""

from __future__ import annotations

import pandas as pd

from analysis.sections.ablations import ablations


def test_all_twelve_arms_of_an_attribution_have_a_row(runs: pd.DataFrame):
    """The made-up study sets D1 and D2 to false in every arm, so no arm of ElaLoRA is as configured."""
    factorial = runs[runs["label"].isin(["elalora", "svd_lora"])]
    table = ablations(factorial)
    assert table is not None and len(table.rows) == factorial["arm"].nunique() == 12
    assert "ElaLoRA on vader_movies has no run as configured, so its rows have no difference." in table.notes
