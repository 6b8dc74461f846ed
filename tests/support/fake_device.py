"""A device that has no float64, as Apple's GPUs have none, on any machine.

Its tensors say that they lie on `DEVICE`, and their numbers are kept and computed by the CPU, so a run there must give
what a run on the CPU gives. Refused, as by a real device: float64 in any form, and an operation between this device
and the CPU (except for single numbers).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta", 1)
REFUSED = (torch.float64, torch.complex128)
COPIES = ("aten._to_copy.default", "aten.copy_.default")
INDEXED = ("aten.index.Tensor", "aten.index_put_.default", "aten.index_put.default")  # their indices may be the CPU's


class NoFloat64(TypeError):
    """What the device answers to float64."""


class OnDevice(torch.Tensor):
    """A tensor on the device, which holds its numbers in `kept`."""

    kept: torch.Tensor

    @staticmethod
    def __new__(cls, kept: torch.Tensor) -> OnDevice:
        if kept.dtype in REFUSED:
            raise NoFloat64(f"the device has no {kept.dtype}")
        made = torch.Tensor._make_wrapper_subclass(
            cls, kept.size(), strides=kept.stride(), storage_offset=kept.storage_offset(), dtype=kept.dtype,
            device=DEVICE, requires_grad=False,
        )  # fmt: skip
        made.kept = kept
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnDevice({self.kept})"

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.Tensor.data_ptr, torch.Tensor.tolist):
            return function(args[0].kept)
        if function in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            args = (args[0], _index(args[1]), *args[2:])
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


class _Device(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


class _Literals(TorchFunctionMode):
    """torch.tensor makes no numbers on a device of this type, so they are made on the CPU and copied."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.Tensor.new_tensor and isinstance(args[0], OnDevice):
            return function(args[0].kept, *args[1:], **kwargs).to(DEVICE)
        literal = function in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu") == DEVICE
        if literal:
            kwargs.pop("device")
        made = function(*args, **kwargs)
        return made.to(DEVICE) if literal else made


@contextmanager
def fake_device() -> Iterator[torch.device]:
    """Within it, what is put on `DEVICE` lies there, and accelerate puts everything there."""
    from accelerate import Accelerator

    enabled = torch.is_autocast_enabled

    def is_enabled(kind: str = "cpu") -> bool:
        return kind != DEVICE.type and enabled(kind)  # torch has no autocast for a device of this type

    with (
        patch.object(torch, "is_autocast_enabled", is_enabled),
        patch.object(torch, "inference_mode", torch.no_grad),  # views of a wrapped tensor need a version counter
        patch.object(Accelerator, "device", DEVICE),
        _Device(),
        _Literals(),
    ):
        yield DEVICE


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    inside = any(isinstance(tensor, OnDevice) for tensor in given)
    target = kwargs.get("device")
    there = inside if target is None else torch.device(target) == DEVICE
    if not inside and not there:
        return function(*args, **kwargs)
    assert all(isinstance(tensor, OnDevice) or tensor.device.type != DEVICE.type for tensor in given) or not inside
    if inside and str(function) not in (*COPIES, *INDEXED):
        for tensor in given:
            if not isinstance(tensor, OnDevice) and tensor.ndim:
                raise RuntimeError(f"{function} of a tensor on the device and one of the CPU, {tuple(tensor.shape)}")
    if str(function) == "aten.copy_.default":
        there = isinstance(args[0], OnDevice)
    plain = {**kwargs, "device": torch.device("cpu")} if target is not None else kwargs
    out = function(*tree_map(_kept, args), **tree_map(_kept, plain))
    if not there:
        return out.clone() if isinstance(out, torch.Tensor) and str(function) == "aten._to_copy.default" else out
    if target is not None and not inside or str(function) == "aten._to_copy.default":
        return tree_map(_put, out)
    return return_and_correct_aliasing(function, args, kwargs, tree_map(_put, out))


def _index(key: Any) -> Any:
    """An index with tensors of the CPU in place of lists, of which torch would make tensors without numbers here."""
    if isinstance(key, tuple):
        return tuple(map(_index, key))
    return torch.tensor(key, dtype=None if key else torch.int64) if isinstance(key, list) else key


def _kept(value: Any) -> Any:
    return value.kept if isinstance(value, OnDevice) else value


def _put(value: Any) -> Any:
    return OnDevice(value) if isinstance(value, torch.Tensor) else value
