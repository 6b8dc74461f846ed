"""The one interface between a fine-tuning method and the loop that trains it.

A loop calls, in this order:

    model = method.attach(model, targets, total_steps, keep, seed)
    method.start_from(factors)                              where another run's update is the start
    optimizer = RowwiseAdamW(method.groups(model, lr, decay), method.directions())
    schedule = Schedule(optimizer, total_steps, warmup, stages=method.stages())
    for step in range(total_steps):
        penalty = method.penalty()                          in time for its gradients to be added in place
        with method.watching(mask): loss = model(...)       for each micro-batch
        (loss + penalty).backward()
        clip the gradients
        method.gradients_ready(step)
        optimizer.step(); schedule.at(step + 1)
        method.after_step(step, optimizer, schedule)
        zero the gradients
    method.finish()

Nothing else distinguishes one method from another; a loop never asks for a method's name. `Method` is the
interface with the answers of a method that adapts nothing; `LowRankMethod` adds what every method with
adapters shares. `step` is 0-based and counts optimizer steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from elalora.adapters import LowRankLinear
from elalora.attach import attach, find_linears
from elalora.budget import Budget, Count, check_rank
from elalora.directions import Directions
from elalora.errors import UserError
from elalora.optim import RowwiseAdamW
from elalora.schedules import RoundTimes, Schedule

MANY = 10_000  # matrices, or ranks, more than any model has


class MethodFailure(RuntimeError):
    """A run that must not become a number.

    Attributes:
        failure: its kind in status.json, by which failures are counted.
    """

    failure = "crash"


class NeverActed(MethodFailure):
    """An allocator that was due and moved nothing."""

    failure = "never_acted"


class BudgetExceeded(MethodFailure):
    """A hard budget that is exceeded where it is read."""

    failure = "budget"


@dataclass(frozen=True)
class Capabilities:
    """What a method promises; contract tests and the loop's checks apply by these.

    Attributes:
        ranked: it has a rank for each adapted matrix.
        adaptive: ranks (or masks, or gates) change during training.
        exports_lora: the result can be written as fixed-rank LoRA.
        budget: "constant" (the rank sum never exceeds the budget), "final" (it does not at the end),
            "soft" (it approaches the budget), or "none" (there is no budget, one run serves all budgets).
        reconstructed: built without its authors' code; every table says so.
    """

    ranked: bool = True
    adaptive: bool = False
    exports_lora: bool = True
    budget: str = "constant"
    reconstructed: bool = False


@dataclass(frozen=True)
class Round:
    """One change of ranks, as it is written to ranks.jsonl.

    Attributes:
        step: the optimizer step it followed.
        ranks: of every matrix after it.
        pruned: (matrix, slot) of each direction that died or was masked.
        grown: matrix of each direction that was born or came back, as often as it gained.
        scores: of every direction before it, by matrix.
        notes: counts worth reporting, for instance blocked expansions.
    """

    step: int
    ranks: dict[str, int]
    pruned: list[tuple[str, int]] = field(default_factory=list)
    grown: list[str] = field(default_factory=list)
    scores: dict[str, list[float]] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)


class Method:
    """A fine-tuning method; this base adapts nothing and trains the kept modules only.

    Args:
        config: the method's dataclass.
        budget: None for a method without one.

    Attributes:
        phases: when its rounds are due, for methods that plan them; set by `check_length` and by `attach`.
        pattern: ranks of another run by matrix, set before `attach` where `ranks_from` names that run.
        rounds_seen: the rounds so far.
        whole: names of the modules trained whole (`keep` of `attach`).
    """

    name: ClassVar[str]
    title: ClassVar[str]
    numerics: ClassVar[int] = 1
    capabilities: ClassVar[Capabilities] = Capabilities(ranked=False, exports_lora=False, budget="none")
    Config: ClassVar[type]
    phases: RoundTimes | None = None
    pattern: Mapping[str, int] | None = None

    def __init__(self, config: Any, budget: Budget | None = None) -> None:
        if budget is None and self.capabilities.budget != "none":
            raise UserError(f"method={self.name} needs a budget: type for instance budget=r4")
        self.config = config
        self.budget = budget
        self.generator = torch.Generator()
        self.rounds_seen: list[Round] = []
        self.whole: list[str] = []

    # -- identity: available before `attach` -------------------------------------------------------------

    @property
    def variant(self) -> str | None:
        """The variant that the config chooses; None for a method without variants."""
        return getattr(self.config, "variant", None)

    @property
    def label(self) -> str:
        """The name of this arm in tables."""
        return self.title

    @property
    def ranks_from(self) -> str | None:
        """The run whose final ranks this one starts with (the setting method.ranks_from); None without such a run."""
        return getattr(self.config, "ranks_from", None)

    # -- set-up ----------------------------------------------------------------------------------------

    def check_length(self, total_steps: int) -> None:
        """Asks, before there is a model, whether a run of so many steps has room for the schedule.

        For an instance that is dropped afterwards: a sweep is planned where no model is loaded.

        Raises:
            UserError: `attach` would refuse it too, whatever the model.
        """
        self.total_steps = total_steps

    def attach(
        self,
        model: nn.Module,
        targets: Sequence[str],
        total_steps: int,
        keep: Sequence[str] = (),
        seed: int = 0,
    ) -> nn.Module:
        """Freezes the model but for the modules named in `keep` (the task head) and adds what the method adds.

        Args:
            model: changed in place.
            targets: name patterns of the linear layers to adapt (`elalora.attach`).
            total_steps: optimizer steps of the run; schedules are fixed here.
            keep: names of submodules that are trained whole.
            seed: of every random choice the method makes.

        Returns:
            The model to call; the same object for every method written here.

        Raises:
            UserError: targets, ranks or phases that do not fit; the model is then as it was.
        """
        self.generator.manual_seed(seed)
        self.total_steps = total_steps
        self.whole = list(keep)
        freeze(model, keep)
        return model

    def start_from(self, factors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Starts from another run's update, after `attach` and before the first step; heads are not taken.

        Args:
            factors: A (n, d_in) and B (d_out, n) by matrix, as `lora_factors` gives them; one left out starts at 0.

        Raises:
            UserError: the method has no such start, or a matrix does not fit.
        """
        raise UserError(f"method={self.name} cannot start from another run's adapter: leave init_from away")

    def stages(self) -> tuple[int, ...]:
        """Lengths of consecutive passes, each with a learning-rate schedule of its own."""
        return (self.total_steps,)

    def groups(self, model: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Parameter groups of everything that trains; no decay on biases and norms."""
        decay: list[nn.Parameter] = []
        plain: list[nn.Parameter] = []
        for parameter in model.parameters():
            if parameter.requires_grad:
                (decay if self.decays(parameter) else plain).append(parameter)
        groups = [
            {"params": decay, "lr": lr, "weight_decay": weight_decay},
            {"params": plain, "lr": lr, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def decays(self, parameter: nn.Parameter) -> bool:
        """Whether weight decay applies: to matrices, not to biases and norms."""
        return parameter.ndim > 1

    def directions(self) -> dict[Tensor, Directions]:
        """Parameters with one row per direction, for the row-wise optimizer."""
        return {}

    @property
    def batches_wanted(self) -> bool:
        """Whether `prepare` must be called before the optimizer is made."""
        return False

    def prepare(self, batches: Sequence[dict[str, Tensor]]) -> None:
        """A data-driven start, for methods that want one.

        Args:
            batches: a few training batches, keyword arguments of the model; a resumed run is given the same.
        """

    # -- training --------------------------------------------------------------------------------------

    def penalty(self) -> Tensor | None:
        """A term added to the loss of every micro-batch, or None."""
        return None

    @contextmanager
    def watching(self, mask: Tensor | None, target_mask: Tensor | None = None) -> Iterator[None]:
        """Wraps a training forward pass; methods that need input statistics look in here.

        Args:
            mask: (batch, tokens), 0 at padding of the input; None where there is none.
            target_mask: likewise of the decoder's input, for encoder-decoder models.
        """
        yield

    def gradients_ready(self, step: int) -> None:
        """Gradients are complete, unscaled and clipped; parameters still have their old values."""

    def after_step(self, step: int, optimizer: RowwiseAdamW, schedule: Schedule) -> Round | None:
        """The optimizer has stepped and the schedule moved on; gradients are still there."""
        return None

    def finish(self) -> None:
        """Ends training: checks that the method acted and removes pruned directions.

        Raises:
            MethodFailure: rounds were due and nothing moved, or the budget is exceeded.
        """

    def check_budget(self) -> None:
        """Checks the ranks of this moment against the budget; does nothing for a method without one.

        Raises:
            BudgetExceeded: the rank sum or the adapter parameters exceed the budget.
        """

    def phase(self, step: int) -> str:
        """The name of the phase that a step belongs to, for display."""
        return "train"

    # -- reading ---------------------------------------------------------------------------------------

    def rounds_due(self) -> int:
        """Number of rounds that the run plans; without planned rounds, the number that happened."""
        if self.phases is None or not self.capabilities.adaptive:
            return len(self.rounds_seen)
        return len(self.phases.rounds())

    def ranks(self) -> dict[str, int]:
        """Current rank of every adapted matrix by module name."""
        return {}

    def shapes(self) -> dict[str, tuple[int, int]]:
        """(d_out, d_in) of every adapted matrix."""
        return {}

    def count(self) -> Count:
        """Rank sum and adapter parameters now; the head and other trained parts are counted elsewhere."""
        return Count(0, 0)

    @property
    def reconstructed(self) -> bool:
        """Whether this variant was built without its authors' text or code at hand; every table says so."""
        return self.capabilities.reconstructed

    def adapter_parameters(self) -> list[nn.Parameter]:
        """The parameters that belong to adapters, none of the head."""
        return []

    def trained_modules(self) -> list[str]:
        """Names of modules trained whole beside head and adapters, for instance LayerNorms; they are exported too."""
        return []

    def remarks(self) -> list[str]:
        """What a table must say of this result, for instance that it does not match the budget."""
        return []

    def lora_factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """A (r, d_in) and B (d_out, r) of every adapted matrix with W = W0 + B A.

        Raises:
            UserError: the method has no such form.
        """
        raise UserError(f"method={self.name} cannot be written as fixed-rank LoRA")

    def state_dict(self) -> dict[str, Any]:
        """Everything beside the model's trained parameters: tensors and JSON values by name."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` gave, after `attach` and `start`.

        Raises:
            Exception: of many kinds, where it cannot be the state of this method on these matrices.
        """
        self.generator.set_state(state["generator"])


class LowRankMethod(Method):
    """A method with one low-rank adapter on each chosen linear layer.

    Subclasses say whether adapters carry E (`singular`), how many slots a matrix gets (`capacity`), which
    ranks they start with (`initial_ranks`) and how factors are drawn (`initialise`).
    """

    singular: ClassVar[bool] = False
    capabilities: ClassVar[Capabilities] = Capabilities()
    adapters: dict[str, LowRankLinear]

    def attach(
        self,
        model: nn.Module,
        targets: Sequence[str],
        total_steps: int,
        keep: Sequence[str] = (),
        seed: int = 0,
    ) -> nn.Module:
        linears = find_linears(model, targets, outside=keep)
        costs = [linear.in_features + linear.out_features + self.singular for linear in linears.values()]
        assert self.budget is not None
        self.mean_rank = self.budget.mean_rank(costs)
        ranks = self.initial_ranks(linears)
        for name, linear in linears.items():
            check_rank(ranks[name], name, linear.in_features, linear.out_features)
        self.plan(total_steps, sum(ranks.values()))
        super().attach(model, targets, total_steps, keep, seed)
        self.adapters = attach(model, linears, lambda name, linear: self._adapter(linear, ranks[name]))
        for adapter in self.adapters.values():
            self.initialise(adapter)
        return model

    def check_length(self, total_steps: int) -> None:
        super().check_length(total_steps)
        assert self.budget is not None
        self.mean_rank = self.budget.rank or MANY
        self.plan(total_steps, self.mean_rank * MANY)

    def plan(self, total_steps: int, rank_sum: int) -> None:
        """Fixes the method's schedule before anything is changed; raises UserError where it does not fit.

        Also called before there is a model, with the rank sum of more matrices than any has (`check_length`).
        """

    def _adapter(self, linear: nn.Linear, rank: int) -> LowRankLinear:
        limit = min(linear.in_features, linear.out_features)
        slots = Directions(min(limit, self.capacity(rank)), rank)
        return LowRankLinear(linear, slots, self.scale(rank), self.singular, getattr(self.config, "dropout", 0.0))

    def initial_ranks(self, linears: Mapping[str, nn.Linear]) -> dict[str, int]:
        """Rank of each matrix at the start; the budget's mean rank everywhere unless overridden."""
        return dict.fromkeys(linears, self.mean_rank)

    def capacity(self, rank: int) -> int:
        """Slots of a matrix that starts at `rank`; as many as its rank where ranks never grow."""
        return rank

    def scale(self, rank: int) -> float:
        """Factor on a matrix's update, alpha / r with the rank at the start."""
        return self.config.alpha / max(1, rank)

    def initialise(self, adapter: LowRankLinear) -> None:
        """Draws A ~ N(0, 0.02); with singular values B too, and E = 0, else B = 0: the output is unchanged."""
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
                    f"the adapter to start from has rank {a.shape[0]} at '{name}', this run starts there with "
                    f"{adapter.rank}: start from a run of a smaller budget or with fixed ranks"
                )
        for name, (a, b) in factors.items():
            self.adapters[name].take(a, b)

    def directions(self) -> dict[Tensor, Directions]:
        return {p: adapter.directions for adapter in self.adapters.values() for p in adapter.factors()}

    def decays(self, parameter: nn.Parameter) -> bool:
        # E belongs to the matrices: it decays with A and B, as in the authors' codes
        return parameter.ndim > 1 or any(parameter is adapter.E for adapter in self.adapters.values())

    def adapter_parameters(self) -> list[nn.Parameter]:
        return [p for adapter in self.adapters.values() for p in adapter.factors()]

    def ranks(self) -> dict[str, int]:
        return {name: adapter.rank for name, adapter in self.adapters.items()}

    def shapes(self) -> dict[str, tuple[int, int]]:
        return {n: (a.base.out_features, a.base.in_features) for n, a in self.adapters.items()}

    def count(self) -> Count:
        return Count.of(self.ranks(), {name: adapter.cost for name, adapter in self.adapters.items()})

    def finish(self) -> None:
        self.check_budget()

    def check_budget(self) -> None:
        assert self.budget is not None
        now = self.count()
        allowed = self.mean_rank * len(self.adapters)
        if self.budget.rank is not None and now.rank_sum > allowed:
            raise BudgetExceeded(f"budget overrun: rank sum {now.rank_sum}, allowed {allowed}")
        if self.budget.params is not None and now.params > self.budget.params:
            raise BudgetExceeded(f"budget overrun: {now.params} adapter parameters, allowed {self.budget.params}")

    def lora_factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {name: adapter.lora_factors() for name, adapter in self.adapters.items()}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"ranks": self.ranks()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        for name, rank in state["ranks"].items():
            self.adapters[name].directions.restore(rank)


def freeze(model: nn.Module, keep: Sequence[str] = ()) -> None:
    """Freezes every parameter but those of the modules named in `keep`.

    Raises:
        UserError: a name in `keep` is not a module of the model.
    """
    model.requires_grad_(False)
    modules = dict(model.named_modules())
    for name in keep:
        if name not in modules:
            top = ", ".join(name for name, _ in model.named_children())
            raise UserError(f"'{name}' is not a module of the model (top level: {top}): set model.head=[...]")
        modules[name].requires_grad_(True)


@torch.no_grad()
def draw_normal(tensor: Tensor, rows: int, std: float, generator: torch.Generator) -> None:
    """Fills the first rows with N(0, std); drawn on the CPU, so every device gets the same numbers."""
    shape = (rows, *tensor.shape[1:])
    tensor[:rows].copy_(torch.randn(shape, generator=generator) * std)


@torch.no_grad()
def draw_kaiming(tensor: Tensor, rows: int, generator: torch.Generator) -> None:
    """Fills the first rows with U(-1/sqrt(d), 1/sqrt(d)), which is Kaiming-uniform with a = sqrt(5)."""
    bound = tensor.shape[1] ** -0.5
    shape = (rows, *tensor.shape[1:])
    tensor[:rows].copy_((torch.rand(shape, generator=generator) * 2 - 1) * bound)


def gross_share(rounds: Sequence[Round], rank_sum: int) -> float:
    """Directions replaced over the run, as a share of the rank sum R at the start."""
    return sum(len(r.grown) for r in rounds) / rank_sum if rank_sum else 0.0


def net_share(start: Mapping[str, int], end: Mapping[str, int]) -> float:
    """Half the sum over matrices of |r_end / R_end - r_start / R_start| (R the rank sum), between 0 and 1."""
    total_start, total_end = sum(start.values()), sum(end.values())
    if not total_start or not total_end:
        return 0.0
    return 0.5 * sum(abs(end[m] / total_end - start[m] / total_start) for m in start)
