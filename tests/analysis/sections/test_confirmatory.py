"""Confirmatory tables against p-values worked out by hand, and the sentences that may be made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.output.writers import to_latex, to_markdown
from analysis.reading.runs import load_runs
from analysis.reading.study import Study
from analysis.sections.claims import sentence
from analysis.sections.confirmatory import Confirmation, confirm
from analysis.sections.confounds import confounds
from analysis.sections.endings import failures
from elalora.errors import UserError
from experiments.config.study import Correction, FamilyConfig
from experiments.standins.stored_runs import result, write_run
from experiments.store.finished import id_of

FAMILY = FamilyConfig("part", ["elalora - lora", "adalora - lora"], ["r4"], m=2)
SEEDS = range(8)
WORDS = ("better", "worse", "outperform", "superior", "improve")


def study(
    root: Path, gaps: dict[str, list[list[float]]], recipe: str | None = "matched", **changes: Any
) -> pd.DataFrame:
    """Runs of LoRA at 80 and of arms that far above it, (seeds, tasks); returns the study's cells."""
    cells = []
    tasks = len(next(iter(gaps.values()))[0])
    for arm in ("lora", *gaps):
        for seed in range(len(next(iter(gaps.values())))):
            for t in range(tasks):
                score = 80.0 + (gaps[arm][seed][t] if arm in gaps else 0.0)
                whole = result(
                    arm,
                    seed,
                    score,
                    **{"task": f"task{t}", "identity__task": {"name": f"task{t}"}, "recipe": recipe} | changes,
                )
                write_run(root, whole)
                cells.append(
                    {"part": "part", "kind": "confirmatory", "arm": arm, "task": f"task{t}", "budget": "r4",
                     "seed": seed, "id": whole["id"]}
                )  # fmt: skip
    return pd.DataFrame(cells)


def read(root: Path, cells: pd.DataFrame, family: FamilyConfig | None = FAMILY) -> Confirmation:
    runs = load_runs(root)
    return confirm(runs, Study("main", cells, family), runs.attrs["unfinished"])


UP = [[1.0 + seed / 10, 0.53] for seed in SEEDS]  # every seed's mean is positive
FAR_UP = [[row[0] + 9, row[1] + 9] for row in UP]  # further than what unseen blow-ups could cost
MIXED = [[(-1.0) ** seed * (1 + seed / 10), 0.0] for seed in SEEDS]


def test_p_is_that_of_the_sign_flips_and_holm_counts_the_whole_family(tmp_path: Path) -> None:
    cells = study(tmp_path, {"elalora": UP, "adalora": MIXED})
    frame = read(tmp_path, cells).table.frame.set_index("arm")
    # all 8 seeds point one way: 2 of 2^8 patterns are as extreme; Holm multiplies the smaller p by 2
    assert frame.loc["elalora", "p"] == 2 / 256 and frame.loc["elalora", "p_holm"] == 4 / 256
    assert frame.loc["adalora", "p"] > 0.5 and frame.loc["adalora", "p_holm"] == frame.loc["adalora", "p"]
    assert frame.loc["elalora", "mean"] == pytest.approx((1.35 + 0.53) / 2)
    assert frame.loc["elalora", "mean_task0"] == pytest.approx(1.35) and frame.loc[
        "elalora", "mean_task1"
    ] == pytest.approx(0.53)
    assert frame.loc["elalora", ["wins", "ties", "losses"]].tolist() == [8, 0, 0]


def test_the_mean_over_tasks_is_tested_and_not_each_task(tmp_path: Path) -> None:
    opposite = [[2.0, -2.0] for _ in SEEDS]
    cells = study(tmp_path, {"elalora": opposite, "adalora": MIXED})
    frame = read(tmp_path, cells).table.frame.set_index("arm")
    assert frame.loc["elalora", "p"] == 1.0 and frame.loc["elalora", "mean_task0"] == 2.0


LIMITS = (
    " Setting: minilm on task0 (1,059 reported items), task1 (1,059 reported items); 1,600 training items, 100 steps. "
    "No run failed or collapsed."
)


def test_a_sentence_says_better_only_below_the_corrected_level(tmp_path: Path) -> None:
    cells = study(tmp_path, {"elalora": FAR_UP, "adalora": MIXED})
    better, none = read(tmp_path, cells).sentences
    assert better == (
        "ElaLoRA (paper) is better than LoRA at r4: +9.94 points, mean over 2 tasks of the paired difference, 95 % t "
        "interval [+9.84, +10.04], 8 seeds, p = 0.0078, with Holm's correction over 2 comparisons p = 0.016, "
        "below the level 0.05." + LIMITS
    )
    assert none.startswith("No difference between AdaLoRA and LoRA was shown at r4: ")
    assert not any(word in none for word in WORDS) and "p = 0." in none


def test_a_difference_that_unseen_blow_ups_could_cancel_is_one_of_typical_runs(tmp_path: Path) -> None:
    """A sign-flip test of ten seeds cannot see a blow-up in one run of twenty."""
    cells = study(tmp_path, {"elalora": UP, "adalora": [[-gap for gap in row] for row in UP]})
    up, down = read(tmp_path, cells).sentences
    assert up.startswith("ElaLoRA (paper) scored higher than LoRA at r4 in a typical run: +0.94 points")
    assert down.startswith("AdaLoRA scored lower than LoRA at r4 in a typical run: −0.94 points")
    assert (
        "Whether the mean of ElaLoRA (paper) is higher too stays open" in up
        and "16 runs do not rule out that up to 17 % of runs" in up
    )
    assert "Whether the mean of LoRA is higher too stays open" in down
    assert not any(word in up + down for word in WORDS)


def test_an_arm_below_the_baseline_is_called_worse(tmp_path: Path) -> None:
    cells = study(tmp_path, {"elalora": [[-gap for gap in row] for row in FAR_UP], "adalora": MIXED})
    assert read(tmp_path, cells).sentences[0].startswith("ElaLoRA (paper) is worse than LoRA at r4: −9.94 points")


def test_p_below_alpha_is_no_claim_where_the_correction_lifts_it(tmp_path: Path) -> None:
    six = {"elalora": UP[:6], "adalora": MIXED[:6]}  # p = 2 / 64 = 0.03, corrected 0.0625
    confirmation = read(tmp_path, study(tmp_path, six))
    assert confirmation.table.frame["p"][0] == 2 / 64
    assert confirmation.sentences[0].startswith("No difference between ElaLoRA (paper) and LoRA was shown")
    assert any("too few to reach the level" in note for note in confirmation.table.notes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"recipe": "published (script)"}, "recipe published (script) is not matched"),
        ({"recipe": None}, "recipe none is not matched"),
        ({"data__verified": False}, "the data is not the official one"),
        ({"flags": ["off budget"]}, "an arm is off its budget"),
    ],
)
def test_unmatched_settings_and_stand_ins_support_no_claim(tmp_path: Path, changes: dict, reason: str) -> None:
    cells = study(tmp_path, {"elalora": UP, "adalora": MIXED}, **changes)
    confirmation = read(tmp_path, cells)
    text = confirmation.sentences[0]
    assert reason in text and "no claim is made" in text and not any(word in text for word in WORDS)
    assert not any("*" in cell for row in confirmation.table.rows for cell in row)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"identity__trainer__max_steps": 1000}, "the arms were not trained alike (trainer.max_steps: 100, 1000)"),
        ({"identity__data__train_items": 800}, "the arms were not trained alike (data.train_items: 1600, 800)"),
        ({"data__fingerprint": "ffff"}, "the arms saw different data"),
        ({"identity__trainer__lr": 0.01, "identity__trainer__weight_decay": 0.1}, ""),  # what is tuned
    ],
)
def test_arms_that_were_not_trained_alike_support_no_claim(tmp_path: Path, changes: dict, reason: str) -> None:
    other = study(tmp_path, {"elalora": UP}, **changes)
    cells = study(tmp_path, {"adalora": MIXED})  # with a baseline as it was
    cells = pd.concat([cells, other[other["arm"] == "elalora"]])
    confirmation = read(tmp_path, cells)
    text, untouched = confirmation.sentences
    assert confirmation.table.frame["p"][0] == 2 / 256
    pair = "ElaLoRA (paper) and LoRA"
    claim = "ElaLoRA (paper) scored higher than LoRA at r4 in a typical run"
    start = f"{pair} differ at r4, but no claim is made because" if reason else claim
    assert text.startswith(start)
    assert reason in text and "no claim" not in untouched
    assert any(note == f"elalora at r4: no claim, {reason}." for note in confirmation.table.notes) == bool(reason)


def test_tasks_may_differ_in_their_training_where_the_arms_do_not(tmp_path: Path) -> None:
    cells = study(tmp_path, {"elalora": UP, "adalora": MIXED})
    for folder in list((tmp_path / "task1").iterdir()):
        whole = json.loads((folder / "result.json").read_text())
        whole["identity"]["trainer"]["max_steps"] = 30
        whole["data"]["fingerprint"] = "ffff"
        before, whole["id"] = whole["id"], id_of(whole["identity"])
        cells = cells.replace({"id": {before: whole["id"]}})
        (folder / "result.json").write_text(json.dumps(whole))
        folder.rename(folder.with_name(folder.name.replace(before[:10], whole["id"][:10])))
    assert read(tmp_path, cells).sentences[0].startswith("ElaLoRA (paper) scored higher than LoRA at r4")


def test_a_family_is_not_tested_while_runs_are_missing(tmp_path: Path) -> None:
    cells = study(tmp_path, {"elalora": UP, "adalora": MIXED})
    victim = next((tmp_path / "task1").glob("elalora-r4-s3-*"))
    (victim / "result.json").unlink()
    (victim / "status.json").write_text(json.dumps({"state": "running"}))
    confirmation = read(tmp_path, cells)
    frame = confirmation.table.frame.set_index("arm")
    assert pd.isna(frame.loc["elalora", "p"]) and frame.loc["elalora", "missing"] == 1
    assert frame.loc["adalora", "p_holm"] == min(1.0, 2 * frame.loc["adalora", "p"])
    assert confirmation.sentences[0] == "ElaLoRA (paper) and LoRA at r4 are not tested yet: 1 runs are missing."
    assert any("python run.py -m +study=main" in note for note in confirmation.table.notes)


def test_a_comparison_that_waits_counts_in_the_correction(tmp_path: Path) -> None:
    cells = study(tmp_path, {"elalora": UP, "adalora": MIXED})
    cells.loc[cells["arm"] == "adalora", "id"] = ""
    frame = read(tmp_path, cells).table.frame.set_index("arm")
    assert frame.loc["elalora", "p_holm"] == 2 * 2 / 256 and frame.loc["adalora", "missing"] == 16


def test_a_failed_run_takes_its_seed_out_and_is_counted_by_how_it_ended(tmp_path: Path) -> None:
    cells = study(tmp_path, {"elalora": UP, "adalora": MIXED})
    for seed, failure in ((3, "nan"), (4, "budget"), (5, "crash")):
        victim = next((tmp_path / "task1").glob(f"elalora-r4-s{seed}-*"))
        (victim / "result.json").unlink()
        (victim / "status.json").write_text(json.dumps({"state": "failed", "failure": failure, "error": "a line"}))
    runs = load_runs(tmp_path)
    frame = read(tmp_path, cells).table.frame.set_index("arm")
    assert frame.loc["elalora", ["n", "failed", "missing"]].tolist() == [5, 3, 0]
    assert frame.loc["elalora", "p"] == 2 / 32
    text = read(tmp_path, cells).sentences[0]
    assert "Failed: 3 of 16 runs of ElaLoRA (paper) (NaN 1, over budget 1, crash 1)." in text
    # three of eight seeds lose (0.53 + 29.4) / 2 points: 0.94 - 3 * 14.96 / 8
    assert "With the constant answer's score for failed runs the difference is −4.67 points, corrected p = " in text
    counted = failures(runs, runs.attrs["unfinished"], cells)
    assert counted is not None
    ela = counted.frame.set_index("arm").loc["elalora"]
    assert ela[["done", "crash", "NaN", "over budget", "method failed"]].tolist() == [13, 1, 1, 1, 0]
    assert ela["failure_rate"] == 3 / 16


def test_a_collapsed_run_enters_the_test_and_is_named(tmp_path: Path) -> None:
    cells = study(tmp_path, {"elalora": UP, "adalora": MIXED})
    victim = next((tmp_path / "task0").glob("elalora-r4-s0-*"))
    whole = json.loads((victim / "result.json").read_text()) | {"flags": ["collapsed"]}
    (victim / "result.json").write_text(json.dumps(whole))
    confirmation = read(tmp_path, cells)
    assert confirmation.table.frame["n"][0] == 8
    assert any("elalora at r4: 1 collapsed" in note for note in confirmation.table.notes)
    assert "Collapsed: 1 of 16 runs of ElaLoRA (paper), which keep their scores." in confirmation.sentences[0]


def test_two_runs_of_ten_that_end_in_nan_reach_the_sentence_and_take_its_claim(tmp_path: Path) -> None:
    cells = study(tmp_path, {"elalora": [[1.0 + seed / 50] for seed in range(10)]})
    for seed in (3, 7):
        victim = next((tmp_path / "task0").glob(f"elalora-r4-s{seed}-*"))
        (victim / "result.json").unlink()
        (victim / "status.json").write_text(json.dumps({"state": "failed", "failure": "nan", "error": "a line"}))
    confirmation = read(tmp_path, cells, FamilyConfig("part", ["elalora - lora"], ["r4"], m=1))
    assert confirmation.table.frame["p"][0] == 2 / 256 and not confirmation.table.frame["claim"][0]
    text = confirmation.sentences[0]
    assert "no claim is made because it does not hold with failed runs at the constant answer" in text
    assert "Failed: 2 of 10 runs of ElaLoRA (paper) (NaN 2)." in text


def test_seeds_to_settle_come_with_the_range_that_their_spread_leaves(tmp_path: Path) -> None:
    cells = study(tmp_path, {"elalora": UP, "adalora": MIXED})
    table = read(tmp_path, cells).table
    found = table.frame.iloc[1]
    assert found["seeds_needed_low"] < found["seeds_needed"] < found["seeds_needed_high"]
    cell = table.rows[1][table.columns.index("Seeds to settle")]
    assert cell == f"{found['seeds_needed']:.0f} ({found['seeds_needed_low']:.0f} to {found['seeds_needed_high']:.0f})"


def test_a_margin_makes_equivalence_a_verdict(tmp_path: Path) -> None:
    small = [[0.1 * (-1) ** seed, 0.02 * seed - 0.05] for seed in SEEDS]
    cells = study(tmp_path, {"elalora": small, "adalora": FAR_UP})
    family = FamilyConfig("part", ["elalora - lora", "adalora - lora"], ["r4"], m=2, margin=0.5)
    alike, apart = read(tmp_path, cells, family).sentences
    assert "ElaLoRA (paper) and LoRA was shown at r4" in alike
    assert "The two are equivalent in a typical run, within 0.5 points (two one-sided sign-flip tests" in alike
    assert "Equivalence within 0.5 points was not shown" in apart


def test_contrasts_between_any_two_arms_are_named_and_have_the_sign_of_their_difference(tmp_path: Path) -> None:
    cells = study(tmp_path, {"elalora": UP, "adalora": FAR_UP})
    family = FamilyConfig("part", ["elalora - lora", "adalora - elalora"], ["r4"], m=2)
    confirmation = read(tmp_path, cells, family)
    table = confirmation.table
    assert [row[table.columns.index("Contrast")] for row in table.rows] == ["elalora - lora", "adalora - elalora"]
    mean = np.mean(UP)
    np.testing.assert_allclose(table.frame["mean"], [mean, 9.0], atol=1e-9)
    assert confirmation.sentences[1].startswith("AdaLoRA is better than ElaLoRA (paper) at r4: +9.00 points")
    assert table.notes[0].startswith("Family: elalora - lora, adalora - elalora at r4; m = 2 comparisons")
    assert table.caption == "Confirmatory: study main, part part, differences in points."
    with pytest.raises(UserError, match="the part part has no arm sora"):
        read(tmp_path, cells, FamilyConfig("part", ["elalora - sora"], ["r4"], m=1))


def test_a_declared_max_t_is_what_corrects_and_is_named(tmp_path: Path) -> None:
    cells = study(tmp_path, {"elalora": UP, "adalora": UP})
    family = FamilyConfig("part", ["elalora - lora", "adalora - lora"], ["r4"], correction=Correction.maxt, m=2)
    confirmation = read(tmp_path, cells, family)
    assert confirmation.table.frame["p_maxt"].tolist() == [2 / 256] * 2  # the same seeds twice: nothing to correct
    assert "p (maxT)" in confirmation.table.columns
    assert "with step-down maxT over 2 comparisons p = 0.0078" in confirmation.sentences[0]


def test_items_at_random_widen_the_interval_where_predictions_are_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    cells, label, hard = [], np.arange(200) % 2, rng.random(200)
    for arm, level in (("lora", 0.80), ("elalora", 0.85)):
        for seed in range(8):
            right = hard + rng.normal(0, 0.05, 200) < level
            whole = result(arm, seed, 100 * right.mean(), recipe="matched")
            folder = write_run(tmp_path, whole)
            frame = {"idx": range(200), "label": label, "prediction": np.where(right, label, 1 - label), "score": 0.5}
            pd.DataFrame(frame).to_parquet(folder / "predictions.parquet")
            cells.append({"part": "part", "kind": "confirmatory", "arm": arm, "task": "vader_movies", "budget": "r4",
                          "seed": seed, "id": whole["id"]})  # fmt: skip
    family = FamilyConfig("part", ["elalora - lora"], ["r4"], m=1)
    confirmation = read(tmp_path, pd.DataFrame(cells), family)
    found = confirmation.table.frame.iloc[0]
    assert found["low_items"] < found["low"] < found["high"] < found["high_items"]
    assert "over seeds and items" in confirmation.sentences[0] and "Seeds and items" in confirmation.table.columns
    monkeypatch.setattr("analysis.sections.confirmatory.MOST_RUNS", 15)
    large = read(tmp_path, pd.DataFrame(cells), family).table
    assert "Seeds and items" not in large.columns
    assert "No interval over items: it would read the predictions of 16 runs, above 15." in large.notes


def test_tasks_without_items_are_named(tmp_path: Path) -> None:
    family = FamilyConfig("part", ["elalora - lora"], ["r4"], m=1)
    notes = read(tmp_path, study(tmp_path, {"elalora": UP}), family).table.notes
    why = "the score is no share of right items, or predictions are missing"
    assert f"No interval over items: on task0, task1 {why}." in notes


def test_the_confound_card_names_rates_edges_and_sizes(tmp_path: Path) -> None:
    cells = study(tmp_path, {"elalora": UP, "adalora": MIXED})
    rows = []
    for arm, rates in (("lora", (0.001, 0.003)), ("elalora", (0.0003, 0.001, 0.003))):
        for lr in rates:
            whole = result(arm, 90, 70.0, task="task0", protocol="tune", identity__trainer__lr=lr,
                           identity__task={"name": "task0"}, identity__protocol={"name": "tune"})  # fmt: skip
            write_run(tmp_path, whole)
            rows.append({"part": "tuning", "kind": "tuning", "arm": arm, "task": "task0", "budget": "r4", "seed": 90,
                         "id": whole["id"]})  # fmt: skip
    for folder in (tmp_path / "task0").glob("elalora-*"):
        whole = json.loads((folder / "result.json").read_text())
        whole["counts"]["peak"]["params"] *= 2
        (folder / "result.json").write_text(json.dumps(whole))
    runs, plan = load_runs(tmp_path), Study("main", pd.concat([cells, pd.DataFrame(rows)]), FAMILY)
    confirmation = confirm(runs, plan)
    edge = "the rate of LoRA on task0 is at the edge of those tried (0.001 to 0.003 (2))"
    assert f"no claim is made because {edge}" in confirmation.sentences[0]
    card = confounds(runs, plan, confirmation.compared)
    assert card is not None
    differs = {row[2]: row[3:] for row in card.rows if row[0] == "ElaLoRA (paper) with LoRA"}
    assert differs["Learning rate"] == ["0.001", "task0: 0.001 (at the edge); task1: 0.001"]
    assert differs["Rates tried"][0] == "task0: 0.0003 to 0.003 (3); task1: not tuned"
    assert differs["Parameters at the peak"] == ["task0: 129,024; task1: 64,512", "64,512"]
    assert any("Steps 100" in note and "Scale 16 / r" in note for note in card.notes)


@pytest.mark.parametrize(("unstable", "claims"), [(4, True), (5, False)])
def test_an_arm_most_of_whose_runs_trained_above_guessing_supports_no_claim(
    unstable: int, claims: bool, tmp_path: Path
) -> None:
    cells = study(tmp_path, {"elalora": FAR_UP, "adalora": MIXED})
    for folder in (tmp_path / "task1").glob("elalora-*"):
        seed = json.loads((folder / "result.json").read_text())["seed"]
        losses = [0.9 if seed < unstable and step < 40 else 0.4 for step in range(9, 100, 10)]
        lines = [
            {"step": 9 + 10 * i, "split": "train", "metric": "loss", "value": loss} for i, loss in enumerate(losses)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = read(tmp_path, cells).sentences[0]
    reason = f"{unstable} of 8 runs of ElaLoRA (paper) on task1 are unstable at a learning rate of 0.001"
    assert ("is better than LoRA" in text) is claims and (f"no claim is made because {reason}" in text) is not claims
    assert text.endswith(f"Unstable runs: {unstable} of 8 of ElaLoRA (paper) on task1.")


def test_arms_of_other_sizes_are_said_to_be(tmp_path: Path) -> None:
    cells = study(tmp_path, {"elalora": UP, "adalora": MIXED})
    for folder in (tmp_path / "task0").glob("elalora-*"):
        whole = json.loads((folder / "result.json").read_text())
        whole["counts"]["final"]["params"] *= 2
        (folder / "result.json").write_text(json.dumps(whole))
    confirmation = read(tmp_path, cells)
    assert "ElaLoRA (paper) has more adapter parameters: 100.0 % on task0." in confirmation.sentences[0]
    notes = [note for note in confirmation.table.notes if "adapter parameters" in note]
    assert notes == ["elalora at r4 on task0: adapter parameters 129,024 and 64,512 (100.0 % apart)."]


def test_sizes_that_cancel_over_the_tasks_are_named_on_each(tmp_path: Path) -> None:
    cells = study(tmp_path, {"elalora": UP, "adalora": MIXED})
    for task, factor in (("task0", 1.02), ("task1", 0.98)):
        for folder in (tmp_path / task).glob("elalora-*"):
            whole = json.loads((folder / "result.json").read_text())
            whole["counts"]["final"]["params"] = round(factor * whole["counts"]["final"]["params"])
            (folder / "result.json").write_text(json.dumps(whole))
    confirmation = read(tmp_path, cells)
    assert "ElaLoRA (paper) has more adapter parameters: 2.0 % on task0." in confirmation.sentences[0]
    assert "LoRA has more adapter parameters: 2.0 % on task1." in confirmation.sentences[0]
    assert confirmation.table.frame["params_apart"][0] > 0.01


def test_the_table_names_family_correction_and_level(tmp_path: Path) -> None:
    table = read(tmp_path, study(tmp_path, {"elalora": UP, "adalora": MIXED})).table
    for text in (to_markdown(table), to_latex(table)):
        assert "lora with elalora, adalora at r4; m = 2" in text and "Holm" in text and "level 0.05" in text


def test_every_sentence_carries_p_and_interval_or_says_why_not(tmp_path: Path) -> None:
    for text in read(tmp_path, study(tmp_path, {"elalora": UP, "adalora": MIXED})).sentences:
        assert "p = " in text and "interval [" in text
    record = {"arm_name": "a", "baseline_name": "b", "budget": "r4", "missing": 0}
    assert "cannot be tested" in sentence(record, FAMILY)


def test_a_family_that_is_missing_or_has_an_arm_without_runs_is_refused(tmp_path: Path) -> None:
    cells = study(tmp_path, {"elalora": UP})
    with pytest.raises(UserError, match="study.family"):
        read(tmp_path, cells, None)
    with pytest.raises(UserError, match="no arm adalora"):
        read(tmp_path, cells)


def test_without_a_study_runs_that_ended_otherwise_are_counted_by_folder(tmp_path: Path) -> None:
    write_run(tmp_path, result("lora", 0, 80.0))
    runs = load_runs(tmp_path)
    assert failures(runs, runs.attrs["unfinished"]) is None
    folder = tmp_path / "vader_movies" / "lora-r4-s1-0123456789"
    folder.mkdir()
    (folder / "status.json").write_text(json.dumps({"state": "failed", "failure": "nan", "error": "a line"}))
    runs = load_runs(tmp_path)
    counted = failures(runs, runs.attrs["unfinished"])
    assert counted is not None and counted.rows[0][:5] == ["lora-r4", "1", "0", "0", "1"]


def test_any_setting_beside_the_method_that_differs_is_on_the_card(tmp_path: Path) -> None:
    """A template or a loss mask that one arm has and the other has not is a setting of the task."""
    other = study(tmp_path, {"elalora": UP}, identity__task={"name": "task0", "template": "Q: {text}"})
    cells = study(tmp_path, {"adalora": MIXED})
    cells = pd.concat([cells, other[other["arm"] == "elalora"]])
    runs, plan = load_runs(tmp_path), Study("main", cells, FAMILY)
    card = confounds(runs, plan, confirm(runs, plan).compared)
    assert card is not None
    assert ["ElaLoRA (paper) with LoRA", "r4", "task.template", "Q: {text}", "null"] in card.rows
