"""Studies: what they expand to, that tuning is equal for all arms, and that a hopeless one is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from tiny_runs import ROOT, config

from elalora import UserError
from experiments.config.compose import compose_run
from experiments.config.explain import explain
from experiments.config.mistakes import MISTAKES
from experiments.runs.plan import make_plan
from experiments.standins.stored_runs import result
from experiments.studies import expansion as module
from experiments.studies.expansion import Choice, cells_of, choose, expand, extended, study_of
from experiments.studies.power import least_effect, power
from experiments.studies.preview import preview, preview_study
from experiments.studies.rules import seeds_of
from experiments.studies.smallest_p import least_pairs, smallest_p
from experiments.studies.stages import run_study

STUDIES = sorted(path.stem for path in (ROOT / "conf" / "study").glob("*.yaml"))
SMALL = """
name: small
about: does it expand
overrides: [recipe=matched, trainer.max_steps=50]
arms:
  a: {overrides: [method=lora]}
  b: {overrides: [method=elalora]}
  c: {overrides: [method=svd_lora], ranks_from: b}
parts:
  main: {kind: confirmatory, arms: [a, b, c], tasks: [vader_movies], budgets: [r4], seeds: "range(10,17)"}
  more: {arms: [b, c], tasks: [vader_movies], budgets: [r2], seeds: "10,11"}
tuning:
  seeds: "0,1"
  budget: r4
  grids: {lora: [1e-3, 2e-3, 4e-3], svd: [1e-3, 3e-3, 9e-3]}
family: {part: main, contrasts: [b - a, c - a], budgets: [r4], alpha: 0.05, m: 2}
"""


@pytest.fixture
def small(tmp_path):
    """Words that choose the study above, in a store of its own."""
    (tmp_path / "conf" / "study").mkdir(parents=True)
    (tmp_path / "conf" / "study" / "small.yaml").write_text(SMALL)
    return [f"hydra.searchpath=[file://{tmp_path}/conf]", f"store.root={tmp_path}/runs"]


class Pretender:
    """Does runs by writing results whose score is a function of method and learning rate."""

    def __init__(self, score):
        self.score, self.calls = score, []

    def __call__(self, plans):
        self.calls.append(plans)
        seen = set()
        for plan in plans:
            assert all(s.id in seen or s.plan.finished() for s in plan.sources), "a source comes before what needs it"
            seen.add(plan.id)
            value = self.score(plan.config.method.name, plan.config.trainer.lr, plan.config.seed)
            plan.folder.path.mkdir(parents=True)
            whole = result(plan.config.method.name, plan.config.seed, value, identity=plan.identity)
            whole["readings"]["last"]["report"]["metrics"] = {"accuracy": value}
            whole["cost"] |= {"train_seconds": 10.0, "eval_seconds": 2.0}
            plan.folder.write("result.json", whole)
        return 0


def middle(method, lr, seed):
    """A score that is best in the middle of the grids above."""
    return 90 - abs(lr - (2e-3 if method == "lora" else 3e-3)) * 1000


# -- the files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "offline_main" else pytest.mark.slow) for name in STUDIES]
)
def test_every_study_is_consistent_and_every_arm_and_budget_composes(name, monkeypatch, tmp_path):
    whole = study_of(compose_run([f"+study={name}"]))
    assert whole.name == name and whole.about

    def cut(config):
        first = {n: replace(p, tasks=p.tasks[:1], seeds=str(seeds_of(p.seeds)[0])) for n, p in whole.parts.items()}
        return replace(whole, parts=first, tuning=None)  # the tests below tune

    monkeypatch.setattr(module, "study_of", cut)
    cells = expand(name, [f"store.root={tmp_path}"])
    assert all(cell.plan is not None for cell in cells)
    for part_name, part in whole.parts.items():
        found = {(c.arm, c.budget) for c in cells if c.part == part_name}
        assert found == {(arm, budget) for arm in part.arms for budget in part.budgets}
    if whole.tuning is not None:
        own = [c for c in cells if whole.parts[c.part].tuned and not whole.arms[c.arm].tuned_as]
        tuned = [cell.plan.config for cell in own]
        assert {config.recipe.family for config in tuned} <= set(whole.tuning.grids)


@pytest.mark.parametrize("name", STUDIES)
def test_the_small_form_of_a_study_has_every_arm_and_budget(name, monkeypatch, tmp_path):
    monkeypatch.setattr("experiments.standins.folder.standins", lambda: tmp_path)
    config = compose_run([f"+study={name}", "study.smoke=true"])
    whole, small = study_of(compose_run([f"+study={name}"])), study_of(config)
    assert small.family is None
    for part_name, part in whole.parts.items():
        mine = small.parts[part_name]
        assert (mine.arms, mine.budgets) == (part.arms, part.budgets)
        assert mine.kind != "confirmatory" and len(seeds_of(mine.seeds)) == 1
    steps = [word for word in small.small.overrides if word.startswith("trainer.max_steps=")]
    assert int(steps[0].partition("=")[2]) >= 50
    local = any(str(tmp_path) in word for word in small.small.overrides)
    assert local or {"model=random_encoder", "model=vit_digits"} & set(whole.overrides), "a model that needs no hub"


@pytest.mark.full
@pytest.mark.parametrize("name", STUDIES)
def test_the_small_form_of_a_study_runs_to_its_end_and_leaves_no_empty_cell(name, tmp_path):
    from experiments.runs.run import run_plans

    config = compose_run([f"+study={name}", "study.smoke=true", f"store.root={tmp_path}/runs"])
    assert run_study(config, run_plans) == 0
    assert all(cell.plan is not None and cell.plan.finished() is not None for cell in cells_of(config))


# -- stages ----------------------------------------------------------------------------------------------------


def test_what_needs_a_tuned_rate_waits_for_exactly_the_trials_that_decide_it(small):
    cells = expand("small", small)
    trials = [c for c in cells if c.part == "tuning"]
    assert all(c.plan.config.protocol.name == "tune" for c in trials)
    assert {(c.arm, c.plan.config.trainer.lr) for c in trials} == {
        ("a", 1e-3), ("a", 2e-3), ("a", 4e-3), ("b", 1e-3), ("b", 3e-3), ("b", 9e-3)
    }  # fmt: skip
    assert {c.seed for c in trials} == {0, 1} and all(c.after == () for c in trials)
    waiting = [c for c in cells if c.part != "tuning"]
    assert len(waiting) == 3 * 7 + 2 * 2 and all(c.plan is None for c in waiting)
    ids = {arm: {c.plan.id for c in trials if c.arm == arm} for arm in "ab"}
    for cell in waiting:
        assert set(cell.after) == ids["a" if cell.arm == "a" else "b"]


def test_a_study_runs_stage_by_stage_and_every_run_takes_the_winner_of_its_arm(small):
    config = compose_run(["+study=small", *small])
    work = Pretender(middle)
    assert run_study(config, work) == 0
    assert [len(call) for call in work.calls] == [12, 6, 25]  # two arms; the transplant's trials; the parts
    cells = cells_of(config)
    for cell in (c for c in cells if c.part != "tuning"):
        assert cell.plan.finished() is not None and cell.plan.config.protocol.name == "clean"
        assert cell.plan.config.trainer.lr == (2e-3 if cell.arm == "a" else 3e-3)
    pairs = {(c.part, c.seed): c for c in cells if c.arm == "b"}
    for cell in (c for c in cells if c.arm == "c" and c.part != "tuning"):
        assert cell.after == (pairs[cell.part, cell.seed].plan.id,)
    again = Pretender(middle)
    assert run_study(config, again) == 0 and again.calls == []


def test_a_winner_at_an_edge_extends_the_grid_of_every_arm(small):
    config = compose_run(["+study=small", *small, "study.only=[more]"])

    def rising(method, lr, seed):  # the transplant wants more than its grid offers
        return lr * 1000 if method == "svd_lora" else middle(method, lr, seed)

    run_study(config, Pretender(rising))
    choices = module.Expansion(config).choices
    assert {len(choice.trials) for choice in choices.values()} == {7}  # extended twice, by one value at both ends
    greedy = choices["c", "vader_movies", "r4"]
    assert greedy.edge and greedy.lr == max(greedy.trials) == 81e-3
    assert not choices["b", "vader_movies", "r4"].edge
    assert "tuning: c on vader_movies at r4 chose 0.081, at the edge of" in preview_study(config)


def test_arms_of_a_claim_are_not_extended_by_arms_that_may_be_tuned_later(small, tmp_path):
    """Else their learning rates could change after their scores were seen."""
    more = 'more: {arms: [b, c, d], tasks: [vader_movies], budgets: [r4], seeds: "10,11"}'
    text = SMALL.replace('more: {arms: [b, c], tasks: [vader_movies], budgets: [r2], seeds: "10,11"}', more)
    text = text.replace("parts:", "  d: {overrides: [method=prilora]}\nparts:")
    (tmp_path / "conf" / "study" / "small.yaml").write_text(text)

    def rising(method, lr, seed):
        return lr * 1000 if method == "prilora" else middle(method, lr, seed)

    run_study(compose_run(["+study=small", *small, "study.only=[main]"]), Pretender(middle))
    before = module.Expansion(compose_run(["+study=small", *small])).choices
    run_study(compose_run(["+study=small", *small]), Pretender(rising))
    choices = module.Expansion(compose_run(["+study=small", *small])).choices
    assert {arm: len(choice.trials) for (arm, _, _), choice in choices.items()} == {"a": 3, "b": 3, "c": 3, "d": 7}
    assert all(choices[key] == before[key] for key in choices if key[0] in "abc")


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("trainer.lr=7e-5", "'trainer.lr=7e-5': the study tunes it"),
        ("trainer.warmup=7", r"the study's arms \(a\) set trainer.warmup"),
    ],
)
def test_a_word_that_arms_or_tuning_would_overrule_is_refused(small, tmp_path, word, says):
    path = tmp_path / "conf" / "study" / "small.yaml"
    path.write_text(SMALL.replace("[method=lora]", "[method=lora, trainer.warmup=3]"))
    with pytest.raises(UserError, match=says):
        expand("small", [*small, word])


def test_an_arm_that_is_not_tuned_yet_does_not_hide_that_another_is_at_an_edge(small):
    """Else a study of which only one part was run would show fewer trials than that part had."""
    cells = [c for c in expand("small", small) if c.part == "tuning"]
    Pretender(lambda method, lr, seed: lr * 1000)([c.plan for c in cells if c.arm == "a"])
    again = [c for c in expand("small", small) if c.part == "tuning"]
    assert {arm: len({c.plan.config.trainer.lr for c in again if c.arm == arm}) for arm in "ab"} == {"a": 5, "b": 5}


def test_a_study_that_only_submits_ends_well_and_says_when_to_come_again(small, capsys):
    config = compose_run(["+study=small", *small])
    config.launcher.kind = "slurm"
    submitted = []
    assert run_study(config, lambda plans: submitted.extend(plans) or 0) == 0
    assert submitted and "Rerun this command once the tuning jobs have finished" in capsys.readouterr().out
    config.launcher.wait = True  # then all has ended, and what is missing failed
    assert run_study(config, lambda plans: 0) == 1


def test_a_diverged_trial_is_lost_and_an_unfinished_one_stops_the_study(small, capsys):
    config = compose_run(["+study=small", *small])
    cells = [c for c in expand("small", small) if c.part == "tuning"]
    bad = next(c.plan for c in cells if c.arm == "a" and c.plan.config.trainer.lr == 1e-3)

    def skipping(plans):
        Pretender(middle)([p for p in plans if p.id != bad.id])
        return 1

    assert run_study(config, skipping) == 1
    assert "need tuning runs that did not finish" in capsys.readouterr().err
    bad.folder.path.mkdir(parents=True)
    bad.folder.write("status.json", {"state": "failed", "failure": "nan", "error": "NotFinite: loss is nan at step 3"})
    choices = module.Expansion(config).choices
    assert choices["a", "vader_movies", "r4"].lr == 2e-3


def test_the_winner_has_the_best_mean_and_a_tie_goes_to_the_middle():
    grid = (1.0, 2.0, 3.0)
    assert choose(grid, [[1, 5], [4, 4], [0, 7]], ()) == Choice(2.0, grid, False, ())
    assert choose(grid, [[4, 4], [4, 4], [4, 4]], ()).lr == 2.0
    assert choose(grid, [[4], [3], [4]], ()) == Choice(1.0, grid, True, ())
    assert choose(grid, [[4], [None], [4]], ("x",)) == Choice(None, grid, False, ("x",))
    assert choose(grid, [[1], [5], [9]], (), [False, False, True]) == Choice(2.0, grid, False, ())
    assert choose(grid, [[1], [5], [9]], (), [True, True, True]) == Choice(1.0, grid, True, ())  # extends the grid
    diverged = [[-math.inf], [5], [9]]
    assert choose(grid, diverged, (), [False, True, True]).lr == 2.0
    with pytest.raises(UserError, match="all learning rates 1.0, 2.0, 3.0 diverged"):
        choose(grid, [[float("-inf")]] * 3, ())


@pytest.mark.parametrize(("task", "best"), [("vader_movies", 1e-3), ("vader_tweets", 3e-3)])
def test_a_study_that_asks_for_stable_rates_takes_none_at_which_most_trials_are_unstable(small, tmp_path, task, best):
    (tmp_path / "conf" / "study" / "small.yaml").write_text(SMALL.replace("vader_movies", task))

    class Wild(Pretender):
        def __call__(self, plans):
            super().__call__(plans)
            for plan in plans:
                # of guessing: 0.693, from which a regression's first descent may start far above
                losses = [2.0, 0.9, 0.9, 0.6] if plan.config.trainer.lr > 1e-3 else [0.6] * 4
                lines = [{"step": 25 * i, "split": "train", "metric": "loss", "value": v} for i, v in enumerate(losses)]
                (plan.folder.path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
            return 0

    rates = {}
    for stable in ("false", "true"):
        config = compose_run(["+study=small", *small, "study.only=[more]", f"study.tuning.stable={stable}"])
        run_study(config, Wild(middle))
        rates[stable] = module.Expansion(config).choices["b", task, "r4"].lr
    assert rates == {"false": 3e-3, "true": best}


def test_a_transplant_may_take_the_rate_of_the_same_form_with_other_ranks(small, tmp_path):
    text = SMALL.replace("ranks_from: b}", "ranks_from: b, tuned_as: d}\n  d: {overrides: [method=svd_lora]}")
    text = text.replace("arms: [a, b, c], tasks", "arms: [a, b, c, d], tasks").replace("c - a]", "c - d]")
    (tmp_path / "conf" / "study" / "small.yaml").write_text(text)
    config = compose_run(["+study=small", *small, "study.only=[main]"])
    run_study(config, Pretender(lambda method, lr, seed: 90 - abs(lr - (1e-3 if method == "svd_lora" else 3e-3))))
    cells = cells_of(config)
    assert {cell.arm for cell in cells if cell.part == "tuning"} == {"a", "b", "d"}
    rates = {cell.arm: cell.plan.config.trainer.lr for cell in cells if cell.part == "main"}
    assert rates["c"] == rates["d"] == 1e-3 != rates["b"]


def test_a_grid_grows_by_its_own_ratio_at_both_ends():
    assert extended([1e-3, 3e-3, 9e-3], 0) == (1e-3, 3e-3, 9e-3)
    assert extended([1e-3, 3e-3, 9e-3], 2) == (1.11e-4, 3.33e-4, 1e-3, 3e-3, 9e-3, 2.7e-2, 8.1e-2)


def test_seeds_are_ranges_or_lists():
    assert seeds_of("range(3)") == [0, 1, 2] and seeds_of("range(10,12)") == [10, 11] and seeds_of("4, 2") == [4, 2]
    with pytest.raises(UserError, match="seeds 'all' cannot be read"):
        seeds_of("all")


# -- what is refused -------------------------------------------------------------------------------------------

WRONG = {
    "study.parts.main.arms=[a,b,c,d]": "study.parts.main.arms: unknown arm d; allowed: a, b, c",
    "study.parts.main.kind=sure": "study.parts.main.kind=sure is unknown; allowed: confirmatory",
    "study.arms.c.ranks_from=x": "study.arms.c.ranks_from: unknown arm x",
    "study.arms.b.ranks_from=c": "study.arms.b.ranks_from=c, which itself has ranks_from",
    "study.parts.more.arms=[c]": "study.parts.more.arms lacks b, which gives another arm its ranks",
    "study.arms.b.tuned_as=a": "an arm of a confirmatory part must be tuned itself",
    "study.arms.c.tuned_as=a": "differ from a in its ranks only",
    "study.tuning.seeds='10'": "a part uses seed 10 too",
    "study.tuning.grids.svd=[1e-3,2e-3]": "must all have the same number of learning rates",
    "study.tuning.grids.svd=[3e-3,1e-3,9e-3]": "must be increasing and above 0",
    "study.family.m=1": "study.family.m=1, but contrasts x budgets are 2 comparisons",
    "study.family.contrasts=[b - a]": "study.family.contrasts must have all of the part main, and no others",
    "study.family.contrasts=[b - a,c-a]": "study.family.contrasts: 'c-a' is not a difference of two arms",
    "study.family.contrasts=[b - b,c - a]": "study.family.contrasts: 'b - b' is not a difference of two arms",
    "study.family.contrasts=[b - a,c - a,a - b]": "study.family.contrasts compares b and a twice",
    "study.family.budgets=[r2]": "study.family.budgets must have all of the part main, and no others: ['r4']",
    "study.family.part=more": "the confirmatory part of small (main) must be study.family.part",
    "study.family.correction=none": "study.family.correction=none is unknown; allowed: holm, maxt",
    "study.parts.main.seeds='10,11,12,13,14,15'": "small cannot reach its level: 6 seeds give p = 0.0312 at best",
    "study.overrides=[]": "study.overrides must choose recipe=matched",
    "+study.parts.more.rates={svd:[1e-3,3e-3]}": "study.parts.more has rates, so it cannot take tuned ones",
    "study.only=[rest]": "study.only: unknown part rest; allowed: main, more",
    "seed=3": "'seed=3': the study sets seed",
    "method=lora": "'method=lora': the study sets method",
}


@pytest.mark.parametrize("word", WRONG)
def test_an_inconsistent_study_is_refused_before_anything_runs(word, small):
    with pytest.raises(MISTAKES) as error:
        expand("small", [*small, word])
    assert WRONG[word] in explain(error.value)


@pytest.mark.parametrize(("m", "seeds"), [(3, 7), (8, 9), (16, 10)])
def test_the_fewest_seeds_are_those_of_the_exact_test(m, seeds):
    assert least_pairs(0.05, m) == seeds
    assert smallest_p(seeds) <= 0.05 / m < smallest_p(seeds - 1)


# -- rate curves -----------------------------------------------------------------------------------------------

CURVE = ["study.only=[more]", "study.parts.more.tuned=false", "study.parts.more.arms=[a,b]"]


def test_a_part_with_rates_runs_every_arm_at_every_rate_of_its_family_with_every_seed(small):
    words = [*small, *CURVE, "+study.parts.more.rates={lora:[1e-3,2e-3],svd:[3e-3,5e-3,9e-3]}"]
    cells = expand("small", words)
    assert [(c.arm, c.seed, c.plan.config.trainer.lr) for c in cells] == [
        *(("a", seed, lr) for seed in (10, 11) for lr in (1e-3, 2e-3)),
        *(("b", seed, lr) for seed in (10, 11) for lr in (3e-3, 5e-3, 9e-3)),
    ]
    assert len({c.plan.id for c in cells}) == len(cells)
    assert "  b x r2 x vader_movies: 3 learning rates x 2 repeats (seeds 10, 11)" in preview_study(
        compose_run(["+study=small", *words])
    )


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        ("{lora:[1e-3,2e-3]}", "study.parts.more.rates lacks learning rates for the family svd of the arm b"),
        ("{lora:[2e-3,1e-3],svd:[1e-3]}", r"study.parts.more.rates.lora=\[0.002, 0.001\] must be increasing"),
        ("{lora:[],svd:[1e-3]}", r"study.parts.more.rates.lora=\[\] must be increasing"),
    ],
)
def test_a_rate_curve_without_rates_for_a_family_or_out_of_order_is_refused(rates, said, small):
    with pytest.raises(UserError, match=said):
        expand("small", [*small, *CURVE, f"+study.parts.more.rates={rates}"])


# -- the plan --------------------------------------------------------------------------------------------------


def test_the_plan_of_a_study_names_groups_dependencies_and_its_family_and_writes_nothing(small, tmp_path):
    text = preview_study(compose_run(["+study=small", *small]))
    for line in (
        "  a x r4 x vader_movies: 3 learning rates x 2 repeats (seeds 0, 1)",
        "  c x r4 x vader_movies: waits for the tuning of the arm that gives it its ranks",
        "main (confirmatory), 21 runs",
        "  b x r4 x vader_movies: 7 repeats (seeds 10..16), waits for the tuning",
        "family: b - a, c - a at r4: m = 2, holm, alpha = 0.05",
        "0 of 37 done; 25 wait until the tuning has chosen their learning rate",
        "no stored time for 12 runs",
    ):
        assert line in text.splitlines(), text
    assert not (tmp_path / "runs").exists()


def test_the_plan_counts_what_is_done_and_takes_times_from_runs_that_are_alike(small):
    config = compose_run(["+study=small", *small])
    work = Pretender(middle)
    first = [cell.plan for cell in cells_of(config) if cell.arm == "a"][:2]
    work(first)
    text = preview_study(config)
    assert "  a x r4 x vader_movies: 3 learning rates x 2 repeats (seeds 0, 1), 2 done" in text.splitlines()
    # every open trial has the task, model, data and trainer of a stored run of 12 s, whatever its method
    assert "about 2 min of work for 10 runs, from stored runs like them" in text
    run_study(config, work)
    text = preview_study(config)
    assert (
        "  c x r4 x vader_movies: 7 repeats (seeds 10..16), 7 done, after vader_movies/elalora-r4" in text.splitlines()
    )
    assert "43 of 43 done" in text.splitlines()


def test_the_plan_of_a_sweep_shows_repeats_and_missing_sources(tmp_path):
    base = [f"store.root={tmp_path}"]
    arms = [["method=lora"], ["method=svd_lora", "method.ranks_from=elalora"]]
    text = preview([make_plan(config(*base, *arm, f"seed={s}")) for arm in arms for s in range(3)])
    assert "  vader_movies/lora-r4: 3 repeats (seeds 0..2)" in text.splitlines()
    assert "    after vader_movies/elalora-r4 (method.ranks_from), MISSING, run it first: 3" in text.splitlines()
    both = [make_plan(config(*base, *arm)) for arm in ([*arms[1]], ["method=elalora"])]
    assert "(method.ranks_from), in this plan: 1" in preview(both)


def test_plan_on_the_command_line_starts_nothing(monkeypatch, capsys, tmp_path):
    import run

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["run.py", "method=lora", "--plan", f"store.root={tmp_path}/runs"])
    assert run.main() == 0
    assert "vader_movies/lora-r4: 1 repeat (seed 0)" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_a_damaged_result_is_no_evidence_of_time(tmp_path):
    folder = tmp_path / "vader_movies" / "x-0123456789"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"cost": None}))
    assert "no stored time for 1 run" in preview([make_plan(config(f"store.root={tmp_path}"))])


def test_the_plan_says_which_difference_the_seeds_can_find(small):
    config = compose_run(["+study=small", *small, "study.family.sd=0.6", "study.family.margin=0.5"])
    lines = preview_study(config).splitlines()
    assert "  7 seeds: the smallest p is 0.016, and 0.05 / 2 = 0.025 is needed" in lines
    [found] = [line for line in lines if "standard deviation" in line]
    assert "of 0.60 points (declared)" in found and "with 80% power (level 0.05 / 2)" in found
    least = float(found.split("a difference of ")[1].split()[0])
    assert power(least, 0.6, 7, 0.025) == pytest.approx(0.8, abs=0.01)
    between = f"  a true difference between 0.5 (the margin) and {least:.2f} points often gets no verdict"
    assert between in lines
    plain = preview_study(compose_run(["+study=small", *small]))
    assert "set study.family.sd to a pilot's standard deviation" in plain


def test_max_t_reaches_its_level_with_fewer_seeds(small):
    six = "study.parts.main.seeds='10,11,12,13,14,15'"
    assert expand("small", [*small, six, "study.family.correction=maxt"])


def test_a_margin_or_sd_that_is_no_distance_is_refused(small):
    for word in ("margin=0", "sd=-1"):
        with pytest.raises(UserError, match=f"study.family.{word}.* must be above 0, in points"):
            expand("small", [*small, f"study.family.{word}"])


@pytest.mark.parametrize(("sd", "pairs", "alpha"), [(0.6, 8, 0.05), (1.3, 10, 0.0125), (0.2, 30, 0.05)])
def test_the_least_effect_is_found_with_the_power_asked_for_in_simulated_t_tests(sd, pairs, alpha):
    from scipy import stats

    effect = least_effect(sd, pairs, alpha)
    x = np.random.default_rng(0).normal(effect, sd, (20_000, pairs))
    assert np.mean(stats.ttest_1samp(x, 0, axis=1).pvalue <= alpha) == pytest.approx(0.8, abs=0.012)
