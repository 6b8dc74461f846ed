"""A checkpoint whose digests fit and whose content does not: taken up whole, or one line; never half a run anew.

What is unusual: each example is a stopped run with a real checkpoint of a real method, of which some tensors or JSON
values were changed, left out, or taken from another method's. What a resumed trainer then holds must be what was read.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import pytest
import torch
from fuzzing import fuzzed, outcome, spoiled
from hypothesis import note
from hypothesis import strategies as st
from tiny_model import make_tiny_model
from torch import Tensor

from elalora.method import MethodFailure
from experiments.config.compose import compose_run
from experiments.runs.plan import Plan, make_plan
from experiments.runs.prepare import prepare
from experiments.runs.run import RunFailed, run
from experiments.tools.kill_harness import ARMS, BASE, write_data
from experiments.training import checkpoint
from experiments.training.readout import NotFinite
from experiments.training.trainer import Trainer

METHODS = {name: ARMS[name] for name in ("elalora", "adalora", "sora", "prilora", "beamlora", "full")} | {
    "peft": ["method=peft", "method.tuner=ADALORA", "+method.options.tinit=3", "+method.options.tfinal=6"]
}
EARLY, LATE = 9, 21  # newest checkpoints of the stopped runs: between two rounds, and after a best one
WORLD = TemporaryDirectory()


@functools.cache
def words() -> list[str]:
    folder = Path(WORLD.name)
    (folder / "model").mkdir()
    make_tiny_model(folder / "model")
    return [*BASE, *write_data(folder), f"model.path={folder / 'model'}", f"data.cache={folder / 'cache'}"]


def plan_of(method: str, store: Path) -> Plan:
    return make_plan(compose_run([*words(), *METHODS[method], f"store.root={store}"]))


@functools.cache
def stopped(method: str, last: int) -> tuple[Path, dict[str, Any], dict[str, Any] | None]:
    """The folder of a run that stopped after step `last`, and the states of its newest and its best checkpoint."""
    plan = plan_of(method, Path(WORLD.name) / f"{method}-{last}")
    plain = Trainer._step

    def step(trainer: Trainer, number: int) -> Tensor:
        if number > last:
            raise OSError("stopped here")
        return plain(trainer, number)

    with mock.patch.object(Trainer, "_step", step):
        try:
            run(plan)
        except RunFailed:
            pass
    folder = plan.folder.path / "checkpoint"
    newest = checkpoint.load(folder, last)
    assert newest is not None and checkpoint.steps(folder) == [last, last - 3]
    best = newest["progress"]["best"]
    return plan.folder.path, newest, best and checkpoint.load(folder / "best", best["step"])


def trainer_of(plan: Plan) -> Trainer:
    """A trainer as the runner makes one, with nothing to show."""
    from experiments.runtime.display import RunDisplay, silent_console
    from experiments.training.recorder import Recorder
    from experiments.training.resume import Checkpoints
    from experiments.training.tracking import Tracker

    prepared, config = prepare(plan), plan.config
    display = RunDisplay("", prepared.method.total_steps, silent_console())
    recorder = Recorder(plan.folder, display, Tracker())
    checkpoints = Checkpoints(plan.folder, plan.id, config.store.checkpoint_every)
    return Trainer(prepared, config.trainer, config.seed, recorder, checkpoints)


CHANGES = {
    "left out": lambda t: None,
    "one row": lambda t: t[:1],
    "flat": lambda t: t.reshape(-1),
    "one number": lambda t: t.reshape(-1)[:1].sum(),
    "empty": lambda t: t.reshape(-1)[:0],
    "one more dimension": lambda t: t[None],
    "in float64": lambda t: t.double(),
    "in float16": lambda t: t.half(),
    "as JSON": lambda t: t.reshape(-1)[:3].tolist(),
}
OTHER_NAMES = ("optimizer/99/step", "optimizer/x/y", "optimizer/0", "model/", "method/x:y", "groups", "progress")


@st.composite
def odd_states(draw: Any, best: bool = False) -> tuple[str, dict[str, Any]]:
    """A method's name, and the state of one of its checkpoints with something else in it."""
    methods = st.sampled_from(sorted(("elalora", "adalora", "full") if best else METHODS))
    method = draw(methods)
    state = state_of(method, best)
    kind = draw(st.sampled_from(("other method", *3 * ("values",), *4 * ("tensors",))))
    if kind == "other method":
        other = state_of(draw(methods), best)
        return method, {**other, **({} if best else {"progress": state["progress"]})}
    values = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if kind == "values":
        values = draw(spoiled(values, "step", "ranks", "lr").filter(lambda value: isinstance(value, dict)))
        return method, values | tensors
    for name in draw(st.lists(st.sampled_from(sorted(tensors)), min_size=1, max_size=2, unique=True)):
        state = changed(state, name, draw(st.sampled_from([*CHANGES, *OTHER_NAMES])))
    return method, state


def changed(state: dict[str, Any], name: str, how: str) -> dict[str, Any]:
    """A state with something else in place of a tensor, or the tensor under another name."""
    rest = {key: value for key, value in state.items() if key != name}
    new = CHANGES[how](state[name]) if how in CHANGES else state[name]
    return rest if new is None else rest | {name if how in CHANGES else how: new}


def state_of(method: str, best: bool) -> dict[str, Any]:
    state = stopped(method, LATE)[2] if best else stopped(method, EARLY)[1]
    assert state is not None
    return state


def resumed(method: str, last: int, change: Callable[[Path], None]) -> tuple[int, dict[str, Any]] | None:
    """Where a changed copy of a stopped run went on, and what its trainer held then; None where it was refused."""
    with TemporaryDirectory() as name:
        plan = plan_of(method, Path(name))
        shutil.copytree(stopped(method, last)[0], plan.folder.path)
        change(plan.folder.path / "checkpoint")
        trainer, before = trainer_of(plan), lines_of(plan.folder.path)
        if outcome(lambda: trainer.resume() or True) is None:
            assert lines_of(plan.folder.path) == before, "a refusal cut or wrote something"
            return None
        step, held = trainer.state.step, snapshot(trainer)
        try:  # what was taken up is enough to train with
            if last == LATE:
                trainer.run()
            else:
                for number in range(step, EARLY + 8):
                    trainer._step(number)
        except (MethodFailure, NotFinite) as error:  # numbers of the right kind may be bad ones
            note(str(error))
        return step, held


def lines_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.jsonl")}


def snapshot(trainer: Trainer) -> dict[str, Any]:
    losses = [float(loss) for loss in trainer.state.losses]
    progress = replace(trainer.state.progress, losses=losses)
    state = checkpoint.collect(*trainer.state.parts) | {"progress": asdict(progress)}
    return {name: v.clone() if isinstance(v, Tensor) else json.loads(json.dumps(v)) for name, v in state.items()}


def values_of(state: dict[str, Any]) -> str:
    """The JSON of a state but for the learning rates, which follow from the step, and the losses, which are rounded."""
    values = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    values["groups"] = [{**group, "lr": 0} for group in values["groups"]]
    values["progress"] = values["progress"] | {"losses": len(values["progress"]["losses"])}
    return json.dumps(values, sort_keys=True)


@pytest.mark.parametrize("part", ["model/bert.encoder.layer.0", "optimizer/0/exp_avg_sq", "method/importance.bert"])
@pytest.mark.slow
def test_no_change_of_a_tensor_is_taken_up(part: str) -> None:
    state = state_of("elalora", best=False)
    name = next(name for name in state if name.startswith(part) and state[name].ndim == 2)
    for how in (*CHANGES, *OTHER_NAMES):
        odd = changed(state, name, how)
        assert resumed("elalora", EARLY, lambda f, odd=odd: checkpoint.save(f, EARLY, odd)) is None, how


@fuzzed(40, quick=False, odd=odd_states())
def test_an_odd_checkpoint_is_taken_up_whole_or_refused_in_one_line(odd: tuple[str, dict[str, Any]]) -> None:
    method, state = odd
    found = resumed(method, EARLY, lambda folder: checkpoint.save(folder, EARLY, state))
    if found is None or found[0] < EARLY:
        return
    held = found[1]
    assert values_of(held) == values_of(state)
    names = {name for name in held.keys() | state.keys() if isinstance(held.get(name, state.get(name)), Tensor)}
    for name in names:
        assert held[name].dtype == state[name].dtype and torch.equal(held[name], state[name]), name


@fuzzed(8, quick=False, odd=odd_states(best=True))
def test_an_odd_best_checkpoint_is_taken_up_or_refused_in_one_line(odd: tuple[str, dict[str, Any]]) -> None:
    method, state = odd
    newest = stopped(method, LATE)[1]
    step = newest["progress"]["best"]["step"]
    resumed(method, LATE, lambda folder: checkpoint.save(folder / "best", step, state))
