"""The capacity limit of a run: a mean rank or a number of adapter parameters.

`rank=N` caps the sum of ranks at N times the number of adapted matrices, as the papers count. `params=P` caps the
adapter parameters, because a rank costs more parameters in a wide matrix than in a narrow one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from elalora.errors import UserError

LARGEST = 10**12 - 1


@dataclass(frozen=True)
class Budget:
    """The final budget: either a mean rank or a number of adapter parameters.

    Raises:
        UserError: not exactly one of them is set, or it is not a positive integer.
    """

    rank: int | None = None
    params: int | None = None

    def __post_init__(self) -> None:
        if (self.rank is None) == (self.params is None):
            raise UserError(
                f"a budget is either a rank or a number of parameters, got rank={self.rank} and "
                f"params={self.params}: type budget=r4 or budget=params budget.params=330000"
            )
        name, value = ("rank", self.rank) if self.params is None else ("params", self.params)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST:
            raise UserError(
                f"budget.{name}={value} is not a positive integer of at most 12 digits: type for example budget=r4"
            )

    def mean_rank(self, costs: Sequence[int]) -> int:
        """The uniform rank that this budget allows.

        Args:
            costs: parameters per rank of every matrix.

        Raises:
            UserError: the budget does not pay for rank 1 everywhere.
        """
        if self.rank is not None:
            return self.rank
        assert self.params is not None
        rank = self.params // sum(costs)
        if rank < 1:
            raise UserError(
                f"budget.params={self.params} does not pay for rank 1 in all {len(costs)} matrices, which "
                f"cost {sum(costs)}: raise budget.params or adapt fewer matrices (model.targets=[...])"
            )
        return rank


@dataclass(frozen=True)
class Count:
    """Rank sum and parameters of an adapter at one moment."""

    rank_sum: int
    params: int
