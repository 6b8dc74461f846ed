"""Methods that choose their ranks once, from training batches that they read before the first step.

`attach` puts adapters of the budget's rank on the layers. `prepare` takes them off again, so that `measure` sees the
pretrained model, and puts adapters of the measured ranks in their place. From then on ranks and shapes stay.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, distributed, nn

from elalora.adapters import LowRankLinear
from elalora.attach import attach, put
from elalora.budget import Budget
from elalora.low_rank import OFF_BUDGET, LowRankMethod, check_rank, draw_kaiming
from elalora.method import Method, MethodFailure
from elalora.shares import largest_remainder

IGNORED = -100  # label of a token that is no target


class MeasuredRanks(LowRankMethod):
    """LoRA whose ranks come from the data; a subclass writes `measure` and, if it starts from the data too, `start`.

    Where all ranks are equal and `start` is not overridden, it is LoRA of the same seed.

    Attributes:
        model: the model that `attach` was given.
        start_scores: what every matrix's rank follows from, one number each, for ranks.jsonl; filled in `measure`.
    """

    budget: Budget
    model: nn.Module
    rank_advice: ClassVar[str] = "lower the budget"

    def attach(
        self, model: nn.Module, targets: Sequence[str], total_steps: int, keep: Sequence[str] = (), seed: int = 0
    ) -> nn.Module:
        self._waiting, self._seed = True, seed
        self.start_scores = {}
        self.model = super().attach(model, targets, total_steps, keep, seed)
        return self.model

    @property
    def held(self) -> bool:
        """Whether the ranks are held to the budget."""
        return True

    def measure(self, batches: Iterable[dict[str, Tensor]]) -> Mapping[str, int]:
        """The rank of every matrix, from the pretrained `model` in evaluation mode.

        Args:
            batches: keyword arguments of the model, read one by one; take no more than needed.
        """
        raise NotImplementedError

    def start(self, name: str, adapter: LowRankLinear) -> None:
        """Initialises the factors of a matrix after `measure`: LoRA's A by default."""
        draw_kaiming(adapter.A, adapter.rank, self.generator)

    def start_from(self, factors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        Method.start_from(self, factors)  # refuses: the ranks that another run's update would need are not known yet

    def capacity(self, rank: int) -> int:
        return max(1, rank)

    def initialise(self, adapter: LowRankLinear) -> None:
        """Nothing: until `prepare`, the adapters only hold the places."""

    @property
    def batches_wanted(self) -> bool:
        return self._waiting

    def prepare(self, batches: Iterable[dict[str, Tensor]], ranks: Mapping[str, int] | None = None) -> None:
        bases = {name: adapter.base for name, adapter in self.adapters.items()}
        known = ranks is not None
        if ranks is None:
            for name, base in bases.items():
                put(self.model, name, base)
            training = self.model.training
            self.model.eval()
            ranks = _of_the_first_process(dict(self.measure(batches)))
            self.model.train(training)
        for name, base in bases.items():
            check_rank(ranks[name], name, base, self.rank_advice)
        self.adapters = attach(self.model, bases, lambda name, linear: self._adapter(linear, ranks[name]))
        self._waiting = False
        if not known:
            self.generator.manual_seed(self._seed)
            for name, adapter in self.adapters.items():
                self.start(name, adapter)
                _share(adapter.factors())

    def groups(self, model: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        if self._waiting:
            raise MethodFailure(f"{self.title} takes its ranks from data, but prepare(batches) was not called")
        return super().groups(model, lr, weight_decay)

    def allocate(self, wishes: Mapping[str, float], least: int = 1, most: int | None = None) -> dict[str, int]:
        """Ranks in proportion to `wishes`, by largest remainders, whose sum is the budget's.

        With a parameter budget the sum is the largest that the parameters pay for.

        Args:
            wishes: a number of every matrix, at least 0.
            least: smallest rank.
            most: largest rank; None for min(d_in, d_out).
        """
        costs = [self.adapters[name].cost for name in wishes]
        limits = [min(a.in_features, a.out_features) for a in (self.adapters[name] for name in wishes)]
        tops = [limit if most is None else min(most, limit) for limit in limits]
        total, params = self.mean_rank * len(costs), self.budget.params

        def shares(total: int) -> list[int]:
            return largest_remainder(list(wishes.values()), total, min(least, *tops), tops)

        def price(total: int) -> int:
            return sum(rank * cost for rank, cost in zip(shares(total), costs, strict=True))

        if params is not None:
            floor = min(least, *tops) * len(costs)
            total = floor + bisect.bisect_right(range(floor, sum(tops) + 1), params, key=price) - 1
            while total > floor and price(total) > params:  # the price need not grow with every rank
                total -= 1
        return dict(zip(wishes, shares(total), strict=True))

    def check_budget(self) -> None:
        if self.held:
            super().check_budget()

    def remarks(self) -> list[str]:
        return ["off budget"] if abs(self.budget_distance) > OFF_BUDGET else []


def token_mask(batch: Mapping[str, Tensor], decoder: bool) -> Tensor | None:
    """1 at the tokens that are no padding, (batch, tokens); None where all count.

    Args:
        batch: keyword arguments of a model.
        decoder: whether the tokens are those that an encoder-decoder model's decoder reads.
    """
    labels = batch.get("labels")
    if decoder and labels is not None and labels.ndim == 2:
        return labels != IGNORED
    return batch.get("attention_mask")


def _of_the_first_process(ranks: dict[str, int]) -> dict[str, int]:
    """The ranks that the first of several processes measured, in all of them."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return ranks
    message = [ranks]
    distributed.broadcast_object_list(message, src=0)
    return message[0]


def _share(factors: Iterable[Tensor]) -> None:
    """Gives every process the start of the first: devices may round differently."""
    if distributed.is_available() and distributed.is_initialized():
        for factor in factors:
            distributed.broadcast(factor.data, src=0)
