"""SD-LoRA: directions of earlier tasks stay, and only their magnitudes train on (Wu et al., arXiv 2501.13198).

    h = (W0 + sum_{k < t} a_k D_k + a_t D_t) x        D_k = B_k A_k / (|B_k|_F |A_k|_F)

Task t trains A_t, B_t and the magnitudes a_1 .. a_t, one number for each task that all matrices share. A is drawn
Kaiming-uniform, B starts at 0, a_t at `start`. While B is 0, D_t is taken without its norm, which would be 0 / 0.

Two settings spend fewer ranks. "rr" lowers the rank of later tasks. "kd" fits a new direction by the old ones with
least squares; if they explain it, their coefficients go into the magnitudes and the direction is dropped. The
magnitudes are shared, so here one fit spans all matrices, and the residual is the mean over matrices of its squared
norm (assumed).

`variant=paper` follows the paper's text, `official` the authors' code at commit 8bacded, effect by effect:

    L_D1        the magnitudes that were learned are dropped: all start again with every task
    normalise   false: the current direction trains without its norm, and the function jumps when it becomes an old one
    sgd         SGD with momentum 0.9 instead of AdamW
    start       0.8 instead of 1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elalora.adapters import LowRankLinear
from elalora.chain import ChainLinear
from elalora.directions import Directions
from elalora.errors import check_choices, check_numbers
from elalora.low_rank import NamedTensors
from elalora.method import Round
from elalora.optim import RowwiseAdamW
from elalora.resolve import RunSize, unread
from elalora.schedules import Schedule

from .increment_pieces import IncrementPieces

MOMENTUM = 0.9
LATER_RANKS = (1.0, 0.8, 0.6)  # 10, 8 and 6 of the paper


@dataclass
class SDLoRAConfig:
    """Settings of SD-LoRA; None takes the variant's value.

    Attributes:
        variant: "paper" or "official".
        reduce: "none", "rr" (lower ranks for later tasks) or "kd" (directions that old ones explain are dropped).
        mu, nu: with "rr", the tasks from which the rank is 0.8 and 0.6 of the budget's, counted from 0.
        tau: with "kd", the residual below which a direction is dropped.
        rescale: whether the magnitudes of earlier directions train on; false is a row of the paper's Table 4.
        start: magnitude of a new direction.
        normalise: whether the direction that trains is divided by its norm.
        sgd: SGD with momentum 0.9 instead of AdamW.
        L_D1: every task starts with all magnitudes at `start`.
    """

    variant: str = "paper"
    reduce: str = "none"
    mu: int = 4
    nu: int = 8
    tau: float = 9e-4
    rescale: bool = True
    start: float | None = None
    normalise: bool | None = None
    sgd: bool | None = None
    L_D1: bool | None = None
    rewarm: ClassVar[bool] = False
    matched: ClassVar[str] = "trained"

    def __post_init__(self) -> None:
        check_choices(self, variant=("paper", "official"), reduce=("none", "rr", "kd"))
        check_numbers(self, "be at least 1", "mu", "nu")
        check_numbers(self, "be above 0", "tau", "start")

    def resolved(self, size: RunSize) -> SDLoRAConfig:
        """The settings as they act, see `elalora.resolve`."""
        official = self.variant == "official"
        values = {"start": 0.8 if official else 1.0, "normalise": not official, "sgd": official, "L_D1": official}
        given = {name: getattr(self, name) for name in values if getattr(self, name) is not None}
        idle = [name for name, read in (("mu", "rr"), ("nu", "rr"), ("tau", "kd")) if self.reduce != read]
        return replace(self, **values | given | unread(self, *idle))


class SDLinear(ChainLinear):
    """A frozen layer with the frozen directions of earlier tasks, each with its magnitude, and one that trains.

    Attributes:
        magnitudes: a, one number for each task; all layers share them.
        sizes: rows of each frozen direction.
        normalise: whether the direction that trains is divided by its norm.
        rescale: whether the magnitudes of the frozen directions train.
    """

    fused: ClassVar[bool] = False
    magnitudes: nn.Parameter

    def __init__(self, base: nn.Linear, directions: Directions, scale: float, dropout: float = 0.0) -> None:
        super().__init__(base, directions, scale, dropout)
        self.sizes: list[int] = []
        self.normalise = self.rescale = True

    def make_room(self, rows: int) -> None:
        """Makes room for this many frozen rows, also above min(d_in, d_out): each keeps its own magnitude."""
        self.merged = 0
        self.register_buffer("frozen_A", self.A.detach().new_zeros(rows, self.in_features))
        self.register_buffer("frozen_B", self.A.detach().new_zeros(rows, self.out_features))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., d_in) to (..., d_out)."""
        out = LowRankLinear.forward(self, x)
        if not self.merged:
            return out
        down = F.linear(x.to(self.A.dtype), self.frozen_A[: self.merged]) * self.row_magnitudes()  # (..., rows)
        return out + F.linear(down, self.frozen_B[: self.merged].T.to(down.dtype)).to(out.dtype)

    def row_magnitudes(self) -> Tensor:
        """The magnitude of every frozen row, (merged,)."""
        old = self.magnitudes[: len(self.sizes)]
        old = old if self.rescale else old.detach()
        return old.repeat_interleave(torch.tensor(self.sizes, device=self.A.device))

    def norm(self) -> Tensor:
        """|A|_F |B|_F of the direction that trains, or 1 while it is 0."""
        product = self.A[: self.rank].norm() * self.B[: self.rank].norm()
        return torch.where(product > 0, product, torch.ones_like(product))

    def scaled_b(self) -> Tensor:
        """a_t B / (|A| |B|) of the direction that trains, (r, d_out)."""
        factor = self.magnitudes[len(self.sizes)]
        return self.B[: self._rows] * (factor / self.norm() if self.normalise else factor)

    @torch.no_grad()
    def _joined(self) -> tuple[Tensor, Tensor]:
        """All directions times their magnitudes as rows (n, d_in) and (n, d_out), as one product above min(d)."""
        a = torch.cat([self.frozen_A[: self.merged], self.A[: self.rank]])
        old = self.frozen_B[: self.merged] * self.row_magnitudes()[:, None]
        return self.compressed(a, torch.cat([old, self.scaled_b()[: self.rank]]))

    @torch.no_grad()
    def direction(self) -> tuple[Tensor, Tensor]:
        """The direction that trains, with norms 1: (r, d_in) and (r, d_out)."""
        return self.A[: self.rank].clone(), self.B[: self.rank] / self.norm()


class SDLoRA(IncrementPieces):
    """See the module's docstring.

    Attributes:
        sizes: rows of every direction that was kept, the same in all matrices.
        momentum: of SGD, by number of the trained parameter.
    """

    name: ClassVar[str] = "sd_lora"
    title: ClassVar[str] = "SD-LoRA"
    Config: ClassVar[type] = SDLoRAConfig
    config: SDLoRAConfig
    layer: ClassVar[type[ChainLinear]] = SDLinear
    adapters: dict[str, SDLinear]  # type: ignore[assignment]
    saved: ClassVar[Sequence[str]] = (*IncrementPieces.saved, "sizes")

    @property
    def label(self) -> str:
        return self.title + {"none": "", "rr": "-RR", "kd": "-KD"}[self.config.reduce]

    # -- set-up ----------------------------------------------------------------------------------------

    def scale(self, rank: int) -> float:
        return 1.0

    def attach(
        self, model: nn.Module, targets: Sequence[str], total_steps: int, keep: Sequence[str] = (), seed: int = 0
    ) -> nn.Module:
        model = super().attach(model, targets, total_steps, keep, seed)
        self.trained_parameters = [p for p in model.parameters() if p.requires_grad]
        shapes = {str(number): tuple(p.shape) for number, p in enumerate(self.trained_parameters)}
        self.momentum = NamedTensors("momentum", shapes)
        self.pending: list[Tensor] = []
        self.trackers.append(self.momentum)
        return model

    def after_attach(self) -> None:
        like = next(iter(self.adapters.values())).A
        self.magnitudes = nn.Parameter(like.detach().new_full((self.increments,), float(self.config.start or 1.0)))
        self.sizes: list[int] = []
        for adapter in self.adapters.values():
            adapter.magnitudes = self.magnitudes
            adapter.normalise, adapter.rescale = bool(self.config.normalise), self.config.rescale
        super().after_attach()

    def rank_of(self, task: int) -> int:
        """The rank of a task's direction, counted from 0."""
        if self.config.reduce != "rr":
            return self.piece_rank()
        share = LATER_RANKS[(task >= self.config.mu) + (task >= self.config.nu)]
        return max(1, round(share * self.piece_rank()))

    def _fix(self) -> None:
        super()._fix()
        for adapter in self.adapters.values():
            adapter.sizes = self.sizes

    # -- a step of SGD -----------------------------------------------------------------------------------

    def gradients_ready(self, step: int) -> None:
        if self.config.sgd:  # AdamW passes over parameters without a gradient
            self.pending = [p.new_zeros(()) if p.grad is None else p.grad for p in self.trained_parameters]
            for parameter in self.trained_parameters:
                parameter.grad = None

    @torch.no_grad()
    def after_step(self, step: int, optimizer: RowwiseAdamW, schedule: Schedule) -> Round | None:
        if not self.config.sgd:
            return None
        peaks = zip(optimizer.param_groups, schedule.peaks, strict=True)
        rates = {id(p): peak * schedule.factor(step) for group, peak in peaks for p in group["params"]}
        for number, (parameter, grad) in enumerate(zip(self.trained_parameters, self.pending, strict=True)):
            moved = self.momentum.get(str(number), torch.zeros_like(parameter))
            self.momentum[str(number)] = MOMENTUM * moved + grad
            parameter.sub_(rates[id(parameter)] * self.momentum[str(number)])
        return None

    # -- from task to task -------------------------------------------------------------------------------

    @torch.no_grad()
    def next_piece(self) -> None:
        self._keep_or_fold()
        self.piece += 1
        self.momentum.clear()
        start = float(self.config.start or 1.0)
        self.magnitudes[0 if self.config.L_D1 else len(self.sizes) :] = start
        rank = self.rank_of(self.piece)
        for adapter in self.adapters.values():
            while adapter.rank:
                adapter.directions.die(adapter.rank - 1)
            for _ in range(rank):
                adapter.directions.be_born()
            self.initialise(adapter)
        self._began()

    def _keep_or_fold(self) -> None:
        """Adds the direction that was trained to the frozen ones; with "kd", unless they explain it."""
        if self.config.reduce == "kd" and self.sizes:
            coefficients, residual = fit(list(self.adapters.values()))
            if residual < self.config.tau:
                current = self.magnitudes[len(self.sizes)]
                self.magnitudes[: len(self.sizes)] += current * torch.as_tensor(coefficients).to(self.magnitudes)
                dropped = self.trained()
                self.added = [self.added[0] - dropped.rank_sum, self.added[1] - dropped.params]
                return
        for adapter in self.adapters.values():
            a, b = adapter.direction()
            norm = a.norm()
            old_a, old_b = adapter.frozen_A[: adapter.merged], adapter.frozen_B[: adapter.merged]
            adapter.set_frozen(torch.cat([old_a, a / norm]), torch.cat([old_b, b * norm]))
        self.sizes.append(next(iter(self.adapters.values())).rank)
        self._fix()


def fit(adapters: Sequence[SDLinear]) -> tuple[np.ndarray, float]:
    """Least squares of the direction that trains by the frozen ones, one coefficient each for all matrices.

    Returns:
        The coefficients (k,), and the mean over matrices of the squared norm of what they leave.
    """
    sizes = [*adapters[0].sizes, adapters[0].rank]
    ends = np.cumsum([0, *sizes])
    gram = np.zeros((len(sizes), len(sizes)))
    for adapter in adapters:
        a, b = adapter.direction()
        rows = torch.cat([adapter.frozen_A[: adapter.merged], a]).double()
        columns = torch.cat([adapter.frozen_B[: adapter.merged], b]).double()
        # <B_k A_k, B_l A_l> is the sum over pairs of rows of the products of their inner products
        products = ((rows @ rows.T) * (columns @ columns.T)).cpu().numpy()
        gram += np.add.reduceat(np.add.reduceat(products, ends[:-1], axis=0), ends[:-1], axis=1)
    old, new, size = gram[:-1, :-1], gram[:-1, -1], gram[-1, -1]
    coefficients = np.linalg.lstsq(old, new, rcond=None)[0]
    left = size - 2 * coefficients @ new + coefficients @ old @ coefficients
    return coefficients, max(0.0, float(left)) / len(adapters)
