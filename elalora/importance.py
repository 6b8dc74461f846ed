"""How much a direction matters: smoothed sensitivity times its uncertainty.

    I    = |w * dL/dw|                                 sensitivity of one element
    Ibar = beta1 Ibar + (1 - beta1) I                  smoothed
    U    = beta2 U + (1 - beta2) |I - Ibar|            uncertainty, with the new Ibar
    s(w) = Ibar * U
    S_i  = s(E_i) + mean_j s(A_ij) + mean_j s(B_ij)    score of direction i

AdaLoRA (arXiv 2303.10512, eqs. 8 to 10), used unchanged by ElaLoRA (arXiv 2504.00254). All matrices are updated by the
same few foreach calls, and nothing is read back to the host before a round. The averages have one row per active
direction and follow it: they move, die and start at 0 with it.

Other forms of score, which need no average, take the place of S_i in comparisons: the weights alone, |E_i| alone, the
spectral entropy of E that all directions of a matrix share (FlexLoRA, arXiv 2601.22905), or a random number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from elalora.adapters import LowRankLinear
from elalora.patterns import split

FORMS = ("sensitivity_uncertainty", "sensitivity", "magnitude", "gate", "entropy", "random")
EPSILON = 1e-8  # inside the logarithm of the entropy


class _Rows(NamedTuple):
    """The active rows of one factor, and its averages."""

    rank: int
    weight: Tensor
    smooth: Tensor
    uncertainty: Tensor


class Importance:
    """Scores of all directions of all adapters.

    Args:
        adapters: by name; their order is the order of the scores.
        beta1: decay of the smoothed sensitivity.
        beta2: decay of the uncertainty.
        form: "sensitivity_uncertainty" (as published), "sensitivity" (Ibar alone), "magnitude" (|w|, no
            gradient), "gate" (|E_i|), "entropy" (of the matrix, see `spectral_score`), or "random" (drawn at every call
            of `scores`). Another form keeps no averages, and its scores come from elsewhere.

    Attributes:
        smooth, uncertainty: Ibar and U of every factor, (rank, d) or (rank,).
        prefix: of their names in the method's saved state (`elalora.low_rank.Tracker`).
    """

    prefix = "importance"

    def __init__(
        self,
        adapters: Mapping[str, LowRankLinear],
        beta1: float = 0.85,
        beta2: float = 0.85,
        form: str = FORMS[0],
    ) -> None:
        self.adapters = dict(adapters)
        self.beta1, self.beta2, self.form = beta1, beta2, form
        self.smooth: dict[nn.Parameter, Tensor] = {}
        self.uncertainty: dict[nn.Parameter, Tensor] = {}
        self._key: list[tuple[int, int]] = []
        self._views: dict[nn.Parameter, _Rows] = {}
        if form in FORMS[:2]:
            for adapter in self.adapters.values():
                for parameter in adapter.factors():
                    self._track(parameter, adapter)

    def _track(self, parameter: nn.Parameter, adapter: LowRankLinear) -> None:
        for table in (self.smooth, self.uncertainty):
            table[parameter] = torch.zeros_like(parameter[: adapter.rank], requires_grad=False)
        adapter.directions.follow_active(lambda: ((self.smooth, parameter), (self.uncertainty, parameter)))

    @torch.no_grad()
    def update(self) -> None:
        """Updates the averages from the current values and gradients of the active rows."""
        if not self.smooth:
            return
        rows = [(row, p.grad[: row.rank]) for p, row in self._active().items() if p.grad is not None]
        if not rows:
            return
        weights, smooth, uncertainty = ([getattr(row, of) for row, _ in rows] for of in _Rows._fields[1:])
        now = torch._foreach_mul(weights, [grad for _, grad in rows])
        torch._foreach_abs_(now)
        torch._foreach_lerp_(smooth, now, 1 - self.beta1)
        torch._foreach_sub_(now, smooth)
        torch._foreach_abs_(now)
        torch._foreach_lerp_(uncertainty, now, 1 - self.beta2)

    def _active(self) -> dict[nn.Parameter, _Rows]:
        """Views of the active rows, cached until a rank or a factor's memory changes: creating them costs as much
        as the arithmetic."""
        key = [(adapter.directions.changes, adapter.A.data_ptr()) for adapter in self.adapters.values()]
        if key != self._key:
            self._key = key
            self._views = {
                p: _Rows(adapter.rank, p.detach()[: adapter.rank], self.smooth[p], self.uncertainty[p])
                for adapter in self.adapters.values()
                for p in adapter.factors()
            }
        return self._views

    @torch.no_grad()
    def scores(self, generator: torch.Generator | None = None) -> dict[str, list[float]]:
        """S_i of every active direction by matrix, on the host (one transfer).

        Args:
            generator: needed by the form "random" only.
        """
        if self.form == "random":
            return {
                name: torch.rand(adapter.rank, generator=generator).tolist() for name, adapter in self.adapters.items()
            }
        if self.form == "entropy":
            return {name: [spectral_score(row, "entropy")] * len(row) for name, row in self.gates().items()}
        if self.form == "gate":
            return self.gates()
        return self._by_matrix([self._score(adapter) for adapter in self.adapters.values()])

    def gates(self) -> dict[str, list[float]]:
        """|E| of every active direction by matrix, on the host (one transfer)."""
        values = [adapter.E for adapter in self.adapters.values() if adapter.E is not None]
        ranks = [adapter.rank for adapter in self.adapters.values()]
        return self._by_matrix([E.detach()[:rank].abs() for E, rank in zip(values, ranks, strict=True)])

    def _by_matrix(self, rows: Sequence[Tensor]) -> dict[str, list[float]]:
        """Numbers of every active direction, one tensor (rank,) for each matrix, on the host."""
        return split(torch.cat(list(rows)).tolist(), {name: a.rank for name, a in self.adapters.items()})

    def _score(self, adapter: LowRankLinear) -> Tensor:
        """(rank,): the sum over A, B and E of the mean element score of a direction's row."""
        r = adapter.rank
        parts = [self._elements(p, r).reshape(r, -1).mean(1) for p in adapter.factors() if p.shape[0] and r]
        return torch.stack(parts).sum(0) if parts else torch.zeros(0)

    def _elements(self, p: nn.Parameter, r: int) -> Tensor:
        if self.form == "magnitude":
            return p.detach()[:r].abs()
        return self.smooth[p] if self.form == "sensitivity" else self.smooth[p] * self.uncertainty[p]

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors by "matrix.factor.what"."""
        return {name: table[p] for name, (table, p, _) in self._named().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state_dict` returned; the ranks of the adapters must be restored first.

        Raises:
            ValueError: the averages have other shapes.
        """
        for name, (table, p, rank) in self._named().items():
            if state[name].shape != (rank, *p.shape[1:]):
                raise ValueError(f"the importance {name} has shape {tuple(state[name].shape)}, expected {rank} rows")
            table[p] = state[name].to(table[p], copy=True)
        self._key = []

    def _named(self) -> dict[str, tuple[dict[nn.Parameter, Tensor], nn.Parameter, int]]:
        """Table, factor and rank of every average, by its name."""
        return {
            f"{matrix}.{number}.{what}": (table, p, adapter.rank)
            for matrix, adapter in self.adapters.items()
            for number, p in enumerate(adapter.factors())
            for what, table in (("smooth", self.smooth), ("uncertainty", self.uncertainty))
            if p in table
        }


def spectral_score(values: Sequence[float], kind: str) -> float:
    """The score of a matrix from E of its directions, (r,).

    Args:
        values: signs count for nothing.
        kind: "entropy", normalised to [0, 1], of the shares of E^2; "frobenius", the norm; or "nuclear", the sum of
            |E|.
    """
    if kind == "nuclear":
        return math.fsum(map(abs, values))
    squares = [value * value for value in values]
    total = math.fsum(squares)
    if kind == "frobenius":
        return math.sqrt(total)
    if len(values) < 2 or not total:
        return 0.0
    return -math.fsum(s / total * math.log(s / total + EPSILON) for s in squares) / math.log(len(values))
