"""Scores of directions by ablation: how much worse the model gets on a small batch without each (arXiv 2403.16187).

IS(k) = S(M) - S(M without k) + S(M with only k)      S: minus the mean loss on the dev batch      (eq. 6)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from elalora.adapters import LowRankLinear
from elalora.method import MethodFailure
from elalora.processes import average
from elalora.replay import Replay


class Ablation:
    """Ablation scores of all directions of a model.

    Args:
        model: returns an output with a loss.
        adapters: by name; their order is the order of the scores.
        items: of the dev batch.
        scope: what "with only k" switches off: all other directions of the "model", or of the "module".

    Attributes:
        dev: the dev batch, in parts as `keep` got them.
    """

    def __init__(
        self, model: nn.Module, adapters: Mapping[str, LowRankLinear], items: int = 32, scope: str = "model"
    ) -> None:
        self.model, self.adapters, self.items, self.scope = model, adapters, items, scope
        self.dev: list[Mapping[str, Tensor]] = []
        self.replays: list[Replay] = []  # while `scores` runs, one for each part of the dev batch

    def keep(self, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Keeps the first items of these batches as the dev batch."""
        self.dev, missing = [], self.items
        for batch in batches:
            self.dev.append({name: tensor[:missing] for name, tensor in batch.items()})
            missing -= items_in(self.dev[-1])
            if not missing:
                break

    @property
    def remark(self) -> str:
        """The size of the dev batch, as a flag for tables."""
        return f"dev batch of {sum(map(items_in, self.dev))} training items"

    @property
    def forward_passes(self) -> int:
        """Forward passes that `scores` takes at the present ranks; most begin at the block of their direction."""
        recorded = 2 if self.scope == "model" else 1
        return len(self.dev) * (recorded + 2 * sum(adapter.rank for adapter in self.adapters.values()))

    @torch.no_grad()
    def scores(self) -> dict[str, list[float]]:
        """IS of every direction, by matrix, from 2R evaluations of the dev batch, R being the rank sum.

        Each begins at the block of its direction; one or two whole evaluations come before.

        Raises:
            MethodFailure: there is no dev batch.
        """
        if not self.dev:
            raise MethodFailure("there is no dev batch for scores by ablation: call prepare(batches) before training")
        directions = [(name, slot) for name, adapter in self.adapters.items() for slot in range(adapter.rank)]
        with self._ablating() as kept:
            whole = self._recorded()
            without = [self._without(kept, *k) for k in directions]
            if self.scope == "model":
                for adapter in self.adapters.values():
                    adapter.B.zero_()
                self._recorded()
            alone = [self._alone(kept, *k) for k in directions]
        values = iter(average(whole - torch.stack(without) + torch.stack(alone)).tolist())
        return {name: [next(values) for _ in range(adapter.rank)] for name, adapter in self.adapters.items()}

    @contextmanager
    def _ablating(self) -> Iterator[Mapping[str, Tensor]]:
        """Puts the model into evaluation; yields B of every matrix, and restores it afterwards."""
        was_training = self.model.training
        kept = {name: adapter.B.detach().clone() for name, adapter in self.adapters.items()}
        self.model.eval()
        self.replays = [Replay(self.model, self.adapters) for _ in self.dev]
        try:
            yield kept
        finally:
            self.replays = []
            for name, adapter in self.adapters.items():
                adapter.B.copy_(kept[name])
            self.model.train(was_training)

    def _recorded(self) -> Tensor:
        """S as the model is now, (); later evaluations begin with what its blocks return here."""
        return self._quality([replay.recording() for replay in self.replays])

    def _changed(self, name: str) -> Tensor:
        """S of the model that was recorded with a change in one matrix, ()."""
        return self._quality([replay.from_block_of(name) for replay in self.replays])

    def _quality(self, ways: Sequence[AbstractContextManager[None]]) -> Tensor:
        """S: minus the mean loss over the dev batch, (); each part is evaluated within its context."""
        losses = []
        for part, way in zip(self.dev, ways, strict=True):
            with way:
                losses.append(self.model(**part).loss.detach() * items_in(part))
        return -torch.stack(losses).sum() / sum(map(items_in, self.dev))

    def _without(self, kept: Mapping[str, Tensor], name: str, slot: int) -> Tensor:
        self.adapters[name].B[slot] = 0.0
        quality = self._changed(name)
        self.adapters[name].B[slot] = kept[name][slot]
        return quality

    def _alone(self, kept: Mapping[str, Tensor], name: str, slot: int) -> Tensor:
        factor = self.adapters[name].B
        before = factor.clone()
        factor.zero_()
        factor[slot] = kept[name][slot]
        quality = self._changed(name)
        factor.copy_(before)
        return quality


def items_in(batch: Mapping[str, Tensor]) -> int:
    """Number of items of a batch of keyword arguments."""
    return len(next(iter(batch.values())))
