"""What the official ElaLoRA code does to training beside moving ranks, each effect with its own switch.

That code rebuilds its optimizer at every round, which by accident drops all moments, holds the learning rate at its
peak and collapses the parameter groups (defects D1, D2 and D4 of docs/methods/elalora.md). Here these are explicit
operations, so each can be turned on alone, also for an adapter of fixed rank. D8, D12 and D15 concern the round itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from elalora.optim import RowwiseAdamW
from elalora.schedules import Schedule

DECAY = {"text": 0.0, "image": 0.01}


@dataclass(frozen=True)
class SideEffects:
    """Which side effects are on.

    Attributes:
        drops_moments: D1: every round drops all moments and step counters of all parameters, the head's too.
        holds_peak_lr: D2: the learning rate stays at its peak from the first round to the end.
        collapses_groups: D4: after the first round weight decay is 0 ("text") or 0.01 ("image") on everything;
            "off" leaves the parameter groups alone.
        tiny_new_values: D8: a new singular value is min(|E|, 1e-13) instead of 0.
        prunes_ties: D12: all directions at or below the threshold go, so a round may prune more than it grows.
        weight_after_step: D15: |w g| reads the weight after the optimizer step.
    """

    drops_moments: bool = False
    holds_peak_lr: bool = False
    collapses_groups: str = "off"
    tiny_new_values: bool = False
    prunes_ties: bool = False
    weight_after_step: bool = False

    def decay_from(self, weight_decay: float | None) -> str:
        """D4 as it acts: "text" sets a weight decay of 0, which changes nothing where it is 0 already."""
        return "off" if self.collapses_groups == "text" and weight_decay == 0 else self.collapses_groups

    def apply(self, optimizer: RowwiseAdamW, schedule: Schedule) -> None:
        """Applies the effects on optimizer and schedule; call it once per round, after the ranks moved."""
        if self.drops_moments:
            optimizer.forget()
        if self.holds_peak_lr:
            schedule.hold_peak()
        if self.collapses_groups != "off":
            for group in optimizer.param_groups:
                group["weight_decay"] = DECAY[self.collapses_groups]
