"""Nearest class mean on frozen features: no training, one mean feature of every class.

    class of f = argmin_c |f - mu_c|^2 = argmax_c  mu_c . f - |mu_c|^2 / 2          metric=euclidean
                 argmax_c  mu_c . f / |mu_c|                                        metric=cosine

Either is a linear layer, so the means are written into the task head, and the trained loop does nothing else. New
classes add rows and change none, so it forgets nothing: what a method that trains in increments has to beat.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from elalora.errors import UserError, check_choices
from elalora.method import Method, Round
from elalora.optim import RowwiseAdamW


@dataclass
class ClassMeansConfig:
    """Settings of class means.

    Attributes:
        metric: distance to a mean: "euclidean" or "cosine".
    """

    metric: str = "euclidean"

    def __post_init__(self) -> None:
        check_choices(self, metric=("euclidean", "cosine"))


class ClassMeans(Method):
    """See the module's docstring.

    Attributes:
        sums, counts: of the features of every class so far, (classes, d) and (classes,).
    """

    name: ClassVar[str] = "class_means"
    title: ClassVar[str] = "Class means"
    Config: ClassVar[type] = ClassMeansConfig
    config: ClassMeansConfig

    def attach(
        self, model: nn.Module, targets: Sequence[str], total_steps: int, keep: Sequence[str] = (), seed: int = 0
    ) -> nn.Module:
        model = super().attach(model, targets, total_steps, keep, seed)
        layers = [layer for name in keep for layer in model.get_submodule(name).modules()]
        linears = [layer for layer in layers if isinstance(layer, nn.Linear)]
        if not linears:
            raise UserError("method=class_means writes into a linear layer of model.head=[...], but there is none")
        bias: Tensor | None = getattr(linears[-1], "bias", None)
        if bias is None and self.config.metric == "euclidean":
            raise UserError("method.metric=euclidean needs a head with a bias: type method.metric=cosine")
        self.model, self.layer = model, linears[-1]
        self.sums = torch.zeros_like(self.layer.weight, dtype=torch.float64, requires_grad=False)
        self.counts = self.sums.new_zeros(len(self.sums))
        return model

    @property
    def batches_wanted(self) -> bool:
        return True

    def prepare(self, batches: Iterable[dict[str, Tensor]], ranks: Mapping[str, int] | None = None) -> None:
        self._read(batches)

    def begin_increment(
        self, number: int, step: int, optimizer: RowwiseAdamW, batches: Iterable[dict[str, Tensor]]
    ) -> Round | None:
        self._read(batches)
        return None

    def gradients_ready(self, step: int) -> None:
        for parameter in self.model.parameters():
            parameter.grad = None

    @torch.no_grad()
    def _read(self, batches: Iterable[dict[str, Tensor]]) -> None:
        """Adds the features of these items to their classes and writes the means into the head."""
        features: list[Tensor] = []
        hook = self.layer.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
        training = self.model.training
        self.model.eval()
        for batch in batches:
            self.model(**{name: tensor for name, tensor in batch.items() if name != "labels"})
            found = features.pop().to(self.sums)  # (b, d)
            labels = batch["labels"].to(self.sums.device)
            self.sums.index_add_(0, labels, found)
            self.counts.index_add_(0, labels, found.new_ones(len(found)))
        self.model.train(training)
        hook.remove()
        self._write()

    def _write(self) -> None:
        known = self.counts > 0
        means = self.sums[known] / self.counts[known, None]
        offsets = -means.square().sum(1) / 2
        if self.config.metric == "cosine":
            means, offsets = nn.functional.normalize(means), torch.zeros_like(offsets)
        self.layer.weight[known] = means.to(self.layer.weight)
        bias: Tensor | None = getattr(self.layer, "bias", None)
        if bias is not None:
            bias[known] = offsets.to(bias)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"sums": self.sums, "counts": self.counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.sums.copy_(state["sums"])
        self.counts.copy_(state["counts"])
