"""GoRA: ranks and start from the gradient of the pretrained weights, once before training (arXiv 2502.12171).

    G_i  = mean over n batches of dL/dW_i                          at the pretrained weights, nothing is trained
    I_i  = mean |W_i * G_i|,   a_i = I_i / sum_j I_j               (elementwise product)
    r_i ~ a_i / f(d_in + d_out)                                    at the budget's sum, r_min <= r_i <= r_max
    W    = W0 + (alpha / sqrt(r_i)) B A                            A Kaiming-uniform
    B_0  = -(gamma sqrt(d_in) / alpha) G A^T (A A^T)^-1            so that the update starts near -gamma G

The update starts as the least-squares fit of a step of size gamma down the gradient, in the row space of A. The
authors' code has +G instead of -G: training then starts one step *up* the gradient. Both are built, as `variant=paper`
(-G, f = sqrt) and `variant=official` (+G, f = identity); the paper's text was read in a summary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from math import log1p, sqrt
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from elalora.adapters import LowRankLinear
from elalora.errors import UserError, check_choices, check_numbers
from elalora.measured import MeasuredRanks
from elalora.merging import is_quantised
from elalora.method import Capabilities
from elalora.resolve import RunSize

FEATURES = {"sqrt": sqrt, "identity": float, "log1p": log1p}


@dataclass
class GoRAConfig:
    """Settings of GoRA; None means the variant's value, or one that scales with the budget.

    Attributes:
        variant: "paper" or "official".
        alpha: numerator of the scale alpha / sqrt(r_i).
        batches: n, training batches of the mean gradient; fewer where the first epoch has fewer.
        gamma: size of the step that the start stands for; 0 starts at B = 0, as LoRA.
        uphill: start along +G instead of -G; None is False, and True in "official".
        features: f, "sqrt", "identity" or "log1p"; None is "sqrt", and "identity" in "official".
        root: take the square root of the importance.
        r_min, r_max: bounds of the ranks; None is max(1, N / 2) and 4 N.
    """

    variant: str = "paper"
    alpha: float = 16.0
    batches: int = 64
    gamma: float = 0.05
    uphill: bool | None = None
    features: str | None = None
    root: bool = False
    r_min: int | None = None
    r_max: int | None = None

    def __post_init__(self) -> None:
        check_choices(self, variant=("paper", "official"), features=(None, *FEATURES))
        check_numbers(self, "be above 0", "alpha")
        check_numbers(self, "not be negative", "gamma")
        check_numbers(self, "be at least 1", "batches", "r_min", "r_max")
        if self.r_min is not None and self.r_max is not None and self.r_min > self.r_max:
            raise UserError(f"method.r_min={self.r_min} is above method.r_max={self.r_max}: raise r_max")

    def resolved(self, size: RunSize) -> GoRAConfig:
        """The settings as they act, see `elalora.resolve`."""
        official = self.variant == "official"
        n = size.rank
        return replace(
            self,
            uphill=(official if self.uphill is None else self.uphill) and self.gamma > 0,
            features=self.features or ("identity" if official else "sqrt"),
            r_min=self.r_min if self.r_min or n is None else max(1, n // 2),
            r_max=self.r_max if self.r_max or n is None else 4 * n,
        )


class GoRA(MeasuredRanks):
    """See the module's docstring."""

    name: ClassVar[str] = "gora"
    title: ClassVar[str] = "GoRA"
    capabilities: ClassVar[Capabilities] = Capabilities(neutral=False)
    Config: ClassVar[type] = GoRAConfig
    config: GoRAConfig

    @property
    def reconstructed(self) -> bool:
        return self.config.variant == "paper"

    def initial_ranks(self, linears: Mapping[str, nn.Linear]) -> dict[str, int]:
        c, n = self.config, self.mean_rank
        assert c.r_min is not None and c.r_max is not None
        if not c.r_min <= n <= c.r_max:
            raise UserError(
                f"method.r_min={c.r_min} and method.r_max={c.r_max} leave no ranks with the mean {n} of the budget: "
                f"type method.r_min={min(c.r_min, n)} method.r_max={max(c.r_max, n)}"
            )
        for name, linear in linears.items():
            if is_quantised(linear):
                raise UserError(
                    f"method=gora reads the weight of '{name}', which is quantised: load the model in float"
                )
        return super().initial_ranks(linears)

    def scale(self, rank: int) -> float:
        return self.config.alpha / sqrt(max(1, rank))

    def measure(self, batches: Iterable[dict[str, Tensor]]) -> Mapping[str, int]:
        c = self.config
        assert c.features is not None and c.r_min is not None
        layers = {name: adapter.base for name, adapter in self.adapters.items()}
        self.gradients = mean_gradients(self.model, layers, islice(batches, c.batches))
        weights = {name: layer.weight.detach().cpu() for name, layer in layers.items()}
        importance = {name: float((weights[name] * g).abs().mean()) for name, g in self.gradients.items()}
        self.start_scores = {name: sqrt(value) if c.root else value for name, value in importance.items()}
        cost = {name: FEATURES[c.features](sum(layers[name].weight.shape)) for name in layers}
        return self.allocate({n: score / cost[n] for n, score in self.start_scores.items()}, c.r_min, c.r_max)

    @torch.no_grad()
    def start(self, name: str, adapter: LowRankLinear) -> None:
        super().start(name, adapter)
        if self.config.gamma:
            step = self.config.gamma * sqrt(adapter.in_features) / self.config.alpha
            b = step * fit(self.gradients[name], adapter.A)  # (d_out, r)
            adapter.B.copy_(b.T if self.config.uphill else -b.T)
        del self.gradients[name]


def fit(gradient: Tensor, a: Tensor) -> Tensor:
    """B (d_out, r) for which B A is nearest to the gradient, in the Frobenius norm.

    Args:
        gradient: (d_out, d_in).
        a: (r, d_in), of full row rank.
    """
    a = a.detach().double().cpu()
    return torch.linalg.solve(a @ a.T, a @ gradient.double().cpu().T).T


def mean_gradients(
    model: nn.Module, layers: Mapping[str, nn.Linear], batches: Iterable[dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Mean over batches of the gradient of each layer's weight, (d_out, d_in) on the CPU.

    The weights stay frozen. A layer's gradient is g^T x, from its input and the gradient of its output; it is made when
    the backward pass arrives there, so one full gradient at a time is on the device.

    Args:
        model: in evaluation mode.
        layers: by name.
        batches: keyword arguments of the model, with labels.
    """
    kinds = {name: torch.promote_types(layer.weight.dtype, torch.float32) for name, layer in layers.items()}
    sums = {name: torch.zeros(layer.weight.shape, dtype=kinds[name]) for name, layer in layers.items()}

    def tap(name: str, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        rows = args[0].detach().reshape(-1, args[0].shape[-1])  # (tokens, d_in)
        output = output if output.requires_grad else output.requires_grad_().clone()  # a leaf allows nothing in place

        def add(grad: Tensor) -> None:
            sums[name] += (grad.reshape(-1, grad.shape[-1]).to(kinds[name]).T @ rows.to(kinds[name])).cpu()

        output.register_hook(add)
        return output

    count = 0
    with ExitStack() as hooks, torch.enable_grad():
        for name, layer in layers.items():
            hooks.callback(layer.register_forward_hook(partial(tap, name)).remove)
        for batch in batches:
            model(**batch).loss.backward()
            model.zero_grad(set_to_none=True)  # of the head
            count += 1
    return {name: total / max(1, count) for name, total in sums.items()}
