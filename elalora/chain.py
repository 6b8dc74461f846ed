"""Methods whose update is a sum of pieces, trained one after another.

    W = W0 + sum_{i < t} s B_i A_i + s B_t A_t

Only piece t trains. The finished ones stay beside the frozen layer as the frozen factors of a `ChainLinear`, and W0 is
never touched: export, ranks and counts are those of all pieces, concatenated. Every piece starts with fresh weights and
fresh moments in the slots of the one before, so that optimizer and schedule see the same parameters all along.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elalora.adapters import LowRankLinear
from elalora.budget import Budget, Count
from elalora.directions import Directions
from elalora.errors import UserError
from elalora.low_rank import LowRankMethod
from elalora.method import Method, NeverActed, Round
from elalora.optim import RowwiseAdamW
from elalora.schedules import Schedule

MATCHED = ("trained", "final")  # what the budget bounds


class ChainLinear(LowRankLinear):
    """A frozen layer with frozen pieces and one that trains.

    The frozen factors have a fixed number of rows, set by `make_room`; the first `merged` of them are in use. More
    directions than min(d_in, d_out) say nothing more, so from there on the pieces are kept as one product.

    Attributes:
        fixed: "A" or "B", the factor of the piece that does not train; "" if both do.
        merged: directions of the frozen pieces.
    """

    frozen_A: Tensor
    frozen_B: Tensor

    def __init__(self, base: nn.Linear, directions: Directions, scale: float, dropout: float = 0.0) -> None:
        super().__init__(base, directions, scale, singular=False, dropout=dropout)
        self.fixed = ""
        self.limit = min(self.in_features, self.out_features)
        self.make_room(0)

    def make_room(self, rows: int) -> None:
        """Makes room for this many frozen directions, at most min(d_in, d_out); none is in use then."""
        self.merged = 0
        self.register_buffer("frozen_A", self.A.detach().new_zeros(min(rows, self.limit), self.in_features))
        self.register_buffer("frozen_B", self.A.detach().new_zeros(min(rows, self.limit), self.out_features))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., d_in) to (..., d_out)."""
        return self.with_pieces(super().forward(x), x)

    def with_pieces(self, out: Tensor, x: Tensor) -> Tensor:
        """An output (..., d_out) for x (..., d_in) with the merged pieces added."""
        rows = len(self.frozen_A) if torch.compiler.is_compiling() else self.merged
        if not rows:
            return out
        down = F.linear(x, self.frozen_A[:rows].to(x.dtype))  # (..., rows)
        return out + F.linear(down, self.frozen_B[:rows].T.to(down.dtype)).to(out.dtype)

    def operands(self) -> tuple[Tensor, Tensor]:
        """A and B of the piece; the fixed one gets no gradient, so that no optimizer changes it."""
        a, b = super().operands()
        return a.detach() if self.fixed == "A" else a, b.detach() if self.fixed == "B" else b

    @property
    def total_rank(self) -> int:
        """Directions of all pieces together."""
        return min(self.limit, self.merged + self.rank)

    @property
    def trained_params(self) -> int:
        """Numbers that train in this piece."""
        return self.rank * (self.in_features * (self.fixed != "A") + self.out_features * (self.fixed != "B"))

    @torch.no_grad()
    def lora_factors(self) -> tuple[Tensor, Tensor]:
        """All pieces as one pair A (r, d_in) and B (d_out, r), W = W0 + B A; B includes the scale."""
        a, b = self._joined()
        return a, b.T.contiguous()

    def _joined(self) -> tuple[Tensor, Tensor]:
        """Rows (n, d_in) and columns (n, d_out) of all pieces, as one product above min(d_in, d_out)."""
        a, b = super().lora_factors()
        frozen_a, frozen_b = self.frozen_A[: self.merged], self.frozen_B[: self.merged]
        return self.compressed(torch.cat([frozen_a, a]), torch.cat([frozen_b, b.T]))

    def compressed(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (n, d_in) and (n, d_out) as at most min(d_in, d_out) with the same product."""
        if len(a) <= self.limit:
            return a, b
        dense, eye = b.T @ a, torch.eye(self.limit, dtype=a.dtype, device=a.device)
        return (eye, dense.T) if self.in_features == self.limit else (dense, eye)

    @torch.no_grad()
    def freeze_piece(self) -> None:
        """Adds the piece to the frozen ones; its slots are then free."""
        a, b = self._joined()
        self.set_frozen(a, b)
        while self.rank:
            self.directions.die(self.rank - 1)

    @torch.no_grad()
    def set_frozen(self, a: Tensor, b: Tensor) -> None:
        """Sets the frozen pieces.

        Args:
            a: (n, d_in).
            b: (n, d_out), with the scale.

        Raises:
            ValueError: there is no room for them.
        """
        n = len(a)
        if n > len(self.frozen_A) or (a.shape[1], *b.shape) != (self.in_features, n, self.out_features):
            raise ValueError(f"frozen pieces of shape {tuple(a.shape)} and {tuple(b.shape)} do not fit")
        for frozen, rows in ((self.frozen_A, a), (self.frozen_B, b)):
            frozen[:n], frozen[n:] = rows.to(frozen), 0.0
        self.merged = n


class _FrozenPieces:
    """The frozen pieces of all adapters, as a `Tracker`."""

    prefix = "frozen"

    def __init__(self, adapters: Mapping[str, ChainLinear]) -> None:
        self.adapters = adapters

    def state_dict(self) -> dict[str, Tensor]:
        """The rows in use, by "matrix.A" and "matrix.B"."""
        rows = {name: (a.frozen_A[: a.merged], a.frozen_B[: a.merged]) for name, a in self.adapters.items()}
        return {f"{name}.{side}": part for name, pair in rows.items() for side, part in zip("AB", pair, strict=True)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state_dict` returned."""
        for name, adapter in self.adapters.items():
            adapter.set_frozen(state[f"{name}.A"], state[f"{name}.B"])


class ChainMethod(LowRankMethod):
    """A method that trains its update piece by piece; a subclass says which matrices take part in which piece.

    Its config has `rewarm` (every piece has its own warm-up and decay of the learning rate; otherwise one schedule
    spans the run) and `matched`: the budget bounds the ranks that train at once ("trained") or the sum of all pieces
    ("final"). `initialise` draws the start of every piece.

    Attributes:
        members: for every piece, the numbers of its matrices in the model's order; drawn by `attach`.
        piece: number of the piece that trains.
        largest: rank sum and parameters of the largest piece so far; added: of all pieces so far.
        layer: class of the adapted layers.
    """

    saved: ClassVar[Sequence[str]] = ("members", "piece", "largest", "added")
    layer: ClassVar[type[ChainLinear]] = ChainLinear
    adapters: dict[str, ChainLinear]  # type: ignore[assignment]
    members: list[list[int]]

    def pieces(self, linears: Mapping[str, nn.Linear]) -> list[list[int]]:
        """The matrices of every piece, as in `members`; may draw from `generator`."""
        raise NotImplementedError

    def fewest(self) -> int:
        """The least number of pieces that any model needs; `mean_rank` is known."""
        raise NotImplementedError

    def piece_rank(self) -> int:
        """Rank of a matrix in a piece; `mean_rank` is known."""
        return self.mean_rank

    @property
    def shorter(self) -> str:
        """What to type for fewer pieces."""
        return "lower method.blocks"

    def fixed(self) -> str:
        """The factor that does not train in this piece, as `ChainLinear.fixed`."""
        return ""

    def __init__(self, config: Any, budget: Budget | None = None) -> None:
        super().__init__(config, budget)
        kind = "trained" if config.matched == "trained" else "growing"
        self.__dict__["capabilities"] = replace(self.capabilities, budget=kind)

    # -- set-up ----------------------------------------------------------------------------------------

    def initial_ranks(self, linears: Mapping[str, nn.Linear]) -> dict[str, int]:
        self.members = self.pieces(linears)
        self.piece = 0
        return {name: self.piece_rank() * (i in self.members[0]) for i, name in enumerate(linears)}

    def plan(self, total_steps: int, rank_sum: int) -> None:
        count = len(self.members) if hasattr(self, "members") else self.fewest()
        if total_steps < count:
            raise UserError(
                f"{count} pieces do not fit a run of {total_steps} steps: {self.shorter}, or train longer "
                "(trainer.max_steps)"
            )
        self.ends = [round(number * total_steps / count) for number in range(count + 1)]
        self.due = frozenset(self.ends[1:-1])

    def stages(self) -> tuple[int, ...]:
        return tuple(end - start for start, end in pairwise(self.ends)) if self.config.rewarm else super().stages()

    def capacity(self, rank: int) -> int:
        return self.piece_rank()

    def _adapter(self, linear: nn.Linear, rank: int) -> ChainLinear:
        limit = min(linear.in_features, linear.out_features)
        slots = Directions(min(limit, self.capacity(rank)), rank)
        return self.layer(linear, slots, self.scale(self.piece_rank()), getattr(self.config, "dropout", 0.0))

    def after_attach(self) -> None:
        for adapter in self.adapters.values():
            adapter.make_room((len(self.members) - 1) * self.piece_rank())  # the most that any draw of pieces can need
        self.trackers = [_FrozenPieces(self.adapters)]
        self.largest, self.added = [0, 0], [0, 0]
        self._began()

    def start_from(self, factors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        Method.start_from(self, factors)  # a piece has too few ranks, and may leave matrices out

    def _began(self) -> None:
        """Fixes a factor and counts the piece that begins."""
        self._fix()
        now = self.trained()
        sums = [now.rank_sum, now.params]
        self.largest = list(map(max, self.largest, sums))
        whole = sum(adapter.rank * adapter.cost for adapter in self.adapters.values())
        self.added = [self.added[0] + now.rank_sum, self.added[1] + whole]

    def _fix(self) -> None:
        for adapter in self.adapters.values():
            adapter.fixed = self.fixed()

    # -- training --------------------------------------------------------------------------------------

    def after_step(self, step: int, optimizer: RowwiseAdamW, schedule: Schedule) -> Round | None:
        return self.advance(step) if step + 1 in self.due else None

    def advance(self, step: int) -> Round:
        """Begins the next piece after a step."""
        before = self.ranks()
        self.next_piece()
        ranks = self.ranks()
        grown = [name for name, rank in ranks.items() for _ in range(rank - before[name])]
        self.rounds_seen.append(Round(step, ranks, grown=grown, notes={"piece": self.piece}))
        return self.rounds_seen[-1]

    def next_piece(self) -> None:
        """Freezes the piece and starts the next, whose weights and moments are fresh."""
        for adapter in self.adapters.values():
            adapter.freeze_piece()
        self.piece += 1
        names = list(self.adapters)
        for adapter in (self.adapters[names[i]] for i in self.members[self.piece]):
            for _ in range(adapter.directions.capacity):
                adapter.directions.be_born()
            self.initialise(adapter)
        self._began()

    def rounds_due(self) -> int:
        return len(self.ends) - 2

    def finish(self) -> None:
        if self.piece < len(self.members) - 1:
            raise NeverActed(f"only {self.piece + 1} of {len(self.members)} pieces began: after_step was not called")
        self.check_budget()

    # -- reading ---------------------------------------------------------------------------------------

    def ranks(self) -> dict[str, int]:
        return {name: adapter.total_rank for name, adapter in self.adapters.items()}

    def trained(self) -> Count:
        """Rank sum and parameters of the piece that trains."""
        adapters = self.adapters.values()
        return Count(sum(a.rank for a in adapters), sum(a.trained_params for a in adapters))

    def further_counts(self) -> dict[str, Count]:
        return {"trained": Count(*self.largest), "accumulated": Count(*self.added)}

    def budget_use(self) -> tuple[int, int]:
        now, allowed = super().budget_use()
        if self.config.matched == "final":
            return now, allowed
        assert self.budget is not None
        return (self.trained().rank_sum if self.budget.params is None else self.trained().params), allowed

    def remarks(self) -> list[str]:
        if len(self.members) == 1:
            return []
        what = {"trained": "ranks trained at once", "final": "sum of all pieces"}[self.config.matched]
        return [f"budget = {what} ({len(self.members)} pieces)"]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._fix()
