"""Full fine-tuning, head only and BitFit: what every budget is compared with.

None of them has a budget, so one run of each serves all budgets, and none has a low-rank form: the adapter they
leave is every parameter that trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from elalora.errors import UserError
from elalora.method import Method


@dataclass
class FullConfig:
    """Full fine-tuning has no choices of its own."""


@dataclass
class HeadConfig:
    """Training the head has no choices of its own."""


@dataclass
class BitFitConfig:
    """BitFit has no choices of its own."""


class FullFineTuning(Method):
    """Every parameter trains."""

    name: ClassVar[str] = "full"
    title: ClassVar[str] = "Full fine-tuning"
    Config: ClassVar[type] = FullConfig

    def attach(
        self,
        model: nn.Module,
        targets: Sequence[str],
        total_steps: int,
        keep: Sequence[str] = (),
        seed: int = 0,
    ) -> nn.Module:
        model = super().attach(model, targets, total_steps, keep, seed)
        model.requires_grad_(True)
        return model


class HeadOnly(Method):
    """The task head trains on frozen features; the floor that an adapter has to beat."""

    name: ClassVar[str] = "head"
    title: ClassVar[str] = "Head only"
    Config: ClassVar[type] = HeadConfig

    def attach(
        self,
        model: nn.Module,
        targets: Sequence[str],
        total_steps: int,
        keep: Sequence[str] = (),
        seed: int = 0,
    ) -> nn.Module:
        if not keep:
            raise UserError("method=head trains the modules in model.head, and this model has none: type method=lora")
        return super().attach(model, targets, total_steps, keep, seed)


class BitFit(Method):
    """Every bias and the task head train (Ben Zaken et al., arXiv 2106.10199), LayerNorm biases included."""

    name: ClassVar[str] = "bitfit"
    title: ClassVar[str] = "BitFit"
    Config: ClassVar[type] = BitFitConfig

    def attach(
        self,
        model: nn.Module,
        targets: Sequence[str],
        total_steps: int,
        keep: Sequence[str] = (),
        seed: int = 0,
    ) -> nn.Module:
        biases = [p for name, p in model.named_parameters() if name.endswith("bias")]  # also q_bias, in_proj_bias
        if not biases:
            raise UserError("method=bitfit trains biases, and the model has none: type method=head or method=lora")
        model = super().attach(model, targets, total_steps, keep, seed)
        for bias in biases:
            bias.requires_grad_(True)
        return model
