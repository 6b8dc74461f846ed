"""EVA: A from the principal components of the layers' inputs, and ranks where these explain most (arXiv 2410.07170).

    X_l = P_l S_l V_l^T                    inputs of layer l over a few batches, by incremental PCA
    A_l = the first r_l rows of V_l^T, B = 0,  W = W0 + (alpha / N) B A
    r_l   how many of the N n_mat largest explained-variance ratios of all layers are those of layer l

A layer can have up to rho N ranks, or none. PEFT finds components and ranks (`peft.get_eva_state_dict`); the adapters
are those of this project, so export, resuming and several processes are as for any method here. The same through PEFT's
own adapters is method=peft +method.options.init_lora_weights=eva.

peft is imported only when the method is used.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from itertools import islice
from typing import Any, ClassVar

import torch
from torch import Tensor

from elalora.adapters import LowRankLinear
from elalora.errors import UserError, check_numbers
from elalora.measured import IGNORED, MeasuredRanks, token_mask

from .prilora import sees_target


@dataclass
class EVAConfig:
    """Settings of EVA.

    Attributes:
        alpha: numerator of the scale alpha / N, the same in every matrix.
        rho: components of a layer that compete for ranks, as a multiple of N; 1 gives every matrix rank N.
        tau: cosine from which on a component counts as found.
        whiten: divide the components by the square root of their singular value.
        batches: training batches, which are read again until the components are found.
    """

    alpha: float = 16.0
    rho: float = 2.0
    tau: float = 0.99
    whiten: bool = False
    batches: int = 8

    def __post_init__(self) -> None:
        check_numbers(self, "be at least 1", "rho", "batches")
        check_numbers(self, "lie in [0, 1)", "tau")


class EVA(MeasuredRanks):
    """See the module's docstring."""

    name: ClassVar[str] = "eva"
    title: ClassVar[str] = "EVA"
    Config: ClassVar[type] = EVAConfig
    rank_advice: ClassVar[str] = "lower the budget or method.rho"
    config: EVAConfig

    def scale(self, rank: int) -> float:
        return self.config.alpha / self.mean_rank

    def measure(self, batches: Iterable[dict[str, Tensor]]) -> Mapping[str, int]:
        inputs = list(islice(batches, self.config.batches))
        assert self.budget is not None
        if self.budget.params is None:
            total = self.mean_rank * len(self.adapters)
        else:
            total = self._affordable(self.budget.params, inputs)
        self.components = self._found(inputs, total)
        return {name: len(self.components[name]) for name in self.adapters}

    def _affordable(self, params: int, inputs: list[dict[str, Tensor]]) -> int:
        """A rank sum whose layout costs at most `params`, while one rank more would cost more.

        Every sum that is tried reads the inputs again. The price need not grow with every rank.
        """
        costs = {name: adapter.cost for name, adapter in self.adapters.items()}

        def price(total: int) -> int:
            return sum(len(rows) * costs[name] for name, rows in self._found(inputs, total).items())

        least = max(len(costs), params // max(costs.values()))
        total = least + bisect.bisect_right(range(least, params // min(costs.values()) + 1), params, key=price) - 1
        while price(total) > params:
            total -= 1
        return total

    def _found(self, inputs: list[dict[str, Tensor]], total: int) -> dict[str, Tensor]:
        """PEFT's components (r, d_in) of every matrix, with `total` ranks among all of them."""
        import peft

        c, (rank, more) = self.config, divmod(total, len(self.adapters))
        needed = round((rank + (more > 0)) * c.rho)
        if max(_tokens(batch) for batch in inputs) < needed:
            raise UserError(
                f"EVA needs a batch of at least rho N = {needed} tokens, the largest of {len(inputs)} has "
                f"{max(_tokens(batch) for batch in inputs)}: raise trainer.batch_size or lower method.rho"
            )
        settings = peft.LoraConfig(
            r=rank,
            rank_pattern={re.escape(name): rank + 1 for name in list(self.adapters)[:more]},  # PEFT sums these up
            target_modules="|".join(re.escape(name) for name in self.adapters),
            init_lora_weights="eva",
            eva_config=peft.EvaConfig(rho=c.rho, tau=c.tau, whiten=c.whiten),
        )
        with redirect_stdout(StringIO()):  # it prints a line for every call with few rows
            return peft.get_eva_state_dict(
                self.model,
                inputs,
                settings,
                prepare_model_inputs_fn=lambda batch, config: batch,
                prepare_layer_inputs_fn=_rows,
                gather_distributed_inputs=False,  # every process has the same batches
                show_progress_bar=False,
            )

    @torch.no_grad()
    def start(self, name: str, adapter: LowRankLinear) -> None:
        adapter.A[: adapter.rank] = self.components.pop(name).to(adapter.A)


def _mask(batch: Mapping[str, Tensor], decoder: bool = False) -> Tensor | None:
    """1 at the tokens that count; in a causal model those with a label."""
    mask, labels = token_mask(batch, decoder), batch.get("labels")
    if mask is None or labels is None or labels.shape != mask.shape:
        return mask
    return mask.bool() & (labels != IGNORED)


def _tokens(batch: Mapping[str, Tensor]) -> int:
    mask = _mask(batch)
    return int(mask.sum()) if mask is not None else next(iter(batch.values())).shape[:-1].numel()


def _rows(given: Any, batch: Mapping[str, Tensor], name: str) -> Tensor:
    """The rows (tokens, d_in) of a layer's input that count."""
    x = given if isinstance(given, Tensor) else given[0]
    mask = _mask(batch, sees_target(name))
    if mask is not None and x.shape[:-1] == mask.shape:
        return x[mask.bool()]
    rows = x.reshape(-1, x.shape[-1])
    # DeBERTa also passes its relative positions (1, 2k, d) through query and key; they are not tokens
    return rows[:0] if mask is not None and x.ndim > 2 and len(x) == 1 else rows
