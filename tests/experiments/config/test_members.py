"""Members of a sweep are composed once for all that choose the same files, and are what Hydra composes of each."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from tiny_runs import ROOT

import run
from experiments.config.compose import _composed, _whole, chosen, compose_run
from experiments.config.members import Repeat
from experiments.config.mistakes import MISTAKES, mistakes
from experiments.config.schema import register
from experiments.runs import plan as planning
from experiments.runs.plan import Plan, make_plan, make_plans, plan_of

CONF = ROOT / "conf"
GROUPS = ("method", "task", "model", "budget", "protocol", "trainer", "recipe", "tracking")
FILES = {group: sorted(path.stem for path in (CONF / group).glob("*.yaml")) for group in GROUPS}
VALUES = [
    "seed=7", "seed=0", "trainer.lr=1e-3", "trainer.lr=5", "trainer.max_steps=null", "trainer.max_steps=9",
    "trainer.epochs=2", "trainer.warmup=0.1", "model.targets=[query,value]", "model.dropout=0.0", "task.max_length=64",
    "data.train_items=null", "data.train_items=40", "store.also=[a,b]", "store.root='a b'", "threads=2",
    "task.files={train: x.csv}", "task.metrics=[accuracy]", "init_from=null", "trainer.max_grad_norm=null",
    "method.k=3", "+method.extra=1", "~method.name", "++trainer.lr=2e-3", "trainer.lr=${seed}", "trainer.lr=a",
    "model.name=other", "budget.params=330000", "trainer.nothing=1", "task.verify=false", "protocol.split_seed=3",
]  # fmt: skip
WORDS = st.lists(
    st.one_of(
        st.sampled_from(VALUES),
        st.sampled_from([f"{group}={name}" for group in GROUPS for name in FILES[group]]),
    ),
    max_size=5,
)


def by_hydra(words: list[str]) -> dict[str, Any] | str:
    """What Hydra composes of all words at once, unresolved, or the kind of its error."""
    register()
    try:
        with mistakes(words), initialize_config_dir(str(CONF), version_base="1.3"):
            return dict(OmegaConf.to_container(compose("config", words)))  # type: ignore[arg-type]
    except MISTAKES as error:
        return str(error)


def by_us(words: list[str]) -> dict[str, Any] | str:
    try:
        config = dict(OmegaConf.to_container(compose_run(words)))  # type: ignore[arg-type]
    except MISTAKES as error:
        return str(error)
    assert config["overrides"] == words
    return config | {"overrides": None, "recipe": config["recipe"] | {"changed": []}}


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(WORDS)
def test_words_in_any_order_give_what_hydra_gives(words: list[str]) -> None:
    assert by_us(words) == by_hydra(words)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.permutations(GROUPS).flatmap(lambda groups: st.tuples(*(st.sampled_from(FILES[g]) for g in groups[:4])).map(
    lambda names: [f"{group}={name}" for group, name in zip(groups, names, strict=False)]
)), st.lists(st.sampled_from(VALUES[:21]), max_size=2))  # fmt: skip
def test_choices_of_several_groups_give_what_hydra_gives_with_the_names_it_records(
    choices: list[str], values: list[str]
) -> None:
    assert by_us([*choices, *values]) == by_hydra([*choices, *values])
    with suppress(*MISTAKES):
        words, recorded = tuple(choices), chosen(tuple(choices), _composed)[1].choices
        assert recorded == _composed(words)[1].choices


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_every_file_of_conf_gives_what_hydra_gives_with_values_behind_it(group: str) -> None:
    for name in FILES[group]:
        words = ["seed=3", f"{group}={name}", "trainer.lr=2e-3", "task.max_length=32", "data.train_items=10"]
        assert by_us(words) == by_hydra(words), name


def test_an_arm_at_several_learning_rates_is_put_together_once() -> None:
    words = ["method=elalora", "task=rte", "budget=r4", "model=deberta_v3_base"]
    _whole.cache_clear()
    configs = [compose_run([*words, f"trainer.lr={rate}"]) for rate in (0.001, 0.002, 0.004)]
    assert [config.trainer.lr for config in configs] == [0.001, 0.002, 0.004]
    assert _whole.cache_info().misses == 1


def members(monkeypatch: pytest.MonkeyPatch, *words: str) -> list[Any]:
    """What run.py composes of a sweep."""
    got: list[Any] = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["run.py", "--plan", "-m", *words])
    monkeypatch.setattr("experiments.start.show_all", lambda found: got.extend(found) or 0)
    assert run.main() == 0
    return got


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every composition by Hydra during a test."""
    made: list[Any] = []
    load = ConfigLoaderImpl._load_configuration_impl

    def counted(self: Any, *args: Any, **more: Any) -> Any:
        made.append(more or args)
        return load(self, *args, **more)

    monkeypatch.setattr(ConfigLoaderImpl, "_load_configuration_impl", counted)
    return made


def test_choices_of_a_sweep_add_compositions_and_do_not_multiply_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, loads: list[Any]
) -> None:
    """Counts, not seconds: 36 members of 3 methods, 3 tasks and 2 budgets need one composition beside Hydra's two."""
    words = ("method=lora,svd_lora,adalora", "task=rte,cola,vader_movies", "budget=r2,r4", "seed=0,1")
    got = members(monkeypatch, *words, "recipe=matched", f"store.root={tmp_path}/runs")
    assert len(got) == 36 and len(loads) <= 2 + 1
    del loads[:]
    plans = make_plans(got)
    assert len({plan.id for plan in plans}) == 36 and not loads
    alone = [make_plan(compose_run(list(plan.config.overrides))) for plan in plans[::7]]
    assert [same(one) for one in alone] == [same(one) for one in plans[::7]]


def test_another_seed_of_a_planned_arm_composes_nothing_and_opens_no_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, loads: list[Any]
) -> None:
    arms = [("method=lora",), ("method=svd_lora", "method.ranks_from='elalora trainer.lr=2e-3'")]
    words = [(*arm, "recipe=matched", f"store.root={tmp_path}") for arm in arms]
    first = [plan_of((*arm, "seed=0")) for arm in words]
    del loads[:]
    opened: list[Any] = []
    monkeypatch.setattr("builtins.open", lambda *args, **more: opened.append(args) or pytest.fail("a file was opened"))
    more = [plan_of((*arm, f"seed={seed}")) for arm in words for seed in range(1, 40)]
    monkeypatch.undo()
    assert not loads and not opened and len({plan.id for plan in (*first, *more)}) == 80


def test_a_sweep_composes_once_for_each_choice_of_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, loads: list[Any]
) -> None:
    """Counts, not seconds: 60 members, two methods, so two compositions beside Hydra's two for the command itself."""
    words = ("method=lora,elalora", "trainer.lr=1e-3,2e-3,3e-3", "seed=range(10)", f"store.root={tmp_path}/runs")
    got = members(monkeypatch, *words)
    assert len(got) == 60 and sum(isinstance(one, DictConfig) for one in got) == 6
    assert len(loads) <= 4
    made: list[Any] = []
    real = planning.make_plan
    monkeypatch.setattr(planning, "make_plan", lambda config: made.append(config) or real(config))
    plans = make_plans(got)
    assert len({plan.id for plan in plans}) == 60 and len(made) == 6
    alone = [make_plan(compose_run(list(plan.config.overrides))) for plan in plans[::7]]
    assert [same(one) for one in alone] == [same(one) for one in plans[::7]]


def same(plan: Plan) -> tuple[Any, ...]:
    """Everything that a run takes from its plan."""
    config = OmegaConf.to_container(plan.config, resolve=True)
    config["launcher"] = config["overrides"] = None  # type: ignore[index,call-overload]
    sources = [(source.setting, source.value, source.id, source.plan and source.plan.seed) for source in plan.sources]
    own = vars(plan.method_config)
    return plan.id, plan.identity, str(plan.name), own, plan.budget, config, plan.folder.path, sources


def test_a_sweep_writes_nothing_where_it_is_composed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    members(monkeypatch, "method=lora", "seed=0,1", f"store.root={tmp_path}/runs")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from([word for word in VALUES if "seed" not in word and "model.name" not in word]), max_size=3),
    st.sampled_from(FILES["method"]),
    st.sampled_from(("vader_movies", "rte", "stsb", "xsum", "own")),
    st.sampled_from(("none", "matched", "published")),
    st.sampled_from(((), ("method.ranks_from=elalora",), ("method.ranks_from='elalora trainer.lr=1e-3 seed=3'",))),
    st.lists(st.integers(0, 10**6), min_size=2, max_size=3, unique=True),
)
def test_the_plan_of_a_further_seed_is_the_plan_of_its_command(
    values: list[str], method: str, task: str, recipe: str, source: tuple[str, ...], seeds: list[int]
) -> None:
    for seed in seeds:
        words = (f"method={method}", f"seed={seed}", f"task={task}", f"recipe={recipe}", "store.root=/nowhere")
        words = (*words, *source, *values)
        try:
            alone = make_plan(compose_run(list(words)))
        except MISTAKES as error:
            with pytest.raises(type(error)):
                plan_of(words)
            continue
        assert same(plan_of(words)) == same(alone)
        assert list(plan_of(words).config.overrides) == list(words)


def test_a_transplant_of_another_seed_takes_the_ranks_of_that_seed(tmp_path: Path) -> None:
    for seed in (0, 1):
        words = ("method=svd_lora", "method.ranks_from=elalora", f"seed={seed}", f"store.root={tmp_path}")
        plan = plan_of(words)
        assert same(plan) == same(make_plan(compose_run(list(words)))) and plan.sources[0].plan is not None
        assert plan.sources[0].plan.seed == seed


def test_a_value_that_follows_the_seed_is_composed_for_every_seed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    got = members(monkeypatch, "method=lora", "seed=1,2", "data.train_items=${seed}", f"store.root={tmp_path}/runs")
    assert [plan.identity["data"]["train_items"] for plan in make_plans(got)] == [1, 2]
    (tmp_path / "trainer").mkdir()
    text = (CONF / "trainer" / "standard.yaml").read_text() + "\nmax_steps: ${seed}\n"
    (tmp_path / "trainer" / "mine.yaml").write_text(text.replace("max_steps: null\n", ""))
    folder = f"hydra.searchpath=[file://{tmp_path}]"
    got = members(monkeypatch, "method=lora", "seed=40,50", "trainer=mine", folder, f"store.root={tmp_path}/runs")
    assert isinstance(got[1], Repeat)
    assert [plan.identity["trainer"]["max_steps"] for plan in make_plans(got)] == [40, 50]
