"""The rank study's statistics against scipy, worked examples and effects that were put into a made-up store."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.reading.rounds import events, load_contributions, load_rounds, paired, patterns, scores, shares_of_types
from analysis.reading.runs import load_runs
from analysis.sections import attribution, rank_study
from analysis.stats import relation as contribution
from analysis.stats.rank_agreement import agreement_p, concordance, kendalls_w, mean_tau, mean_tau_between, tau_matrix
from elalora.errors import UserError
from experiments.standins.stored_runs import modules, moved_run, result, write_run
from experiments.standins.study import EFFECTS, LIKED, SEEDS, build


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def runs(root: Path) -> pd.DataFrame:
    return load_runs(root)


def tied(seeds: int = 4, matrices: int = 12) -> np.ndarray:
    return np.random.default_rng(1).integers(1, 6, (seeds, matrices)).astype(float)


# -- agreement ---------------------------------------------------------------------------------------------


def test_tau_is_scipys_tau_b_with_ties():
    x, y = tied(), tied(3)[::-1]
    found = tau_matrix(x, y)
    for i, first in enumerate(x):
        for j, second in enumerate(y):
            assert found[i, j] == pytest.approx(stats.kendalltau(first, second, variant="b").statistic, abs=1e-12)


def test_tau_of_a_constant_pattern_is_not_defined():
    assert np.isnan(tau_matrix([[4, 4, 4], [1, 2, 3]])).tolist() == [[True, True], [True, False]]


def test_w_without_ties_is_the_textbook_example():
    """Sums of ranks 8, 5, 12, 5 differ from 7.5 by 0.5, -2.5, 4.5, -2.5: S = 33, W = 12 S / (m^2 (n^3 - n))."""
    assert kendalls_w([[2, 1, 4, 3], [3, 2, 4, 1], [3, 2, 4, 1]]) == pytest.approx(12 * 33 / (9 * 60))


@pytest.mark.parametrize("seeds", [2, 5])
def test_w_with_ties_is_friedmans_statistic_over_its_largest_value(seeds: int):
    x = tied(seeds, 10)
    friedman = stats.friedmanchisquare(*x.T).statistic  # scipy corrects for ties as well
    assert kendalls_w(x) == pytest.approx(friedman / (seeds * 9), abs=1e-12)


def test_w_is_1_for_equal_patterns_and_undefined_for_constant_ones():
    assert kendalls_w([[1, 2, 2, 5]] * 3) == pytest.approx(1.0)
    assert math.isnan(kendalls_w(np.full((3, 4), 4.0)))
    assert math.isnan(concordance(np.full((3, 4), 4.0)).low)


def test_the_interval_of_tau_is_students_over_jackknife_values():
    x = tied(4, 9)
    taus = [[stats.kendalltau(a, b).statistic for b in x] for a in x]
    pairs = [taus[i][j] for i in range(4) for j in range(i)]
    whole = float(np.mean(pairs))
    left = [np.mean([taus[i][j] for i in range(4) for j in range(i) if out not in (i, j)]) for out in range(4)]
    pseudo = [4 * whole - 3 * part for part in left]
    half = 3.182446305284263 * np.std(pseudo, ddof=1) / 2  # t with 3 degrees of freedom, from a printed table
    found = mean_tau(x)
    assert found.value == pytest.approx(whole)
    assert found.low == pytest.approx(max(-1, whole - half)) and found.high == pytest.approx(min(1, whole + half))


def test_two_seeds_have_a_coefficient_and_no_interval():
    found = mean_tau([[1, 2, 3], [1, 3, 2]])
    assert found.value == pytest.approx(1 / 3) and math.isnan(found.low) and math.isnan(found.high)


def test_methods_are_compared_over_all_pairs_of_seeds():
    x, y = tied(3), tied(5)
    found = mean_tau_between(x, y)
    assert found.value == pytest.approx(np.mean([[stats.kendalltau(a, b).statistic for b in y] for a in x]))
    assert math.isnan(found.low)


def coverage(trials: int, seeds: int) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    signal = rng.normal(size=24)

    def draw(n: int) -> np.ndarray:
        return np.clip(np.round(4 + 1.5 * (signal + rng.normal(size=(n, 24)))), 1, None)

    many = draw(800)
    tau = float(tau_matrix(many)[np.triu_indices(800, 1)].mean())
    rho = (800 * kendalls_w(many) - 1) / 799
    hits = np.zeros(2)
    for _ in range(trials):
        x = draw(seeds)
        one, two = mean_tau(x), concordance(x)
        hits += (one.low <= tau <= one.high, two.low <= (1 + (seeds - 1) * rho) / seeds <= two.high)
    return tuple(hits / trials)


def test_the_intervals_hold_the_truth_about_as_often_as_they_say():
    for share in coverage(250, 8):
        assert 0.90 <= share <= 1.0


@pytest.mark.full
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_the_intervals_hold_the_truth_as_often_as_they_say(seeds: int):
    for share in coverage(2000, seeds):
        assert 0.94 <= share <= 0.99


def test_the_permutation_p_is_that_of_enumeration():
    from itertools import permutations

    x = np.array([[1, 2, 3], [1, 2, 3]], dtype=float)
    observed = float((x.sum(axis=0) ** 2).sum())
    count = [float(((np.add(a, b)) ** 2).sum()) >= observed for a in permutations(x[0]) for b in permutations(x[1])]
    found = agreement_p(x, np.random.default_rng(0), resamples=8000)
    assert found == pytest.approx(np.mean(count), abs=0.02)


def test_agreement_on_types_alone_is_not_agreement_within_types():
    rng = np.random.default_rng(0)
    kinds = ["a"] * 8 + ["b"] * 8
    x = np.where(np.array(kinds) == "a", 8, 2) + rng.integers(-1, 2, (5, 16))
    assert agreement_p(x, rng, resamples=999) < 0.01
    assert agreement_p(x, rng, kinds, resamples=999) > 0.05


@pytest.mark.parametrize("wrong", [[[1, 2, 3]], [1, 2, 3], [[1], [2]], [[1, math.nan], [1, 2]]])
def test_what_is_no_set_of_patterns_is_refused(wrong):
    with pytest.raises(ValueError, match="pattern"):
        mean_tau(wrong)


# -- from the store ----------------------------------------------------------------------------------------


def test_events_count_what_each_round_pruned_and_grew(tmp_path: Path):
    found = events(load_rounds(moved_run(tmp_path, 0, 81.0)))
    loser = "bert.encoder.layer.0.intermediate.dense"
    assert found[found["matrix"] == loser][["step", "pruned", "grown", "net"]].values.tolist() == [
        [20, 1, 0, -1],
        [40, 1, 0, -1],
    ]
    assert found["net"].sum() == 0


def test_a_direction_replaced_in_its_own_matrix_has_a_net_of_0():
    line = {"step": 5, "pruned": [["a", 1], ["b", 0]], "grown": ["a", "c"], "scores": {"a": [0.1, 0.2]}}
    found = events([line]).set_index("matrix")
    assert found.loc["a"].tolist() == [5, 1, 1, 0]
    assert (found.loc["b", "net"], found.loc["c", "net"]) == (-1, 1)
    assert scores([line]).values.tolist() == [[5, "a", 0, 0.1], [5, "a", 1, 0.2]]


def test_shares_are_mean_ranks_over_the_mean_of_all():
    found = shares_of_types({"q0": 2, "q1": 4, "f0": 6, "f1": 8}, {"q0": "q", "q1": "q", "f0": "f", "f1": "f"})
    assert found == {"q": pytest.approx(0.6), "f": pytest.approx(1.4)}


def test_patterns_of_different_matrices_are_refused(runs: pd.DataFrame):
    two = runs.iloc[:2].copy()
    first = dict(two.iloc[0]["ranks_final"])
    first.pop(next(iter(first)))
    two["ranks_final"] = [first, two.iloc[1]["ranks_final"]]
    with pytest.raises(ValueError, match="different matrices"):
        patterns(two)


def test_the_authors_logged_patterns_share_as_counted_by_hand(tmp_path: Path):
    path = tmp_path / "patterns.csv"
    path.write_text(
        "# a note\nrun,module,layer,rank,verified\n"
        "one--overwrite_output_dir,attention.self.query_proj,0,1,yes\n"
        "one--overwrite_output_dir,intermediate.dense,0,3,yes\n"
    )
    assert rank_study.logged_shares(path) == {"authors: one": {"query": 0.5, "ffn in": 1.5}}
    assert rank_study.logged_shares(tmp_path / "none.csv") == {}


def test_the_logged_patterns_of_the_reference_data_are_read(shared: Path):
    path = shared / "reference" / "published" / "elalora_githistory_rank_patterns.csv"
    found = rank_study.logged_shares(path)
    assert len(found) == 7
    for row in found.values():
        assert set(row) == {"query", "key", "value", "attn out", "ffn in", "ffn out"}
        assert sum(row.values()) == pytest.approx(6)


# -- contribution ------------------------------------------------------------------------------------------


def test_spearman_is_scipys_for_every_seed():
    x, y = tied(3), np.random.default_rng(3).normal(size=(3, 12))
    expected = [stats.spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(contribution.spearman(x, y), expected, atol=1e-12)


def test_within_types_only_the_order_inside_a_type_counts():
    ranks, rises = [[1, 2, 3, 11, 12, 13]], [[3, 2, 1, 13, 12, 11]]
    assert contribution.spearman(ranks, rises)[0] > 0.5
    assert contribution.spearman(ranks, rises, list("aaabbb"))[0] == pytest.approx(-1.0)


def test_the_p_of_one_seed_is_that_of_enumeration():
    from itertools import permutations

    x, y = np.array([[1.0, 2, 2, 4, 5]]), np.array([[0.1, 0.4, 0.2, 0.3, 0.9]])
    observed = abs(stats.spearmanr(x[0], y[0]).statistic)
    every = [abs(stats.spearmanr(p, y[0]).statistic) >= observed - 1e-12 for p in permutations(x[0])]
    found = contribution.relation(x, y, np.random.default_rng(0), resamples=4000)
    assert found.rho == pytest.approx(observed) and found.p == pytest.approx(np.mean(every), abs=0.02)


def test_ten_copies_of_one_seed_are_no_more_evidence_than_one():
    rng = np.random.default_rng(5)
    x, y = rng.integers(1, 8, (1, 24)).astype(float), rng.normal(size=(1, 24))
    one = contribution.relation(x, y, np.random.default_rng(0), resamples=999)
    ten = contribution.relation(np.tile(x, (10, 1)), np.tile(y, (10, 1)), np.random.default_rng(0), resamples=999)
    assert (ten.rho, ten.low, ten.high, ten.p) == pytest.approx((one.rho, one.low, one.high, one.p))


@pytest.mark.slow
def test_unrelated_ranks_are_found_related_as_often_as_the_level_says():
    rng = np.random.default_rng(7)
    found = []
    for _ in range(100):
        base, rises = rng.normal(size=20), rng.normal(size=20)  # patterns that all seeds share
        x, y = (np.round(p + 0.2 * rng.normal(size=(4, 20)), 1) for p in (base, rises))
        found.append(contribution.relation(x, y, rng, list("ab" * 10), resamples=99).p <= 0.05)
    assert np.mean(found) <= 0.10


def test_equal_ranks_have_no_relation():
    found = contribution.relation(np.full((2, 6), 4.0), tied(2, 6), np.random.default_rng(0), resamples=9)
    assert all(map(math.isnan, found))


def test_contributions_are_paired_by_seed(runs: pd.DataFrame):
    ela, svd = runs[runs["shown"] == "ElaLoRA (paper)"], runs[runs["shown"] == "SVD-LoRA"]
    ranks, rises, order, seeds = paired(ela, svd[svd["seed"] != 3])
    assert seeds == [s for s in SEEDS if s != 3] and ranks.shape == rises.shape == (8, len(modules()))
    run = ela[ela["seed"] == 5].iloc[0]
    stored = json.loads((Path(svd[svd["seed"] == 5].iloc[0]["folder"]) / "contributions.json").read_text())["rises"]
    row = seeds.index(5)
    assert dict(zip(order, ranks[row], strict=True)) == run["ranks_final"]
    assert dict(zip(order, rises[row], strict=True)) == pytest.approx(stored)


@pytest.mark.parametrize("text", ["{", '{"schema": 9}', '{"schema": 1, "rises": {"a": "much"}}'])
def test_a_damaged_contribution_is_one_line(tmp_path: Path, text: str):
    (tmp_path / "contributions.json").write_text(text)
    with pytest.raises(UserError, match=r"experiments\.contribution"):
        load_contributions(tmp_path)


def test_the_transplant_reads_layout_and_dynamics_apart(runs: pd.DataFrame):
    steps = {step.name: step for step in contribution.transplant(runs)}
    wide = runs.assign(arm_name=[contribution.arm_of(s) for s in runs["settings"]])
    means = wide.groupby("arm_name")["score"].mean()
    assert steps["layout"].mean == pytest.approx(means["transplant"] - means["svd_lora"])
    assert steps["dynamics"].mean == pytest.approx(means["elalora"] - means["transplant"])
    assert steps["whole"].mean == pytest.approx(steps["layout"].mean + steps["dynamics"].mean)
    assert abs(steps["layout"].mean - 0.9) < 0.2  # as put in
    assert all(step.p == 2.0**-8 and step.corrected == 4 * 2.0**-8 for step in steps.values())


# -- attribution -------------------------------------------------------------------------------------------


def worked() -> np.ndarray:
    s, i, j, k = np.indices((4, 3, 2, 2))
    return 80 + ((7 * s + 3 * i + 5 * j + 11 * k + 2 * i * j * s + i * k) % 13) / 4


def test_effects_are_those_of_a_regression_with_seeds_as_blocks():
    """statsmodels 0.15: ols(y ~ C(seed) + (moving + scores) * D1 * D2), switches coded -1/2 and 1/2."""
    expected = {
        "moving": -0.0546875, "scores": -0.171875, "D1": 0.375, "D2": 0.2916666667, "moving x D1": 0.515625,
        "moving x D2": -0.640625, "scores x D1": 1.15625, "scores x D2": -0.15625, "D1 x D2": 0.0,
        "moving x D1 x D2": 1.21875, "scores x D1 x D2": -0.8125,
    }  # fmt: skip
    found = {e.name: e.mean for e in attribution.effects(worked())}
    assert list(found) == list(expected)
    assert found == pytest.approx(expected, abs=1e-9)


def test_an_effects_interval_and_p_are_those_of_its_own_sample():
    x = worked()
    d1 = x[:, :, 1].mean(axis=(1, 2)) - x[:, :, 0].mean(axis=(1, 2))
    effect = next(e for e in attribution.effects(x) if e.name == "D1")
    low, high = stats.ttest_1samp(d1, 0).confidence_interval()
    p = stats.permutation_test((d1,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    assert (effect.low, effect.high, effect.p) == pytest.approx((low, high, p))


def test_contrasts_ask_each_question_once():
    weights = np.array([w.ravel() for w in attribution.contrasts().values()])
    assert len(weights) == 11 and np.allclose(weights.sum(axis=1), 0)
    gram = weights @ weights.T
    assert np.allclose(gram, np.diag(np.diag(gram)))


def test_effects_that_were_put_in_are_read_out(runs: pd.DataFrame):
    [factorial], gaps = attribution.factorials(runs)
    assert not gaps and factorial.seeds == list(SEEDS)
    found = {e.name: e for e in attribution.effects(factorial.scores)}
    scored = EFFECTS["scored"] + EFFECTS["scored x D1"] / 2
    for name, truth in {
        "scores": scored, "moving": scored / 2, "D1": EFFECTS["D1"] + EFFECTS["scored x D1"] / 3,
        "D2": EFFECTS["D2"], "scores x D1": EFFECTS["scored x D1"], "moving x D1": EFFECTS["scored x D1"] / 2,
    }.items():  # fmt: skip
        assert abs(found[name].mean - truth) < 0.2 and found[name].corrected <= 0.05, name
    for name in ("moving x D2", "scores x D2", "D1 x D2", "moving x D1 x D2", "scores x D1 x D2"):
        assert found[name].corrected > 0.05, name


def test_the_paragraph_says_what_the_tests_say_and_no_more(runs: pd.DataFrame):
    [factorial], _ = attribution.factorials(runs)
    text = attribution.paragraph(factorial)
    assert "Choosing by scores against choosing at random raised the score by 2.0" in text
    assert "Dropping the optimizer's moments at every round lowered the score by 0.6" in text
    assert "scores x D1 +1.3" in text and "better" not in text
    few = attribution.Factorial(factorial.scores[:5], [0, 1, 2, 3, 4], factorial.tasks, "here", "made up")
    text = attribution.paragraph(few)
    assert "raised" not in text and "lowered" not in text and "it takes 9" in text
    noise = np.random.default_rng(0).normal(size=(9, 3, 2, 2))
    text = attribution.paragraph(attribution.Factorial(noise, list(range(9)), ["a"], "here", "made up"))
    assert text.count("not told apart from no effect") == 4 and "No interaction is told apart from 0" in text


def test_some_arms_of_the_factorial_on_another_task_neither_enter_it_nor_stop_it(root: Path, tmp_path: Path):
    other = {"task": "vader_tweets", "identity__task": {"name": "vader_tweets"}}
    for seed in SEEDS:
        for method in ({"name": "svd_lora"}, {"name": "elalora", "variant": "paper"}):
            write_run(tmp_path, result(method["name"], seed, 99.0, identity__method=method, **other))
    [alone], _ = attribution.factorials(load_runs(root))
    [both], gaps = attribution.factorials(load_runs(root, tmp_path))
    assert both.tasks == ["vader_movies"] and not gaps
    assert np.array_equal(both.scores, alone.scores)


def test_a_factorial_with_a_hole_says_what_is_missing(runs: pd.DataFrame):
    cells = [attribution.cell_of(s) for s in runs["settings"]]
    without = runs[[cell != (1, 1, 0) for cell in cells]]
    found, gaps = attribution.factorials(without)
    assert not found and gaps == ["minilm, r4, clean: the factorial lacks random + D1"]
    one_seed = runs[[not (cell == (2, 0, 0) and seed == 4) for cell, seed in zip(cells, runs["seed"], strict=True)]]
    [factorial], gaps = attribution.factorials(one_seed)
    assert 4 not in factorial.seeds and gaps == ["minilm, r4, clean: 1 seeds lack a cell and are left out"]


@pytest.mark.parametrize(
    ("method", "cell"),
    [
        ({"name": "svd_lora", "D1": True, "D2": False, "D4": "off", "ranks_from": None}, (0, 1, 0)),
        ({"name": "svd_lora", "ranks_from": "0123"}, None),
        ({"name": "elalora", "variant": "paper", "importance": "random", "D2": True}, (1, 0, 1)),
        ({"name": "elalora", "variant": "paper", "importance": "sensitivity_uncertainty"}, (2, 0, 0)),
        ({"name": "elalora", "variant": "official"}, None),
        ({"name": "elalora", "variant": "paper", "D8": True}, None),
        ({"name": "lora"}, None),
    ],
)
def test_a_run_stands_in_its_cell_or_in_none(method: dict, cell: tuple | None):
    assert attribution.cell_of({"method": method}) == cell


# -- tables and pictures -----------------------------------------------------------------------------------


def test_transplants_of_all_seeds_are_one_arm(runs: pd.DataFrame):
    shown = runs["shown"].value_counts().to_dict()
    assert shown["SVD-LoRA transplant"] == shown["SVD-LoRA transplant shuffled"] == len(SEEDS)
    assert shown["ElaLoRA, random moves + D1 + D2 (paper)"] == len(SEEDS)
    assert len(shown) == 15


@pytest.mark.slow
def test_tables_read_the_store_as_it_was_made(runs: pd.DataFrame):
    arms = {name: arm for name, arm in runs.groupby("shown") if " + " not in str(name)}
    stable = rank_study.stability(arms, "here").frame.set_index("arm")
    assert stable.loc["ElaLoRA (paper)", "w"] > 0.8 and stable.loc["ElaLoRA (paper)", "p"] < 0.01
    assert stable.loc["ElaLoRA, random moves (paper)", "w"] < 0.4
    assert "SVD-LoRA" not in stable.index  # one rank everywhere has no pattern
    related = rank_study.relations(arms, "here").frame.set_index(["ranks_of", "contributions_in"])
    assert related.loc[("ElaLoRA (paper)", "SVD-LoRA"), "across_rho"] > 0.5
    assert set(related["matrices"]) == {12} and set(related["below"]) == {0}
    assert related.loc[("ElaLoRA, random moves (paper)",) * 2, "across_p"] > 0.05
    share = rank_study.shares(arms, "here").frame.set_index("arm").loc["ElaLoRA (paper)"]
    assert share["ffn in"] > 1.3 and share["ffn out"] < 0.7 and LIKED["intermediate.dense"] > LIKED["output.dense"]


@pytest.mark.slow
def test_ranks_that_were_given_are_no_agreement_of_seeds(runs: pd.DataFrame):
    [section] = rank_study.sections(runs[runs["seed"] < 3], None)
    for kind in ("stability", "shares"):
        [table] = [t for name, t in section.tables.items() if name.startswith(kind)]
        assert "ElaLoRA (paper)" in set(table.frame["arm"])
        assert not any("transplant" in name for name in table.frame["arm"])


@pytest.mark.full
def test_the_whole_study_is_drawn_with_every_picture(runs: pd.DataFrame, tmp_path: Path):
    few = runs[runs["seed"] < 3]
    [section] = rank_study.sections(few, tmp_path)
    assert [name.split("_")[0] for name in section.tables] == ["stability", "contribution", "transplant", "shares"]
    kinds = {path.name.split("_")[0] for path in section.figures}
    assert kinds == {"spread", "agreement", "rounds", "moves", "scores", "contribution"}
    for path in section.figures:
        assert path.suffix == ".svg" and path.stat().st_size > 1000 and path.with_suffix(".png").stat().st_size > 1000


def test_the_attribution_has_a_paragraph_a_table_and_a_figure(runs: pd.DataFrame, tmp_path: Path):
    [section] = attribution.sections(runs, tmp_path)
    [(name, table)] = section.tables.items()
    assert name == "attribution_minilm_r4_clean" and table.frame["name"].tolist() == list(attribution.contrasts())
    assert "made-up numbers" in " ".join(table.notes) and section.lines[0].startswith("In 9 paired seeds")
    [figure] = section.figures
    assert figure.with_suffix(".png").stat().st_size > 1000


def test_cells_with_rates_of_their_own_are_a_factorial_only_when_asked_for(runs: pd.DataFrame):
    tuned = runs.copy()
    tuned["settings"] = [
        {**s, "trainer": {**s["trainer"], "lr": 0.01 if s["method"]["name"] == "svd_lora" else 0.003}}
        for s in runs["settings"]
    ]
    assert attribution.factorials(tuned)[0] == []
    [one], gaps = attribution.factorials(tuned, tuned=True)
    assert not gaps and one.scores.shape == (9, 3, 2, 2)


def test_a_store_without_these_studies_says_nothing(tmp_path: Path):
    moved_run(tmp_path, 0, 81.0)
    assert attribution.sections(load_runs(tmp_path), tmp_path) == []


def test_two_arms_under_one_name_are_no_transplant_control(runs: pd.DataFrame):
    twice = pd.concat([runs, runs[[contribution.arm_of(s) == "svd_lora" for s in runs["settings"]]]])
    assert contribution.transplant(twice) == []
