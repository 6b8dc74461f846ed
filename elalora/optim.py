"""AdamW in which every direction has its own step counter.

torch keeps one step counter per tensor, so a row born at step 500 would be bias-corrected as if it were 500 steps old,
and its first updates would be 3 to 6 times too large. Here the counter has one entry per row. An ordinary parameter is
the special case of a single row, so there is one code path, with the same few `torch._foreach_*` calls per step as in
torch's own AdamW.

AdamW: Loshchilov & Hutter, arXiv 1711.05101, algorithm 2 with decoupled decay lr * weight_decay.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from elalora.directions import Directions

_Pair = tuple[Tensor, Directions | None]  # a parameter and its directions


class RowwiseAdamW(torch.optim.Optimizer):
    """AdamW with one step counter per direction.

    Only the active rows of a parameter that has directions are read, written and have moments. Of these, a step changes
    those of `Directions.moving`.

    Args:
        params: parameters or groups, as in torch.optim; each group may set lr, betas, eps, weight_decay.
        directions: for each parameter with one row per slot (dimension 0), its Directions.
        lr: learning rate.
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled decay per step, times lr.

    Raises:
        ValueError: lr, eps or weight_decay is negative, betas lie outside [0, 1), or a parameter is not contiguous.
    """

    def __init__(
        self,
        params: Iterable[Any],
        directions: Mapping[Tensor, Directions] | None = None,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        if lr < 0 or eps < 0 or weight_decay < 0:
            raise ValueError(f"lr {lr}, eps {eps} and weight_decay {weight_decay} must not be negative")
        if not all(0.0 <= beta < 1.0 for beta in betas):
            raise ValueError(f"betas {betas} must lie in [0, 1)")
        self._directions = dict(directions or {})
        self._tables: dict[float, Tensor] = {}
        self._views: dict[int, _Rows] = {}
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))
        if any(not p.is_contiguous() for group in self.param_groups for p in group["params"]):
            raise ValueError("a parameter is not contiguous in memory, so its rows cannot be updated in place")
        for parameter, slots in self._directions.items():
            slots.follow_active(partial(_state_rows, weakref.ref(self), parameter))

    def set_rates(self, rates: Mapping[Tensor, Sequence[float]]) -> None:
        """Sets a factor on the learning rate, and so on the weight decay, of every active row of some parameters.

        It holds until it is set again, follows the directions and is saved. A row that is born later has the factor 0
        until then.

        Args:
            rates: one factor for each active row, by parameter.
        """
        first = next(iter(rates))
        flat = first.new_tensor([rate for row in rates.values() for rate in row], requires_grad=False)  # one transfer
        for parameter, part in zip(rates, flat.split([len(row) for row in rates.values()]), strict=True):
            if len(part) != self._active(parameter):
                raise ValueError(f"{len(part)} rates do not fit {self._active(parameter)} active rows")
            if not self.state[parameter]:
                self.state[parameter] = self._fresh(parameter)
            self.state[parameter]["rate"] = part.to(parameter)

    def forget(self) -> None:
        """Drops every moment and step counter, as the official ElaLoRA code does at each round (D1)."""
        self.state.clear()
        self._views.clear()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` returned, from any device; restore the ranks of the directions first.

        Raises:
            ValueError: groups or moments do not fit the parameters.
        """
        super().load_state_dict(state_dict)
        self._views.clear()
        for parameter, state in self.state.items():
            if isinstance(state.get("step"), Tensor):
                state["step"] = state["step"].cpu()
            fresh = self._fresh(parameter)
            expected = {name: value.shape for name, value in fresh.items()}
            if "rate" in state:
                expected["rate"] = fresh["step"].shape
            if {name: getattr(value, "shape", None) for name, value in state.items()} != expected:
                raise ValueError(f"the moments of a parameter of shape {tuple(parameter.shape)} do not fit it")

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Updates every parameter that has a gradient.

        Raises:
            ValueError: the ranks of the directions were restored, but the moments were not.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        resting = [rows.clone() for rows in self._resting()]
        for number, group in enumerate(self.param_groups):
            self._step_group(number, group)
        if resting:
            torch._foreach_copy_(self._resting(), resting)
        return loss

    def _resting(self) -> list[Tensor]:
        """Weights, moments and counters of the active rows that a step must leave as they are (`Directions.moving`)."""
        rows: list[Tensor] = []
        for parameter, slots in self._directions.items():
            if slots.moving is None or parameter.grad is None:
                continue
            if not self.state[parameter]:
                self.state[parameter] = self._fresh(parameter)
            for tensor in (parameter.detach(), *self.state[parameter].values()):
                rows += [tensor[: slots.moving.start], tensor[slots.moving.stop : slots.rank]]
        return rows

    def _step_group(self, number: int, group: dict[str, Any]) -> None:
        pairs = [(p, self._directions.get(p)) for p in group["params"] if p.grad is not None]
        pairs = [(p, slots) for p, slots in pairs if slots is None or slots.rank]
        if not pairs:
            return
        rows = self._rows(number, pairs)
        grads = [_active_rows(p.grad.contiguous(), slots) for p, slots in pairs]
        beta1, beta2 = group["betas"]
        lr, eps = float(group["lr"]), group["eps"]
        ages = rows.steps.add_(1)
        root = self._correction(beta2, ages).sqrt()
        # w -= lr/bc1 * m / (sqrt(v)/root + eps), with the row factors gathered into the denominator
        factors = torch.stack([eps * root, -self._correction(beta1, ages) / root])
        shift, scale = factors.to(device=grads[0].device, dtype=grads[0].dtype)[..., None]  # (rows, 1) each
        counts = [len(weight) for weight in rows.weights]
        rates = self._rates(pairs)
        decay = lr * group["weight_decay"]
        if decay and rates:
            torch._foreach_mul_(rows.weights, [1 - decay * rate for rate in rates])
        elif decay:
            torch._foreach_mul_(rows.weights, 1 - decay)
        torch._foreach_lerp_(rows.means, grads, 1 - beta1)
        torch._foreach_mul_(rows.squares, beta2)
        torch._foreach_addcmul_(rows.squares, grads, grads, 1 - beta2)
        denominators = torch._foreach_sqrt(rows.squares)
        torch._foreach_add_(denominators, shift.split(counts))
        torch._foreach_mul_(denominators, scale.split(counts))
        if not rates:
            torch._foreach_addcdiv_(rows.weights, rows.means, denominators, lr)
            return
        moves = torch._foreach_div(rows.means, denominators)
        torch._foreach_mul_(moves, rates)
        torch._foreach_add_(rows.weights, moves, alpha=lr)

    def _rates(self, pairs: list[_Pair]) -> list[Tensor]:
        """The factor of every active row of these parameters, (n, 1) each; empty if all are 1."""
        found = [self.state[p].get("rate") for p, _ in pairs]
        if all(rate is None for rate in found):
            return []
        ones = [
            p.new_ones(self._active(p)) if rate is None else rate for (p, _), rate in zip(pairs, found, strict=True)
        ]
        return [rate[:, None] for rate in ones]

    def _correction(self, beta: float, ages: Tensor) -> Tensor:
        """1 - beta^t for the age t of every row, (rows,) in float64.

        Read from a table of Python floats, as torch's AdamW computes it: torch's vectorised power differs in the last
        bit, which 1 - 0.999 turns into a relative error of 1e-13 in the first steps.
        """
        ages = ages.long()
        table = self._tables.get(beta)
        oldest = int(ages.max())
        if table is None or len(table) <= oldest:
            table = torch.tensor([1 - beta**t for t in range(2 * oldest + 64)], dtype=torch.float64)
            self._tables[beta] = table
        return table[ages]

    def _active(self, parameter: Tensor) -> int:
        """Number of rows that are updated; an ordinary parameter counts as one row."""
        slots = self._directions.get(parameter)
        return 1 if slots is None else slots.rank

    def _rows(self, number: int, pairs: list[_Pair]) -> _Rows:
        """The active rows of a group, cached until a rank or a parameter's memory changes: creating 400 views per
        step costs as much as the arithmetic."""
        key = [(p.data_ptr(), slots.changes if slots else 0) for p, slots in pairs]
        rows = self._views.get(number)
        if rows is None or rows.key != key:
            rows = self._views[number] = self._make_rows(key, pairs)
        return rows

    def _make_rows(self, key: list[tuple[int, int]], pairs: list[_Pair]) -> _Rows:
        for parameter, _ in pairs:
            if not self.state[parameter]:
                self.state[parameter] = self._fresh(parameter)
        states = [self.state[p] for p, _ in pairs]
        counts = [slots.rank if slots else 1 for _, slots in pairs]
        if any(len(state["step"]) != n for state, n in zip(states, counts, strict=True)):
            raise ValueError("the moments do not fit the ranks: load the optimizer's state after the method's")
        steps = torch.cat([state["step"] for state in states])
        for state, ages in zip(states, steps.split(counts), strict=True):
            state["step"] = ages  # a view, so that one addition increments all counters of the group
        return _Rows(
            key=key,
            weights=[_active_rows(p.detach(), slots) for p, slots in pairs],
            means=[state["exp_avg"].view(n, -1) for state, n in zip(states, counts, strict=True)],
            squares=[state["exp_avg_sq"].view(n, -1) for state, n in zip(states, counts, strict=True)],
            steps=steps,
        )

    def _fresh(self, parameter: Tensor) -> dict[str, Tensor]:
        """Moments and counters of a parameter before its first update."""
        active = parameter.detach()[: self._active(parameter)] if parameter in self._directions else parameter
        # counters stay on the CPU: they are read at every step, which must not synchronise a GPU
        step = torch.zeros(self._active(parameter))
        return {"step": step, "exp_avg": torch.zeros_like(active), "exp_avg_sq": torch.zeros_like(active)}


def _active_rows(values: Tensor, slots: Directions | None) -> Tensor:
    """A view (active, numbers per row) of a tensor of a parameter's shape; an ordinary parameter is one row."""
    return values.view(1, -1) if slots is None else values.view(slots.capacity, -1)[: slots.rank]


def _state_rows(owner: weakref.ref[RowwiseAdamW], parameter: Tensor) -> list[tuple[dict[str, Tensor], str]]:
    """Moments and counters of a parameter's active rows.

    Empty if the optimizer no longer exists, or has the moments of other ranks because a new one replaced it.
    """
    optimizer = owner()
    state = {} if optimizer is None else optimizer.state.get(parameter) or {}
    alive = bool(state) and optimizer is not None and len(state["step"]) == optimizer._active(parameter)
    return [(state, name) for name in state] if alive else []


@dataclass
class _Rows:
    """The active rows of one group, (active, numbers per row) each; `steps` has their counters, concatenated."""

    key: list[tuple[int, int]]
    weights: list[Tensor]
    means: list[Tensor]
    squares: list[Tensor]
    steps: Tensor
