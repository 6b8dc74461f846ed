"""The one interface between a fine-tuning method and the loop that trains it.

A loop calls, in this order:

    model = method.attach(model, targets, total_steps, keep, seed)
    method.start_from(factors)                              if the run starts from another run's update
    method.prepare(batches)                                 if method.batches_wanted
    optimizer = RowwiseAdamW(method.groups(model, lr, decay), method.directions())
    schedule = Schedule(optimizer, total_steps, warmup, stages=method.stages())
    for step in range(total_steps):
        penalty = method.penalty()                          before the forward pass: its gradients are added in place
        with method.watching(mask): loss = model(...)       for each micro-batch
        (loss + penalty).backward()
        clip the gradients
        method.gradients_ready(step)
        optimizer.step(); schedule.at(step + 1)
        method.after_step(step, optimizer, schedule)
        zero the gradients
        method.begin_increment(number, step, optimizer, batches)    if the next classes or domains arrive
    method.finish()

A loop needs nothing else of a method and never asks for its name. `Method` is this interface, with the defaults of a
method that adapts nothing; `LowRankMethod` (`elalora.low_rank`) adds what every method with adapters shares. `step` is
0-based and counts optimizer steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from elalora.attach import refuse_adapted, refuse_tied_modules
from elalora.budget import Budget, Count
from elalora.directions import Directions
from elalora.errors import UserError, check_finite
from elalora.optim import RowwiseAdamW
from elalora.schedules import Schedule, ThreePhases


class MethodFailure(RuntimeError):
    """The method failed, so the run must not report a result.

    Attributes:
        failure: the kind of failure as status.json and the tables name it.
    """

    failure = "crash"


class NeverActed(MethodFailure):
    """Rounds were due, and no rank moved."""

    failure = "never_acted"


class BudgetExceeded(MethodFailure):
    """The adapter is above its budget when the budget must hold, or a growing method did not reach it."""

    failure = "budget"


BUDGETS = ("constant", "at_most", "final", "growing", "soft", "trained", "none")


@dataclass(frozen=True)
class Capabilities:
    """What a method promises; the contract tests and the checks of a loop depend on it.

    Attributes:
        ranked: every adapted matrix has a rank.
        adaptive: ranks (or masks, or gates) change during training, so a run in which none moved fails.
        exports_lora: the result can be written as fixed-rank LoRA.
        budget: how the rank sum relates to the budget. "constant": equal to it at every step. "at_most": starts there
            and may end below it; tables say by how much. "final": starts above it and ends at most there. "growing":
            starts below it, never falls and ends there. "soft": approaches it. "trained": the ranks that train at once
            never exceed it, and all pieces together have more. "none": there is no budget, and one run serves all
            budgets.
        reconstructed: written without the authors' code at hand; every table marks it.
        neutral: the model computes the same before the first step as without adapters.

    Raises:
        ValueError: the kind of budget is unknown.
    """

    ranked: bool = True
    adaptive: bool = False
    exports_lora: bool = True
    budget: str = "constant"
    reconstructed: bool = False
    neutral: bool = True

    def __post_init__(self) -> None:
        if self.budget not in BUDGETS:
            raise ValueError(f"Capabilities.budget={self.budget} is unknown; allowed: {', '.join(BUDGETS)}")

    @property
    def final_only(self) -> bool:
        """Whether only the ranks after the last round are a result: those before are above the budget or below it."""
        return self.budget in ("final", "growing")


@dataclass(frozen=True)
class Round:
    """One change of ranks, as written to ranks.jsonl.

    Attributes:
        step: the optimizer step before it.
        ranks: rank of every matrix after it.
        pruned: (matrix, slot) of each direction that died or was masked.
        grown: matrix of each direction that was born or came back; a matrix appears once per direction.
        scores: scores of all directions before it, by matrix.
        notes: counts worth reporting, for example blocked expansions.
    """

    step: int
    ranks: dict[str, int]
    pruned: list[tuple[str, int]] = field(default_factory=list)
    grown: list[str] = field(default_factory=list)
    scores: dict[str, list[float]] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, line: Mapping[str, Any]) -> Round:
        """The round whose attributes were written as JSON, which has lists for pairs."""
        return cls(**{**line, "pruned": [(name, slot) for name, slot in line["pruned"]]})


class Method:
    """A fine-tuning method; this base class adapts nothing and trains only the modules in `keep`.

    Args:
        config: the method's dataclass.
        budget: None for a method without one.

    Attributes:
        phases: the planned rounds, for methods that plan them; set by `check_length` and `attach`.
        pattern: ranks of another run by matrix; set before `attach` if `ranks_from` names that run.
        increments: parts of the task that arrive one after another; set before `attach` if there are several.
        rounds_seen: the rounds so far.
        whole: names of the modules that are trained whole (`keep` of `attach`).
        start_scores: what the rank of every matrix at the start follows from, one number each; empty where `prepare`
            sets no ranks.
        numerics: revision of the numbers, part of a run's identity; revised: those of variants that have another one.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    numerics: ClassVar[int] = 1
    revised: ClassVar[Mapping[str, int]] = {}
    capabilities: ClassVar[Capabilities] = Capabilities(ranked=False, exports_lora=False, budget="none")
    Config: ClassVar[type]
    phases: ThreePhases | None = None
    pattern: Mapping[str, int] | None = None
    increments: int = 1

    def __init__(self, config: Any, budget: Budget | None = None) -> None:
        check_finite(config)
        if budget is None and self.capabilities.budget != "none":
            raise UserError(f"method={self.name} needs a budget: type for instance budget=r4")
        self.config = config
        self.budget = budget
        self.generator = torch.Generator()
        self.rounds_seen: list[Round] = []
        self.whole: list[str] = []
        self.start_scores: dict[str, float] = {}

    # -- identity: available before `attach` -------------------------------------------------------------

    @classmethod
    def revision(cls, config: Any) -> int:
        """The numerics revision of the variant that `config` chooses."""
        return cls.revised.get(getattr(config, "variant", ""), cls.numerics)

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
        """Checks whether the method's schedule fits a run of this length, before a model is loaded.

        Call it on an instance that is not attached afterwards.

        Raises:
            UserError: `attach` would refuse this length for every model.
        """
        self.total_steps = total_steps

    def attach(
        self, model: nn.Module, targets: Sequence[str], total_steps: int, keep: Sequence[str] = (), seed: int = 0
    ) -> nn.Module:
        """Freezes the model except for the modules in `keep` (the task head) and adds what the method trains.

        Args:
            model: changed in place.
            targets: name patterns of the linear layers to adapt (`elalora.attach`).
            total_steps: optimizer steps of the run; they fix the method's schedule.
            keep: names of submodules that are trained whole.
            seed: of every random choice that the method makes.

        Returns:
            The model to call; all methods of this project return the same object.

        Raises:
            UserError: targets, ranks or phases do not fit; the model is then unchanged.
        """
        refuse_adapted(model)
        self.generator.manual_seed(seed)
        self.total_steps = total_steps
        self.whole = list(keep)
        extra = list(self.extra_parameters(model, keep))
        freeze(model, keep)
        for parameter in extra:
            parameter.requires_grad_(True)
        return model

    def extra_parameters(self, model: nn.Module, keep: Sequence[str]) -> Iterable[nn.Parameter]:
        """Parameters of the model that train beside the modules in `keep`; called before anything is frozen."""
        return ()

    def start_from(self, factors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Starts from another run's update, after `attach` and before the first step; heads are not copied.

        Args:
            factors: A (n, d_in) and B (d_out, n) by matrix, as `lora_factors` returns them; other matrices start at 0.

        Raises:
            UserError: the method cannot start from factors, or a matrix does not fit.
        """
        raise UserError(f"method={self.name} cannot start from another run's adapter: remove init_from")

    def stages(self) -> tuple[int, ...]:
        """Lengths in steps of consecutive stages, each with its own learning-rate schedule."""
        return (self.total_steps,)

    def groups(self, model: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Parameter groups of everything that trains, without weight decay on biases and norms."""
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
        """The parameters that have one row per direction, with their directions, for `RowwiseAdamW`."""
        return {}

    @property
    def batches_wanted(self) -> bool:
        """Whether `prepare` must be called before the optimizer is created."""
        return False

    def prepare(self, batches: Iterable[dict[str, Tensor]], ranks: Mapping[str, int] | None = None) -> None:
        """Reads training batches before the first step, for methods that take ranks or their start from data.

        Args:
            batches: those of the first epoch that the run will train on, in their order, as keyword arguments of the
                model. A method reads as many as it needs; every process must pass the same.
            ranks: of every matrix, as an earlier attempt of this run found them (`ranks` after `prepare`). The adapters
                then get their shapes without a pass over data, and a checkpoint must fill them.
        """

    # -- training --------------------------------------------------------------------------------------

    def penalty(self) -> Tensor | None:
        """A term added to the loss of every micro-batch, or None."""
        return None

    @contextmanager
    def watching(self, mask: Tensor | None, target_mask: Tensor | None = None) -> Iterator[None]:
        """Wraps a training forward pass; methods that need input statistics collect them inside.

        Args:
            mask: (batch, tokens), 0 at padding of the input; None without padding.
            target_mask: the same for the decoder's input, for encoder-decoder models.
        """
        yield

    def gradients_ready(self, step: int) -> None:
        """Called when gradients are complete, unscaled and clipped, before the optimizer changes the parameters."""

    def after_step(self, step: int, optimizer: RowwiseAdamW, schedule: Schedule) -> Round | None:
        """Called after the optimizer and the schedule have stepped; gradients are still present.

        Returns:
            What changed, if ranks changed.
        """
        return None

    def begin_increment(
        self, number: int, step: int, optimizer: RowwiseAdamW, batches: Iterable[dict[str, Tensor]]
    ) -> Round | None:
        """Called when the next part of a sequence of classes or domains begins; training on the one before is over.

        By default the adapter trains on, with fresh moments.

        Args:
            number: of the increment, from 1 on; the first begins with `attach`.
            step: the one that ended the increment before.
            optimizer: whose moments are dropped.
            batches: as for `prepare`, of this increment.

        Returns:
            What changed, if ranks changed.
        """
        optimizer.forget()
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
        """Name of the phase that a step belongs to, for display."""
        return self.phases.name(step) if self.phases and self.capabilities.adaptive else "train"

    # -- reading ---------------------------------------------------------------------------------------

    def rounds_due(self) -> int:
        """Number of planned rounds; for a method that does not plan them, the number that happened."""
        if self.phases is None or not self.capabilities.adaptive:
            return len(self.rounds_seen)
        return len(self.phases.rounds())

    def ranks(self) -> dict[str, int]:
        """Current rank of every adapted matrix, by module name."""
        return {}

    def shapes(self) -> dict[str, tuple[int, int]]:
        """(d_out, d_in) of every adapted matrix."""
        return {}

    def reserve(self) -> Mapping[str, int]:
        """Directions by matrix that train but are no rank yet, for growing methods; `count` includes them."""
        return {}

    def count(self) -> Count:
        """Current rank sum and number of adapter parameters, without the head and other trained modules."""
        return Count(0, 0)

    def further_counts(self) -> dict[str, Count]:
        """Counts beside `count` of an update that is a sum of pieces.

        "trained" is the largest piece, of which only what trains has parameters; "accumulated" is the sum over all
        pieces.
        """
        return {}

    @property
    def reconstructed(self) -> bool:
        """Whether this variant was written without its authors' text or code at hand; every table marks it."""
        return self.capabilities.reconstructed

    def adapter_parameters(self) -> list[nn.Parameter]:
        """The parameters of the adapters, without the head."""
        return []

    def trained_modules(self) -> list[str]:
        """Names of modules that train beside head and adapters, for example LayerNorms; they are exported too."""
        return []

    def remarks(self) -> list[str]:
        """Flags of this result for the tables, for example "off budget"."""
        return []

    @property
    def reading_ranks(self) -> tuple[int, ...]:
        """The ranks at which the trained model can be read, for methods that train several at once; else empty."""
        return ()

    @contextmanager
    def read_at(self, rank: int) -> Iterator[None]:
        """Within it, outputs, ranks and factors are those of one of the `reading_ranks`."""
        yield

    def lora_factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """A (r, d_in) and B (d_out, r) of every adapted matrix with W = W0 + B A.

        Raises:
            UserError: the result is not a low-rank update.
        """
        raise UserError(f"method={self.name} cannot be written as fixed-rank LoRA")

    def state_dict(self) -> dict[str, Any]:
        """The state beside the model's trained parameters: tensors and JSON values by name."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned; call it after `attach` and `start_from`.

        Raises:
            Exception: of many kinds, if this is not the state of this method on these matrices.
        """
        self.generator.set_state(state["generator"])


def freeze(model: nn.Module, keep: Sequence[str] = ()) -> None:
    """Freezes every parameter except those of the modules in `keep`.

    Raises:
        UserError: a name in `keep` is not a module of the model, or shares a weight with a module outside `keep`; the
            model is then unchanged.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in keep:
        if name not in modules:
            top = ", ".join(name for name, _ in model.named_children())
            raise UserError(f"'{name}' is not a module of the model (top level: {top}): set model.head=[...]")
        if not all(p.is_floating_point() for p in modules[name].parameters()):
            raise UserError(
                f"'{name}' is quantised, so it cannot be trained whole: load the model with "
                f"llm_int8_skip_modules=['{name}'] in its BitsAndBytesConfig"
            )
    refuse_tied_modules(model, keep)
    model.requires_grad_(False)
    for name in keep:
        modules[name].requires_grad_(True)


def gross_share(rounds: Sequence[Round], start: Mapping[str, int], end: Mapping[str, int]) -> float:
    """Number of directions that grew during the run, divided by the rank sum at the start or the end.

    The larger of the two sums counts. For a method that only grows, this is the share of its final directions that it
    placed itself.
    """
    rank_sum = max(sum(start.values()), sum(end.values()))
    return sum(len(r.grown) for r in rounds) / rank_sum if rank_sum else 0.0


def net_share(start: Mapping[str, int], end: Mapping[str, int]) -> float:
    """Half the sum over matrices of |r_end / R_end - r_start / R_start|, R being the rank sum; between 0 and 1.

    It compares the shapes of both layouts, so it is 0 where every matrix grew or shrank by the same factor.
    """
    total_start, total_end = sum(start.values()), sum(end.values())
    if not total_start or not total_end:
        return 0.0
    return 0.5 * sum(abs(end[m] / total_end - start[m] / total_start) for m in start)
