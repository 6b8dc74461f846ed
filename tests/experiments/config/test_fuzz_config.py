"""Whatever the words of a command: a plan, or one line that says what is wrong."""

from __future__ import annotations

import contextlib
import io
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import pytest
from fuzzing import NASTY, SCALARS, WORDS, fuzzed
from hypothesis import assume
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tiny_runs import QUICK

import run
from elalora.errors import UserError
from experiments.config.compose import compose_run
from experiments.config.explain import explain
from experiments.runs.plan import make_plan
from experiments.studies.expansion import study_of

LONG = "a" * 300
LONGER = [*QUICK, "trainer.max_steps=100"]  # the default method has room in that
GROUPS = ["method", "task", "model", "budget", "protocol", "trainer", "recipe", "tracking", "study", "hydra/launcher"]
KEYS = [
    *GROUPS, "seed", "threads", "init_from", "overrides", "method.name", "method.k", "method.beta1", "method.variant",
    "task.name", "task.kind", "task.files.train", "task.labels", "task.metrics", "model.path", "model.targets",
    "budget.rank", "budget.params", "trainer.lr", "trainer.max_steps", "trainer.epochs", "trainer.warmup",
    "trainer.batch_size", "data.root", "data.cache", "store.root", "store.also", "study.name", "study.parts",
    "launcher.workers", "hydra.searchpath", "hydra.run.dir", "x", "a..b", "", "model.head[0]",
]  # fmt: skip
VALUES = [
    "3", "r4", "[a,b]", "{a:1}", "[", "${trainer.lr}", "${method}", "${oc.decode:'['}", "'elalora k=1'", "'task=nope'",
    "lora", "range(3)", "choice()", "1,2", "extend_list(3)", "1e400", "~x/y", LONG, "'~no_such_user/x'", "os:path", ":",
    ".a:B",
]  # fmt: skip
word = st.tuples(
    st.sampled_from(["", "", "", "+", "++", "~"]), st.sampled_from(KEYS), st.sampled_from([*VALUES, *NASTY]) | WORDS
).map(lambda parts: f"{parts[0]}{parts[1]}={parts[2]}")


def refused_or_planned(*words: str) -> str:
    """The line on stderr, empty for a plan; nothing is written either way."""
    out, err = io.StringIO(), io.StringIO()
    with TemporaryDirectory() as folder:
        given = ["run.py", "--plan", *LONGER, "model.path=nowhere/model", f"store.root={folder}/store", *words]
        with mock.patch.object(sys, "argv", given), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run.main()
        assert not list(Path(folder).iterdir())
    lines = err.getvalue().splitlines()
    assert (code, len(lines)) in ((0, 0), (2, 1)), (code, err.getvalue())
    if lines:
        assert lines[0].startswith("elalora: ") and len(lines[0]) < 2_100 and lines[0].isprintable()
    return "".join(lines)


@fuzzed(12, words=st.lists(word, min_size=1, max_size=2))
def test_any_words_are_a_plan_or_one_line(words: list[str]) -> None:
    assume(not any(w.startswith(("-", "hydra.run", "hydra.sweep")) for w in words))  # Hydra's own options
    refused_or_planned(*words)


IN_WORDS = {
    "seed=${x}": "'seed=${x}': Interpolation key 'x' not found",
    "trainer.lr=${trainer.lr}": "'trainer.lr=${trainer.lr}': Recursive interpolation detected",
    "budget.rank=${oc.env:NOPE}": "Environment variable 'NOPE' not found",
    "store=${oc.env:HOME}": "but store is a group of settings; type its values",
    "task={a:1}": "task is a group and takes a name: type task=NAME",
    "study.name=x": "type +study=NAME",
    f"+task.files.train={LONG}": "is not a valid path (File name too long)",
    "init_from='budget=4'": "'budget=4' is not valid: expected GROUP=NAME",
}


@pytest.mark.parametrize("words", IN_WORDS, ids=lambda words: words[:40])
def test_words_that_once_broke_out_say_what_is_wrong(words: str) -> None:
    assert IN_WORDS[words] in refused_or_planned(words)


@cache
def composed(*words: str) -> DictConfig:
    return compose_run([*LONGER, "model.path=nowhere/model", *words])


def changed(config: DictConfig, changes: list[tuple[str, Any]]) -> DictConfig | None:
    """A copy with some settings changed, or None where OmegaConf takes no such value."""
    config = config.copy()
    try:
        for key, value in changes:
            OmegaConf.update(config, key, value)
    except (OmegaConfBaseException, ValueError, OverflowError):
        return None
    return config


def leaves(config: DictConfig, *groups: str) -> list[str]:
    return [f"{group}.{key}" for group in groups for key in config[group]]


run_keys = st.sampled_from(
    [
        "seed",
        "threads",
        "init_from",
        *leaves(composed(), "method", "task", "model", "budget", "trainer", "data", "store"),
    ]
)
values = SCALARS | st.lists(SCALARS, max_size=2)


def one_line(error: Exception) -> None:
    line = explain(error)
    assert line.strip() and line.isprintable() and len(line) < 2_100


IN_VALUES = {
    "method.t_initial": (10**400, "method=elalora is out of range"),
    "method.name": (7, "method.name=7 is not a name"),
    "method.name ": ("os:path", "method.name=os:path is not a method"),
    "trainer.warmup": (float("nan"), "trainer.warmup=nan is neither"),
    "trainer.lr": (float("inf"), "trainer.lr=inf must be above 0 and finite"),
    "trainer.max_steps": (2**63, "must be above 0 and finite"),
    "threads": (-1, "threads=-1 must be at least 1"),
    "seed": (-1, "seed=-1 must be at least 0"),
    "seed ": (2**63, "must be at least 0 and below 2^63"),
    "budget.rank": (10**300, "is not a positive integer of at most 12 digits"),
    "task.name": ("../x", "task.name=../x becomes a folder name"),
    "store.root": (LONG, "is not a valid path (File name too long)"),
    "store.root ": ("a\0b", "is not a valid path (embedded null byte)"),
    "model.path": (LONG, "is not a valid path (File name too long)"),
    "data.root": ("~no_such_user/x", "is not a valid path (Could not determine home directory.)"),
    "init_from": (LONG, "names no run"),
    "init_from ": ("**", "names no run"),
}


@pytest.mark.parametrize("key", IN_VALUES)
def test_values_that_once_broke_out_say_what_is_wrong(key: str) -> None:
    value, message = IN_VALUES[key]
    config = changed(composed(), [(key.strip(), value)])
    assert config is not None
    with pytest.raises(UserError) as caught:
        make_plan(config)
    assert message in explain(caught.value)


@fuzzed(50, changes=st.lists(st.tuples(run_keys, values), min_size=1, max_size=2))
def test_a_plan_of_any_values_is_made_or_refused_in_one_line(changes: list[tuple[str, Any]]) -> None:
    config = changed(composed(), changes)
    assume(config is not None)
    try:
        plan = make_plan(config)
        assert len(plan.id) == 64 and plan.finished() is None and plan.label.isprintable()
    except (UserError, OmegaConfBaseException) as error:
        one_line(error)


STUDY = composed("+study=offline_main")
study_keys = st.sampled_from(
    [
        *leaves(STUDY, "study"),
        *(f"study.{part}.{key}" for part in ("tuning", "family", "small") for key in STUDY.study[part] or ()),
        *(f"study.parts.{name}.{key}" for name, part in STUDY.study.parts.items() for key in part),
        *(f"study.arms.{name}.{key}" for name, arm in STUDY.study.arms.items() for key in arm),
    ]
)
names = st.sampled_from(
    [
        *STUDY.study.arms,
        *STUDY.study.parts,
        "range(3)",
        "range(9,0)",
        "0,1",
        "confirmatory",
        "holm",
        f"range({'9' * 20})",
    ]
)


@fuzzed(
    20, changes=st.lists(st.tuples(study_keys, values | names | st.lists(names, max_size=3)), min_size=1, max_size=3)
)
def test_a_study_of_any_values_is_checked_or_refused_in_one_line(changes: list[tuple[str, Any]]) -> None:
    config = changed(STUDY, changes)
    assume(config is not None)
    try:
        study_of(config)
    except (UserError, OmegaConfBaseException) as error:
        one_line(error)


@pytest.mark.parametrize("key", ["study.family", "study.tuning", "study.parts", "study.arms"])
def test_an_interpolation_where_a_study_has_settings_is_one_line(key: str) -> None:
    config = changed(STUDY, [(key, "${oc.env:HOME}")])
    assert config is not None
    with pytest.raises(UserError, match=key):
        study_of(config)
