"""Rolling checkpoints of safetensors and JSON only: nothing that is read back can run code.

A checkpoint is a folder step-N with tensors.safetensors, state.json and digests.json. It is written under another
name and moved into place; the last two are kept, and one whose digests do not fit is passed over.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from elalora.method import Method
from elalora.optim import RowwiseAdamW
from elalora.schedules import Schedule

KEPT = 2


def collect(model: nn.Module, method: Method, optimizer: RowwiseAdamW, schedule: Schedule) -> dict[str, Any]:
    """Everything a run needs to go on: tensors and JSON values, by flat names."""
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
    """Puts back what `collect` took; ranks first, because the rest has their shape."""
    method.load_state_dict({n[7:]: v for n, v in state.items() if n.startswith("method/")})
    for name, parameter in trained(model).items():
        parameter.data.copy_(state[f"model/{name}"])
    moments: dict[int, dict[str, Any]] = {}
    for name, value in state.items():
        if name.startswith("optimizer/"):
            _, index, kind = name.split("/")
            moments.setdefault(int(index), {})[kind] = value
    params = [group["params"] for group in optimizer.state_dict()["param_groups"]]
    groups = [{**g, "params": p} for g, p in zip(state["groups"], params, strict=True)]
    for group in groups:
        group["betas"] = tuple(group["betas"])
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    schedule.load_state_dict(state["schedule"])


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def save(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Writes step-N under `folder` and drops all but the last two."""
    from safetensors.torch import save_file

    part = folder / f".part-{os.getpid()}"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    tensors = {n: v.detach().cpu().clone().contiguous() for n, v in state.items() if isinstance(v, Tensor)}
    save_file(tensors, part / "tensors.safetensors")
    rest = {n: v for n, v in state.items() if not isinstance(v, Tensor)} | {"step": step}
    (part / "state.json").write_text(json.dumps(rest), encoding="utf-8")
    digests = {name: _digest(part / name) for name in ("tensors.safetensors", "state.json")}
    (part / "digests.json").write_text(json.dumps(digests), encoding="utf-8")
    for file in part.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    target = folder / f"step-{step:08d}"
    shutil.rmtree(target, ignore_errors=True)
    os.replace(part, target)
    for old in sorted(folder.glob("step-*"))[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def load(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """The newest checkpoint that is whole, as (step, state), or None."""
    from safetensors.torch import load_file

    for path in sorted(folder.glob("step-*"), reverse=True):
        if not _whole(path):
            continue
        state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
        step = state.pop("step")
        return step, state | load_file(path / "tensors.safetensors")
    return None


def _whole(path: Path) -> bool:
    try:
        digests = json.loads((path / "digests.json").read_text(encoding="utf-8"))
        return all(_digest(path / name) == digests[name] for name in ("tensors.safetensors", "state.json"))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
