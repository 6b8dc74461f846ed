"""Full fine-tuning, head only and BitFit: the reference points of every comparison.

They have no budget, so one run of each serves all budgets. Their result is not a low-rank update: what they export is
every parameter that trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from elalora.errors import UserError
from elalora.method import Method


@dataclass
class NoSettings:
    """The methods of this file have no settings."""


class FullFineTuning(Method):
    """Every parameter trains."""

    name: ClassVar[str] = "full"
    title: ClassVar[str] = "Full fine-tuning"
    Config: ClassVar[type] = NoSettings

    def extra_parameters(self, model: nn.Module, keep: Sequence[str]) -> Iterable[nn.Parameter]:
        return model.parameters()


class HeadOnly(Method):
    """The task head trains on frozen features; the floor that an adapter has to beat."""

    name: ClassVar[str] = "head"
    title: ClassVar[str] = "Head only"
    Config: ClassVar[type] = NoSettings

    def extra_parameters(self, model: nn.Module, keep: Sequence[str]) -> Iterable[nn.Parameter]:
        if not keep:
            raise UserError("method=head trains the modules in model.head=[...], but none is named: type method=lora")
        return ()


class BitFit(Method):
    """Every bias and the task head train (Ben Zaken et al., arXiv 2106.10199), LayerNorm biases included."""

    name: ClassVar[str] = "bitfit"
    title: ClassVar[str] = "BitFit"
    Config: ClassVar[type] = NoSettings

    def extra_parameters(self, model: nn.Module, keep: Sequence[str]) -> Iterable[nn.Parameter]:
        biases = [p for name, p in model.named_parameters() if name.endswith("bias")]  # also q_bias, in_proj_bias
        if not biases:
            raise UserError("method=bitfit trains biases, but the model has none: type method=head or method=lora")
        return biases
