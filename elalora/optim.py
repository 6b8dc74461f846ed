"""AdamW in which every direction carries its own step counter.

What is unusual: torch keeps one step counter per tensor, so a row that is born at step 500 of its tensor
is bias-corrected as if it were 500 steps old, and its first updates come out 3 to 6 times too large. Here
the counter has one entry per row. An ordinary parameter is the special case of one single row, so there is
one code path, and a step is the same handful of `torch._foreach_*` calls that torch's own AdamW makes.

AdamW: Loshchilov & Hutter, arXiv 1711.05101, algorithm 2 with decoupled decay lr * weight_decay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from elalora.directions import Directions


class RowwiseAdamW(torch.optim.Optimizer):
    """AdamW with one step counter per direction.

    Only the active rows of a parameter that has directions are read or written.

    Args:
        params: parameters or groups, as in torch.optim; each group may set lr, betas, eps, weight_decay.
        directions: for each parameter with one row per slot (dimension 0), its Directions.
        lr: learning rate.
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled decay per step, times lr.

    Raises:
        ValueError: for a negative lr, eps or weight_decay, or betas outside [0, 1).
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
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))
        for parameter, slots in self._directions.items():
            slots.follow(partial(self._state_rows, parameter))

    def _state_rows(self, parameter: Tensor) -> Iterable[Tensor]:
        state = self.state.get(parameter)
        return (state["step"], state["exp_avg"], state["exp_avg_sq"]) if state else ()

    def forget(self) -> None:
        """Drops every moment and step counter, as the official ElaLoRA code does at each round (D1)."""
        self.state.clear()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        rows = [self._rows(p) for p in group["params"] if p.grad is not None]
        rows = [row for row in rows if row[0].numel()]
        if not rows:
            return
        weights, grads, means, squares, steps = (list(column) for column in zip(*rows, strict=True))
        beta1, beta2 = group["betas"]
        lr, eps = float(group["lr"]), group["eps"]
        torch._foreach_add_(steps, 1.0)
        ages = torch.cat(steps).long()
        root = self._correction(beta2, ages).sqrt()
        # w -= lr/bc1 * m / (sqrt(v)/root + eps), with the row factors gathered into the denominator
        shift = self._per_row(eps * root, weights)
        scale = self._per_row(-self._correction(beta1, ages) / root, weights)
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - lr * group["weight_decay"])
        torch._foreach_lerp_(means, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
        denominators = torch._foreach_sqrt(squares)
        torch._foreach_add_(denominators, shift)
        torch._foreach_mul_(denominators, scale)
        torch._foreach_addcdiv_(weights, means, denominators, lr)

    def _correction(self, beta: float, ages: Tensor) -> Tensor:
        """1 - beta^t for the age of every row, (rows,) in float64.

        Read from a table of Python floats, because torch's vectorised power differs from the one torch's AdamW
        uses in the last bit, and 1 - 0.999 makes that a relative error of 1e-13 in the first steps.
        """
        table = self._tables.get(beta)
        oldest = int(ages.max())
        if table is None or len(table) <= oldest:
            table = torch.tensor([1 - beta**t for t in range(2 * oldest + 64)], dtype=torch.float64)
            self._tables[beta] = table
        return table[ages]

    @staticmethod
    def _per_row(values: Tensor, weights: list[Tensor]) -> list[Tensor]:
        """One factor per row of every tensor, shaped (rows, 1), on the tensors' device (one transfer)."""
        moved = values.to(device=weights[0].device, dtype=weights[0].dtype)
        return list(moved[:, None].split([w.shape[0] for w in weights]))

    def _rows(self, parameter: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Weight, gradient, moments as (rows, numbers per row) and step counters (rows,), active rows only."""
        slots = self._directions.get(parameter)
        state = self.state[parameter]
        if not state:
            # the counters live on the CPU: they are read every step and must not cost a synchronisation
            state["step"] = torch.zeros(slots.capacity if slots else 1)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        n, active = (slots.capacity, slots.rank) if slots else (1, 1)
        assert parameter.grad is not None
        tensors = (parameter.detach(), parameter.grad.contiguous(), state["exp_avg"], state["exp_avg_sq"])
        weight, grad, mean, square = (tensor.view(n, -1)[:active] for tensor in tensors)
        return weight, grad, mean, square, state["step"][:active]
