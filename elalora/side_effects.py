"""What the official ElaLoRA code does to training beside moving ranks, each as a switch of its own.

Its optimizer is rebuilt at every round, and by accident (defects D1, D2 and D4 of docs/methods.md) the rebuild
drops every moment, pins the learning rate at its peak and collapses the parameter groups. Here the same
effects are resets and overrides, so that each can be turned on alone, also on a fixed-rank adapter.
"""

from __future__ import annotations

from dataclasses import dataclass

from elalora.errors import UserError
from elalora.optim import RowwiseAdamW
from elalora.schedules import Schedule

DECAY = {"text": 0.0, "image": 0.01}


@dataclass(frozen=True)
class SideEffects:
    """Which accidents of the official rebuild happen at every round.

    Attributes:
        D1: drop all moments and step counters of all parameters, also of the head.
        D2: hold the learning rate at its peak from the first round to the end.
        D4: collapse the parameter groups: "text" sets weight decay to 0, "image" to 0.01, on everything;
            "off" leaves the groups alone.
    """

    D1: bool = False
    D2: bool = False
    D4: str = "off"

    def __post_init__(self) -> None:
        if self.D4 not in ("off", *DECAY):
            raise UserError(f"method.D4={self.D4} is unknown; allowed: off, {', '.join(DECAY)}")

    def happen(self, optimizer: RowwiseAdamW, schedule: Schedule) -> None:
        """Applies the chosen effects; called once per round, after the ranks moved."""
        if self.D1:
            optimizer.forget()
        if self.D2:
            schedule.hold_peak()
        if self.D4 != "off":
            for group in optimizer.param_groups:
                group["weight_decay"] = DECAY[self.D4]
