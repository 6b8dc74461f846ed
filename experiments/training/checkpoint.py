"""Checkpoint folders of safetensors and JSON only, so that reading one can never run code.

A checkpoint is a folder step-N with tensors.safetensors, state.json and digests.json. It is written under another
name and moved into place. One whose digests do not match is corrupt and skipped. One that is intact and belongs to
another run or version is an error: nothing is overwritten silently. After restoring, the state is compared with
what was read, so that nothing a checkpoint lacks silently keeps its initial value.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from elalora.errors import UserError
from elalora.method import Method
from elalora.optim import RowwiseAdamW
from elalora.schedules import Schedule
from experiments.runtime.files import sync_folder

SCHEMA = 4
KEPT = 2
RESTART = "delete or move the folder to restart from scratch"


def collect(model: nn.Module, method: Method, optimizer: RowwiseAdamW, schedule: Schedule) -> dict[str, Any]:
    """Everything a run needs to resume: tensors and JSON values, by flat names."""
    state: dict[str, Any] = {f"model/{n}": p.detach() for n, p in trained(model).items()}
    state |= {f"method/{name}": value for name, value in method.state_dict().items()}
    saved = optimizer.state_dict()
    for index, moments in saved["state"].items():
        state |= {f"optimizer/{index}/{name}": value for name, value in moments.items()}
    state["groups"] = [{k: v for k, v in g.items() if k != "params"} for g in saved["param_groups"]]
    state["schedule"] = schedule.state_dict()
    return state


def restore(
    state: dict[str, Any], model: nn.Module, method: Method, optimizer: RowwiseAdamW, schedule: Schedule
) -> None:
    """Restores what `collect` returned; ranks first, because shapes depend on them.

    Raises:
        Exception: of many kinds, where the state has less or more than `collect` returns here; the run is then partly
            restored and must not be used.
    """
    method.load_state_dict({n[7:]: v for n, v in state.items() if n.startswith("method/")})
    for name, parameter in trained(model).items():
        saved = state[f"model/{name}"]
        if saved.shape != parameter.shape:
            raise ValueError(f"{name} has shape {tuple(saved.shape)}, here {tuple(parameter.shape)}")
        parameter.data.copy_(saved)
    moments: dict[int, dict[str, Any]] = {}
    for name, value in state.items():
        if name.startswith("optimizer/"):
            _, index, kind = name.split("/")
            moments.setdefault(int(index), {})[kind] = value
    groups = [
        # training changes these two: the schedule the first, ElaLoRA's D4 the second
        {**group, "lr": saved["lr"], "weight_decay": saved["weight_decay"]}
        for group, saved in zip(optimizer.state_dict()["param_groups"], state["groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    schedule.load_state_dict(state["schedule"])
    _compare(state, collect(model, method, optimizer, schedule))


def _compare(read: dict[str, Any], restored: dict[str, Any]) -> None:
    """Raises ValueError where the restored state is not what was read, to the last bit."""
    for name in sorted(read.keys() | restored.keys()):
        if name not in read or name not in restored:
            raise ValueError(f"{name} is {'missing' if name not in read else 'unknown to this run'}")
        if not _same(read[name], restored[name]):
            raise ValueError(f"{name} has another type or shape")


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(_bits(one), _bits(other))
    return not isinstance(one, Tensor) and not isinstance(other, Tensor) and json.dumps(one) == json.dumps(other)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def check_form(read: dict[str, Any], fresh: dict[str, Any]) -> None:
    """Checks the JSON values of method, optimizer and schedule against those of a run before its first step.

    What a method stores is its own affair, so that only an example says which keys and types to expect.

    Raises:
        ValueError: a value is missing or has another form.
    """
    for name, like in fresh.items():
        if not isinstance(like, Tensor) and not (name in read and _alike(read[name], like)):
            raise ValueError(f"{name} {'has another form' if name in read else 'is missing'}")


def _alike(value: Any, like: Any) -> bool:
    """Whether a JSON value has the same keys and types as another, and neither NaN nor infinity.

    Lists may have any length, and an empty list or object in `like` accepts any content; null stands for a number that
    is not known yet.
    """
    if isinstance(like, dict):
        if not isinstance(value, dict) or like and value.keys() != like.keys():
            return False
        return all(_alike(value[key], part) for key, part in like.items())
    if isinstance(like, list | tuple):
        return isinstance(value, list) and (not like or all(_alike(part, like[0]) for part in value))
    if like is None or isinstance(like, float):
        return value is like is None or type(value) in (int, float) and math.isfinite(value)
    return type(value) is type(like)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def save(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Writes step-N under `folder`, completely or not at all."""
    from safetensors.torch import save_file

    for left in folder.glob(".part-*"):
        shutil.rmtree(left)  # of an attempt that was killed while writing
    part = folder / f".part-{os.getpid()}"
    part.mkdir(parents=True)
    try:
        tensors = {n: v.detach().cpu().clone().contiguous() for n, v in state.items() if isinstance(v, Tensor)}
        save_file(tensors, part / "tensors.safetensors")
        rest = {n: v for n, v in state.items() if not isinstance(v, Tensor)}
        rest |= {"tensors": sorted(tensors), "step": step, "schema": SCHEMA}
        (part / "state.json").write_text(json.dumps(rest), encoding="utf-8")
        digests = {name: _digest(part / name) for name in ("tensors.safetensors", "state.json")}
        (part / "digests.json").write_text(json.dumps(digests), encoding="utf-8")
        for file in part.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        sync_folder(part)
        target = _path(folder, step)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(part, target)
    except OSError:
        shutil.rmtree(part, ignore_errors=True)
        raise
    sync_folder(folder)


def drop(folder: Path, keep: set[int]) -> None:
    """Removes every checkpoint under `folder` but those of the steps in `keep`."""
    for step in set(steps(folder)) - keep:
        shutil.rmtree(_path(folder, step), ignore_errors=True)


def best_step(state: dict[str, Any] | None) -> int | None:
    """The step of the best checkpoint that a checkpoint refers to, None without one."""
    try:
        return int(state["progress"]["best"]["step"]) if state is not None else None
    except (KeyError, TypeError, ValueError):
        return None


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints under `folder`, the newest first."""
    return sorted((int(path.name[5:]) for path in folder.glob("step-*") if path.name[5:].isdecimal()), reverse=True)


def load(folder: Path, step: int) -> dict[str, Any] | None:
    """The state of one checkpoint, or None where it is missing or corrupt.

    Raises:
        UserError: it is intact, and another version or something else wrote it.
    """
    from safetensors.torch import load_file

    path = _path(folder, step)
    if not _whole(path):
        return None
    try:
        state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}/state.json cannot be read ({error}); {RESTART}") from error
    if not isinstance(state, dict):
        raise UserError(f"{path}/state.json is not a JSON object; {RESTART}")
    schema = state.pop("schema", None)
    if schema != SCHEMA:
        raise UserError(f"{path} has schema {schema}, this version reads schema {SCHEMA}; {RESTART}")
    if state.pop("step", None) != step:
        raise UserError(f"{path} is not of step {step} as its name says; {RESTART}")
    try:
        tensors = load_file(path / "tensors.safetensors")
    except SafetensorError as error:
        raise UserError(f"{path}/tensors.safetensors cannot be read ({error}); {RESTART}") from error
    if state.pop("tensors", None) != sorted(tensors):
        raise UserError(f"{path}/tensors.safetensors does not have the tensors that state.json lists; {RESTART}")
    return state | tensors


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def _whole(path: Path) -> bool:
    try:
        digests = json.loads((path / "digests.json").read_text(encoding="utf-8"))
        return all(_digest(path / name) == digests[name] for name in ("tensors.safetensors", "state.json"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
