"""Bytes of a training step, counted and not sampled: they do not depend on the allocator or on other processes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from experiments.bench.arms import Arm


def counted(arm: Arm) -> dict[str, int]:
    """Bytes that a step holds.

    Returns:
        parameters: of the whole model; state: optimizer and method, after a step; gradients: of everything that
        trains; saved: distinct storages kept for the backward pass, parameters not counted again; total: their sum.
    """
    saved: dict[int, int] = {}
    own = _storages(arm.model.parameters())

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    kept: list[Any] = []  # keeps saved tensors alive, so that no address is used twice within the step
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or pack(t), lambda t: t):  # type: ignore[func-returns-value]
        arm.step()
    kept.clear()
    parts = {
        "parameters": sum(own.values()),
        "state": sum(_storages(arm.tensors()).values()),
        "gradients": sum(p.numel() * p.element_size() for p in arm.model.parameters() if p.requires_grad),
        "saved": sum(saved.values()),
    }
    return parts | {"total": sum(parts.values())}


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
