"""Methods with one low-rank adapter on each chosen linear layer: set-up, budget, counts, saved state and export.

`LowRankMethod` as it stands is LoRA with A ~ N(0, 0.02); a method overrides what it does differently.
docs/add-a-method.md lists the hooks. `SVDMethod` is the base of ElaLoRA, AdaLoRA and SVD-LoRA.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from elalora.adapters import LowRankLinear
from elalora.attach import attach, find_linears
from elalora.budget import Count
from elalora.directions import Directions
from elalora.errors import UserError
from elalora.export import save_as_adapter
from elalora.method import BudgetExceeded, Capabilities, Method, NeverActed
from elalora.regulariser import orthogonality
from elalora.resolve import RunSize, resolve

MANY = 10_000  # more matrices, or ranks, than any model has
OFF_BUDGET = 0.1  # relative distance to the budget from which tables set an adapter apart


class Tracker(Protocol):
    """Tensors that are saved with the method under a prefix."""

    prefix: str

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors by name."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state_dict` returned; the ranks of the adapters are restored before."""
        ...


class NamedTensors(dict[str, Tensor]):
    """A dictionary of tensors that is saved with the method; empty at the start.

    Args:
        prefix: of the names in the saved state.
        shapes: shape of every tensor, once there are any.
    """

    def __init__(self, prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.prefix, self.shapes = prefix, dict(shapes)

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return dict(self)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores copies of the tensors.

        Raises:
            ValueError: names or shapes are not those of the adapted matrices.
        """
        if state and {name: tuple(tensor.shape) for name, tensor in state.items()} != self.shapes:
            raise ValueError(f"the saved tensors '{self.prefix}.*' do not fit the adapted matrices")
        self.clear()
        self.update({name: tensor.clone() for name, tensor in state.items()})


class LowRankMethod(Method):
    """A method with one low-rank adapter on each chosen linear layer.

    Attributes:
        singular: whether adapters have E, one number per direction (singular values or gates).
        saved: names of attributes with JSON values that are saved with the method.
        rank_advice: what to type if a matrix starts above its largest rank, {limit}.
        adapters: by module name, in the model's order; set by `attach`.
        trackers: what else is saved and restored with the method; filled in `after_attach`.
    """

    singular: ClassVar[bool] = False
    saved: ClassVar[Sequence[str]] = ()
    rank_advice: ClassVar[str] = "type budget=r{limit} or less"
    capabilities: ClassVar[Capabilities] = Capabilities()
    adapters: dict[str, LowRankLinear]
    trackers: list[Tracker]

    def attach(
        self, model: nn.Module, targets: Sequence[str], total_steps: int, keep: Sequence[str] = (), seed: int = 0
    ) -> nn.Module:
        linears = find_linears(model, targets, outside=keep)
        costs = [linear.in_features + linear.out_features + self.singular for linear in linears.values()]
        assert self.budget is not None
        self.mean_rank = self.budget.mean_rank(costs)
        self.config = resolve(self.config, RunSize(total_steps, self.mean_rank))
        self.generator.manual_seed(seed)  # initial ranks may be random
        ranks = self.initial_ranks(linears)
        for name, linear in linears.items():
            check_rank(ranks[name], name, linear, self.rank_advice)
        self.config = resolve(self.config, RunSize(total_steps, self.mean_rank, sum(ranks.values())))
        self.plan(total_steps, sum(ranks.values()))
        super().attach(model, targets, total_steps, keep, seed)
        self.adapters = attach(model, linears, lambda name, linear: self._adapter(linear, ranks[name]))
        for adapter in self.adapters.values():
            self.initialise(adapter)
        self.trackers = []
        self.after_attach()
        save_as_adapter(self, model)
        return model

    def after_attach(self) -> None:
        """Creates the method's state and its `trackers`; called at the end of `attach`."""

    def check_length(self, total_steps: int) -> None:
        super().check_length(total_steps)
        assert self.budget is not None
        self.mean_rank = self.budget.rank or MANY
        self.plan(total_steps, self.mean_rank * MANY)

    def plan(self, total_steps: int, rank_sum: int) -> None:
        """Fixes the method's schedule before the model is changed; raises UserError if it does not fit.

        `check_length` calls it too, before a model is loaded, with a rank sum larger than that of any model.
        """

    def _adapter(self, linear: nn.Linear, rank: int) -> LowRankLinear:
        limit = min(linear.in_features, linear.out_features)
        slots = Directions(min(limit, self.capacity(rank)), rank)
        return LowRankLinear(linear, slots, self.scale(rank), self.singular, getattr(self.config, "dropout", 0.0))

    def initial_ranks(self, linears: Mapping[str, nn.Linear]) -> dict[str, int]:
        """Rank of each matrix at the start; the budget's mean rank by default."""
        return dict.fromkeys(linears, self.mean_rank)

    def capacity(self, rank: int) -> int:
        """Slots of a matrix that starts at `rank`, the most directions it can have; by default ranks never grow."""
        return rank

    def scale(self, rank: int) -> float:
        """Factor on the update of a matrix: alpha / r, with the rank at the start."""
        return self.config.alpha / max(1, rank)

    def initialise(self, adapter: LowRankLinear) -> None:
        """Draws A ~ N(0, 0.02), and B too if E exists; E, or else B, stays 0, so the output is unchanged."""
        draw_normal(adapter.A, adapter.rank, 0.02, self.generator)
        if adapter.E is not None:
            draw_normal(adapter.B, adapter.rank, 0.02, self.generator)

    def start_from(self, factors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        for name, (a, b) in factors.items():
            adapter = self.adapters.get(name)
            if adapter is None:
                raise UserError(f"the adapter to start from has a matrix '{name}', which this run does not adapt")
            if (a.shape[1], b.shape[0]) != (adapter.in_features, adapter.out_features):
                raise UserError(f"the adapter to start from has another shape at '{name}': use a run of the same model")
            if a.shape[0] > adapter.rank:
                raise UserError(
                    f"the adapter to start from has rank {a.shape[0]} at '{name}', but this run starts there with "
                    f"{adapter.rank}: start from a run of a smaller budget or with fixed ranks"
                )
        for name, (a, b) in factors.items():
            self.adapters[name].take(a, b)

    def directions(self) -> dict[Tensor, Directions]:
        return {p: adapter.directions for adapter in self.adapters.values() for p in adapter.factors()}

    def decays(self, parameter: nn.Parameter) -> bool:
        # E decays with A and B, as in the authors' codes
        return parameter.ndim > 1 or any(parameter is adapter.E for adapter in self.adapters.values())

    def adapter_parameters(self) -> list[nn.Parameter]:
        return [p for adapter in self.adapters.values() for p in adapter.factors()]

    def ranks(self) -> dict[str, int]:
        return {name: adapter.rank for name, adapter in self.adapters.items()}

    def shapes(self) -> dict[str, tuple[int, int]]:
        return {n: (a.base.out_features, a.base.in_features) for n, a in self.adapters.items()}

    def count(self) -> Count:
        reserve = self.reserve()
        held = {name: rank + reserve.get(name, 0) for name, rank in self.ranks().items()}
        return Count(sum(held.values()), sum(rank * self.adapters[name].cost for name, rank in held.items()))

    def budget_use(self) -> tuple[int, int]:
        """What the budget counts, now and at most: the rank sum, or the adapter parameters."""
        assert self.budget is not None
        if self.budget.params is not None:
            return self.count().params, self.budget.params
        return self.count().rank_sum, self.mean_rank * len(self.adapters)

    @property
    def budget_distance(self) -> float:
        """Relative distance of the adapter to its budget: 0.1 is ten per cent above."""
        now, allowed = self.budget_use()
        return now / allowed - 1

    @property
    def spare(self) -> int | None:
        """Adapter parameters that the budget still allows; None without a parameter budget."""
        assert self.budget is not None
        return None if self.budget.params is None else self.budget.params - self.count().params

    def prune(self, directions: Iterable[tuple[str, int]]) -> None:
        """Removes directions, each a pair (matrix, slot)."""
        # from the highest slot down, because the last row moves into the gap
        for name, slot in sorted(directions, key=lambda entry: -entry[1]):
            self.adapters[name].directions.die(slot)

    def finish(self) -> None:
        self.check_budget()

    def check_acted(self, due: int, cause: str) -> None:
        """Raises NeverActed if rounds were due and none of them moved a rank.

        Args:
            due: number of rounds that the run should have had.
            cause: what can have gone wrong, for the message.
        """
        if due and not any(r.grown or r.pruned for r in self.rounds_seen):
            raise NeverActed(f"{due} rounds were due and no rank moved ({len(self.rounds_seen)} rounds ran): {cause}")

    def shortfall(self) -> list[str]:
        """By how much this result is below its budget, as a flag for tables; empty within half a percent."""
        now, allowed = self.budget_use()
        return [f"{1 - now / allowed:.0%} below budget"] if now < 0.995 * allowed else []

    def check_budget(self) -> None:
        now, allowed = self.budget_use()
        by_rank = self.budget is not None and self.budget.params is None
        kind = "rank sum" if by_rank else "adapter parameters"
        if now > allowed:
            raise BudgetExceeded(f"budget overrun: {kind} {now}, allowed {allowed}")
        if self.capabilities.budget == "growing":
            free = [a for a in self.adapters.values() if a.rank < a.directions.capacity]
            if free and now + min(1 if by_rank else a.cost for a in free) <= allowed:
                raise BudgetExceeded(f"growth has not reached the budget: {kind} {now} of {allowed}")

    def lora_factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {name: adapter.lora_factors() for name, adapter in self.adapters.items()}

    def state_dict(self) -> dict[str, Any]:
        slots = {name: adapter.rank for name, adapter in self.adapters.items()}
        state = super().state_dict() | {"ranks": slots} | {name: getattr(self, name) for name in self.saved}
        for tracker in self.trackers:
            state |= {f"{tracker.prefix}.{key}": value for key, value in tracker.state_dict().items()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        for name, rank in state["ranks"].items():
            self.adapters[name].directions.restore(rank)
        for name in self.saved:
            setattr(self, name, copy.deepcopy(state[name]))
        for tracker in self.trackers:
            start = f"{tracker.prefix}."
            tracker.load_state_dict({k.removeprefix(start): v for k, v in state.items() if k.startswith(start)})


class SVDMethod(LowRankMethod):
    """A method with W = W0 + scale * B diag(E) A whose A and B are kept near orthonormal.

    Its config has orth_weight (gamma) and orth_form (`elalora.regulariser`), and two settings that no paper has. A and
    B hear of the task through E only, and AdamW moves E by about the learning rate per step, from 0 on:

        E_rate: factor on the learning rate of E, and so on its weight decay.
        E_start: value of E in all directions at the start. Above 0 the update starts at random values of about
            scale * E_start * 0.0004 sqrt(r) instead of at 0. Directions that are born later start at 0 all the same.
    """

    singular: ClassVar[bool] = True

    def initialise(self, adapter: LowRankLinear) -> None:
        super().initialise(adapter)
        assert adapter.E is not None
        adapter.E.data[: adapter.rank] = self.config.E_start

    def start_from(self, factors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        if self.config.E_start:
            raise UserError(
                f"method.E_start={self.config.E_start} would add to the update that init_from starts from: remove one"
            )
        super().start_from(factors)

    def groups(self, model: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """As in the base class; with E_rate other than 1, E has a separate group."""
        groups = super().groups(model, lr, weight_decay)
        if self.config.E_rate == 1:
            return groups
        values = [adapter.E for adapter in self.adapters.values() if adapter.E is not None]
        return apart(groups, values, lr=lr * self.config.E_rate, weight_decay=weight_decay)

    def penalty(self) -> Tensor | None:
        if not self.config.orth_weight:
            return None
        return self.config.orth_weight * orthogonality(self.adapters.values(), self.config.orth_form)


def apart(groups: list[dict[str, Any]], parameters: Iterable[nn.Parameter], **options: Any) -> list[dict[str, Any]]:
    """The optimizer's groups with these parameters in a last group of their own, which has these options."""
    moved = list(parameters)
    ids = {id(p) for p in moved}
    rest = [{**group, "params": [p for p in group["params"] if id(p) not in ids]} for group in groups]
    return [group for group in [*rest, {"params": moved, **options}] if group["params"]]


def check_rank(rank: int, name: str, linear: nn.Linear, advice: str = LowRankMethod.rank_advice) -> None:
    """Raises UserError for a rank above min(d_in, d_out), with what to type as `LowRankMethod.rank_advice`."""
    d_in, d_out = linear.in_features, linear.out_features
    if rank > min(d_in, d_out):
        raise UserError(
            f"rank {rank} is above min(d_in, d_out) = {min(d_in, d_out)} of '{name}' ({d_out} x {d_in}): "
            + advice.format(limit=min(d_in, d_out))
        )


@torch.no_grad()
def draw_normal(tensor: Tensor, rows: int, std: float, generator: torch.Generator) -> None:
    """Fills the first rows with draws from N(0, std), made on the CPU so that every device gets the same numbers."""
    shape = (rows, *tensor.shape[1:])
    tensor[:rows].copy_(torch.randn(shape, generator=generator) * std)


def draw_kaiming(tensor: Tensor, rows: int, generator: torch.Generator) -> None:
    """Fills the first rows with draws from U(-1/sqrt(d), 1/sqrt(d)): Kaiming-uniform with a = sqrt(5)."""
    draw_uniform(tensor, rows, tensor.shape[1] ** -0.5, generator)


@torch.no_grad()
def draw_uniform(tensor: Tensor, rows: int, bound: float, generator: torch.Generator) -> None:
    """Fills the first rows with draws from U(-bound, bound), made on the CPU so that every device gets the same."""
    shape = (rows, *tensor.shape[1:])
    tensor[:rows].copy_((torch.rand(shape, generator=generator) * 2 - 1) * bound)
