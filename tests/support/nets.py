"""Small float64 networks and a bare training loop for the proofs."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from elalora import Method, RowwiseAdamW, Schedule


class Block(nn.Module):
    """Two linear layers of different shape around a residual."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x)))


def with_loss(logits: Tensor, labels: Tensor | None) -> Any:
    """The logits, or with labels an output that has a loss too, as transformers' models return it."""
    if labels is None:
        return logits
    return SimpleNamespace(logits=logits, loss=nn.functional.cross_entropy(logits, labels))


class Net(nn.Module):
    """`layers.N.up` (inner x width), `layers.N.down` (width x inner) and a head."""

    def __init__(self, layers: int = 3, width: int = 10, inner: int = 14, classes: int = 3, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.ModuleList(Block(width, inner) for _ in range(layers))
            self.head = nn.Linear(width, classes)
        self.double()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        for layer in self.layers:
            x = layer(x)
        return with_loss(self.head(x), labels)


class Nested(Block):
    """Names that end alike: `up` and `inner.up`, `down` and `inner.down`, `head` and the frozen `spare_head`."""

    def __init__(self, width: int = 10, seed: int = 0) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            super().__init__(width, 14)
            self.inner = Block(width, 12)
            self.head, self.spare_head = nn.Linear(width, 3), nn.Linear(width, 3)
        self.double()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        x = self.inner(super().forward(x))
        return with_loss(self.head(x) + 0.1 * self.spare_head(x), labels)


def kwargs(x: Tensor, labels: Tensor, like: Tensor) -> dict[str, Tensor]:
    """A batch as `Method.prepare` reads it."""
    return {"x": x.to(like.dtype), "labels": labels}


def batch(step: int, items: int = 16, width: int = 10, classes: int = 3) -> tuple[Tensor, Tensor]:
    """The random batch of a step; the same at every call."""
    g = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(items, width, generator=g, dtype=torch.float64)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()


def train(
    net: nn.Module,
    method: Method,
    steps: int,
    lr: float = 5e-3,
    weight_decay: float = 0.0,
    warmup: int = 0,
    clip: float | None = None,
    start: int = 0,
    optimizer: RowwiseAdamW | None = None,
    each: Callable[[int], Any] | None = None,
    total: int | None = None,
) -> tuple[RowwiseAdamW, Schedule]:
    """The loop of `elalora.method`, on one batch a step."""
    if optimizer is None:
        optimizer = RowwiseAdamW(method.groups(net, lr, weight_decay), method.directions())
    else:
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] if group.get("constant_rate") else lr
    schedule = Schedule(optimizer, total or method.total_steps, warmup, stages=method.stages())
    schedule.at(start)
    for step in range(start, start + steps):
        x, y = batch(step)
        with method.watching(None):
            loss = nn.functional.cross_entropy(net(x), y)
        penalty = method.penalty()
        (loss if penalty is None else loss + penalty).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_([p for p in net.parameters() if p.requires_grad], clip)
        method.gradients_ready(step)
        optimizer.step()
        schedule.at(step + 1)
        method.after_step(step, optimizer, schedule)
        optimizer.zero_grad()
        begin_due(method, step, optimizer)
        if each:
            each(step)
    return optimizer, schedule


def begin_due(method: Method, step: int, optimizer: RowwiseAdamW) -> None:
    """Begins the next of the method's increments, which share out the run equally, if one ended with this step."""
    ends = [round(number * method.total_steps / method.increments) for number in range(1, method.increments)]
    if step + 1 in ends:
        x, labels = batch(900)
        method.begin_increment(ends.index(step + 1) + 1, step, optimizer, [{"x": x, "labels": labels}])
