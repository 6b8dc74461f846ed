"""Methods that mask directions on the way to their budget and remove them when the pattern is final.

Masking is not death: until the last round a masked direction keeps its factors and moments, and may return.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from elalora.low_rank import LowRankMethod
from elalora.method import BudgetExceeded, NeverActed
from elalora.patterns import dropped, select


class MaskedMethod(LowRankMethod):
    """A method whose ranks are a pattern over the slots that each matrix started with.

    Subclasses call `start_pattern` in `after_attach`, save "kept" and "fixed", and give `phases`.

    Attributes:
        kept: whether the last round kept each slot of each matrix.
        fixed: whether the pattern is final.
    """

    def start_pattern(self) -> None:
        """Keeps every direction."""
        self.kept = {name: [True] * adapter.rank for name, adapter in self.adapters.items()}
        self.fixed = False

    def remove_masked(self) -> None:
        """Removes masked directions; outputs are unchanged, because their singular values are 0."""
        self.prune(dropped(self.kept))
        self.kept = {name: [True] * adapter.rank for name, adapter in self.adapters.items()}

    def finish(self) -> None:
        if not self.fixed:
            assert self.phases is not None
            due = self.phases.rounds()
            raise NeverActed(
                f"{len(due)} rounds were due, the last after step {due[-1]}, and the final pattern was never set: "
                "after_step was not called at every step"
            )
        self.remove_masked()
        self.check_budget()

    def check_budget(self) -> None:
        """As in the base class; fails before the final pattern, because masked directions can still return."""
        if not self.fixed:
            raise BudgetExceeded("the final pattern is not set: masked directions can still return")
        super().check_budget()

    def ranks(self) -> dict[str, int]:
        """Directions that the last round kept; between rounds the others are not 0 either."""
        return {name: sum(kept) for name, kept in self.kept.items()}

    def lora_factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """As in the base class; once the pattern is final, without the directions it masks."""
        factors = super().lora_factors()
        return select(factors, self.kept) if self.fixed else factors

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        if any(len(self.kept[name]) != rank for name, rank in state["ranks"].items()):
            raise ValueError("the pattern does not fit the ranks")
