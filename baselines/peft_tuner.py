"""Any stock PEFT tuner as an arm, so that what PEFT offers is compared under the same protocol and statistics.

    method=peft +method.options.use_dora=true
    method=peft +method.options.init_lora_weights=pissa
    method=peft method.tuner=VERA +method.options.r=256

PEFT injects its layers into the model in place and the common loop trains them. This file only reads parameters, ranks
and factors from PEFT, calls its allocator after each step and adds its penalty. The budget becomes PEFT's rank; a tuner
whose rank costs other parameters than LoRA's is not `matched`, and its result is flagged.

peft is imported only when a tuner is attached.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from elalora.attach import find_linears, put
from elalora.budget import Budget, Count
from elalora.errors import UserError
from elalora.export import save_as_adapter
from elalora.low_rank import check_rank
from elalora.method import BudgetExceeded, Capabilities, Method, MethodFailure, NeverActed, Round
from elalora.optim import RowwiseAdamW
from elalora.patterns import changes
from elalora.resolve import RunSize
from elalora.schedules import Schedule

from .adalora import Masking, initial_rank, plan_masking

ADAPTER = "default"
BATCHES = 8  # training batches that EVA sees
# options that the common configuration sets
RESERVED = ("peft_type", "task_type", "modules_to_save", "inference_mode", "total_step")
# these route between tasks or adapters, or adapt no linear layer
UNSUPPORTED = ("POLY", "XLORA", "SHADOW", "TRAINABLE_TOKENS")
# starts that move a part of the frozen weight into the factors, W0 = W_frozen + scale * B0 A0
RESIDUAL = ("pissa", "olora")
# starts that leave the frozen weight as it is
PLAIN = (True, False, "gaussian", "eva", "orthogonal")


@dataclass
class PeftTunerConfig:
    """The tuner and its options.

    Attributes:
        tuner: a name of peft.PeftType, for example LORA, ADALORA, VERA, LOHA.
        options: arguments of the tuner's config class; other arguments keep PEFT's default.
        rank_key: the option that takes the budget's rank; None is target_r for ADALORA, else r if the tuner has it.
    """

    tuner: str = "LORA"
    options: dict[str, Any] = field(default_factory=dict)
    rank_key: str | None = None

    def resolved(self, size: RunSize) -> PeftTunerConfig:
        """The settings as they act, see `elalora.resolve`: PEFT takes 16 and 16.0 alike."""
        whole = {k: int(v) for k, v in self.options.items() if isinstance(v, float) and v.is_integer()}
        return replace(self, options=self.options | whole)

    @property
    def variant(self) -> str:
        """Tuner and options as one word, for names of runs and rows of tables."""
        plain = {k: v for k, v in sorted(self.options.items()) if isinstance(v, (bool, int, float, str))}
        return "-".join([self.tuner.lower(), *(k if v is True else f"{k}={v}" for k, v in plain.items())])


class PeftTuner(Method):
    """See the module's docstring.

    Attributes:
        peft_model: PEFT's wrapper around the model; the original model is trained.
        matrices: names of the adapted modules, including those that a redistribution left without rank.
    """

    name: ClassVar[str] = "peft"
    title: ClassVar[str] = "PEFT"
    Config: ClassVar[type] = PeftTunerConfig
    config: PeftTunerConfig
    # valid for the class, before the tuner is known; `attach` replaces it for the instance
    capabilities = Capabilities(budget="final")

    def __init__(self, config: PeftTunerConfig, budget: Budget | None = None) -> None:
        super().__init__(config, budget)
        self.rank_key: str | None = None
        self._waiting = False

    def check_length(self, total_steps: int) -> None:
        super().check_length(total_steps)
        if self.config.tuner == "ADALORA":
            self._phases(self.config.options, total_steps)

    def attach(
        self, model: nn.Module, targets: Sequence[str], total_steps: int, keep: Sequence[str] = (), seed: int = 0
    ) -> nn.Module:
        import peft

        linears = find_linears(model, targets, outside=keep)
        config = self._peft_config(linears, total_steps)
        trained_before = {p: p.requires_grad for p in model.parameters()}
        super().attach(model, targets, total_steps, keep, seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            try:
                self.peft_model = peft.get_peft_model(model, config)
            except (ValueError, TypeError, RuntimeError, KeyError, AttributeError, ImportError) as error:
                _undo(model, linears, trained_before)
                raise self._refused(error) from error
        self.tuner = self.peft_model.base_model
        for name in keep:
            model.get_submodule(name).requires_grad_(True)
        self._own = {id(p) for p in model.parameters()} - {id(p) for p in trained_before}
        self._take_in(model, linears)
        save_as_adapter(self, model)
        return model

    def _refused(self, error: Exception) -> UserError:
        """PEFT's error as a UserError that names the options."""
        options = ", ".join(f"method.options.{k}={v}" for k, v in self.config.options.items())
        return UserError(
            f"method.tuner={self.config.tuner} refuses {options or 'these targets and this budget'}: {error}"
        )

    def _peft_config(self, linears: Mapping[str, nn.Linear], total_steps: int) -> Any:
        settings = self._settings(linears, total_steps)
        try:
            return _config_class(self.config.tuner)(**settings)
        except (ValueError, TypeError) as error:
            raise self._refused(error) from error

    def _settings(self, linears: Mapping[str, nn.Linear], total_steps: int) -> dict[str, Any]:
        """Arguments of the tuner's config: the options, the targets, the rank, and AdaLoRA's schedule."""
        options = dict(self.config.options)
        allowed = [f.name for f in fields(_config_class(self.config.tuner))]
        for name in options:
            if name in RESERVED or name not in allowed:
                shown = ", ".join(a for a in allowed if a not in RESERVED)
                raise UserError(
                    f"method.options.{name} is not an option of method.tuner={self.config.tuner}; allowed: {shown}"
                )
        assert self.budget is not None
        self.mean_rank = self.budget.mean_rank([lin.in_features + lin.out_features for lin in linears.values()])
        self.rank_key = self._rank_key(allowed)
        settings: dict[str, Any] = {"target_modules": list(linears)}
        if self.rank_key is not None and self.rank_key not in options:
            for name, linear in linears.items():
                check_rank(self.mean_rank, name, linear)
            settings[self.rank_key] = self.mean_rank
        if self.config.tuner == "ADALORA":
            plan = self._phases(options, total_steps)  # lengths may be fractions here too
            settings |= {"tinit": plan.start, "tfinal": plan.final, "deltaT": plan.interval, "total_step": total_steps}
            settings["init_r"] = initial_rank(options.get("target_r", self.mean_rank))
            options = {k: v for k, v in options.items() if k not in ("tinit", "tfinal", "deltaT")}
        if isinstance(options.get("eva_config"), Mapping):
            import peft

            options["eva_config"] = peft.EvaConfig(**options["eva_config"])
        return settings | options

    def _phases(self, options: Mapping[str, Any], total_steps: int) -> Masking:
        try:
            return plan_masking(total_steps, options.get("tinit"), options.get("tfinal"), options.get("deltaT"))
        except TypeError as error:  # strings instead of numbers
            raise self._refused(error) from error
        except UserError as error:
            line = str(error)
            for name, option in (("t_initial", "tinit"), ("t_final", "tfinal"), ("interval", "deltaT")):
                line = line.replace(f"method.{name}", f"method.options.{option}")
            raise UserError(line) from error

    def _rank_key(self, allowed: Sequence[str]) -> str | None:
        key = self.config.rank_key
        if key is None:
            return next((key for key in ("target_r", "r") if key in allowed), None)
        if key not in allowed:
            raise UserError(
                f"method.rank_key={key} is not an option of method.tuner={self.config.tuner}; "
                f"allowed: {', '.join(allowed)}"
            )
        return key

    def _take_in(self, model: nn.Module, linears: Mapping[str, nn.Linear]) -> None:
        """Reads matrices, shapes, start and capabilities from the injected model."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        config = self.peft_model.peft_config[ADAPTER]
        self.model = model
        layers: dict[str, Any] = {n: m for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
        self.matrices = list(layers)
        outside = {id(p) for p in self.peft_model.parameters() if p.requires_grad} - {id(p) for p in model.parameters()}
        if outside or not layers:
            raise UserError(
                f"method.tuner={self.config.tuner} has trained parameters outside the adapted layers, which is not "
                "supported; use a tuner that adapts linear layers, for example LORA, ADALORA, VERA or LOHA"
            )
        self._shapes = {n: (int(m.out_features), int(m.in_features)) for n, m in layers.items()}
        start = getattr(config, "init_lora_weights", True)
        self._waiting = start == "eva" and self.config.tuner == "LORA"
        # A0 and B0 of initialisations that changed the frozen weight
        residual = self.config.tuner == "LORA" and str(start).startswith(RESIDUAL)
        self._start = {n: (a.clone(), b.clone()) for n, (a, b) in self._factors().items()} if residual else {}
        # PEFT casts this constant into a trainable parameter unless the model is float32 on the CPU
        for name, p in model.named_parameters():
            if ".ranknum." in name:
                p.requires_grad_(False)
        held = self.rank_key is not None and self.rank_key not in self.config.options
        adaptive = self.config.tuner == "ADALORA"
        self.__dict__["capabilities"] = Capabilities(
            ranked=bool(self.ranks()),
            adaptive=adaptive,
            exports_lora=self._why_not_lora() is None,
            budget="none" if not held else "final" if adaptive else "constant",
        )

    @property
    def batches_wanted(self) -> bool:
        """Whether `prepare` must be called: EVA initialises from the inputs of the adapted layers."""
        return self._waiting

    def prepare(self, batches: Iterable[dict[str, Tensor]], ranks: Mapping[str, int] | None = None) -> None:
        """Initialises from data and redistributes ranks; after `attach`, before the parameter groups are created.

        Args:
            batches: keyword arguments of the model's forward pass. A resumed run must pass the same batches, because
                PEFT sets the shapes only together with a start.
            ranks: not used.
        """
        if not self._waiting:
            return
        import peft

        # PEFT uses labels as a mask over tokens, so class labels are removed
        read = islice(batches, min(self.total_steps, BATCHES))
        inputs = [{k: v for k, v in b.items() if k != "labels" or v.shape == b["input_ids"].shape} for b in read]
        config = self.peft_model.peft_config[ADAPTER]
        needed = round(config.r * config.eva_config.rho)
        tokens = [int(b.get("attention_mask", torch.ones_like(b["input_ids"])).sum()) for b in inputs]
        if max(tokens, default=0) < needed:
            raise UserError(
                f"EVA needs a batch of at least r * rho = {needed} tokens, the largest of {len(inputs)} has "
                f"{max(tokens, default=0)}: raise trainer.batch_size or lower method.options.eva_config.rho"
            )
        before = {id(p) for p in self.model.parameters()}
        peft.initialize_lora_eva_weights(self.peft_model, dataloader=inputs, show_progress_bar=False)
        self._own |= {id(p) for p in self.model.parameters()} - before
        self._waiting = False

    def groups(self, model: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        if self._waiting:
            raise MethodFailure("init_lora_weights=eva starts from data, but prepare(batches) was not called")
        return super().groups(model, lr, weight_decay)

    def penalty(self) -> Tensor | None:
        """AdaLoRA's regulariser, which PEFT adds only if the task type is set: mean of 2N norms times its weight."""
        weight = getattr(self.peft_model.peft_config[ADAPTER], "orth_reg_weight", 0.0)
        if not weight:
            return None
        gaps = []
        for layer in self._layers().values():
            for rows in (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER].T):  # (r, d)
                gaps.append(torch.linalg.matrix_norm(rows @ rows.T - torch.eye(len(rows)).to(rows)))
        return weight * torch.stack(gaps).mean()

    def after_step(self, step: int, optimizer: RowwiseAdamW, schedule: Schedule) -> Round | None:
        allocate = getattr(self.tuner, "update_and_allocate", None)
        if allocate is None:
            return None
        config = self.peft_model.peft_config[ADAPTER]
        before, pattern = self._kept(), getattr(config, "rank_pattern", None)
        allocate(step)
        if not self.capabilities.adaptive or config.rank_pattern is pattern:
            return None
        self.rounds_seen.append(Round(step, self.ranks(), *changes(before, self._kept())))
        return self.rounds_seen[-1]

    def finish(self) -> None:
        if self.capabilities.adaptive and not self.peft_model.peft_config[ADAPTER].rank_pattern:
            raise NeverActed("PEFT's allocator never masked anything: after_step was not called at every step")
        self.check_budget()

    def check_budget(self) -> None:
        allowed, now = self.mean_rank * len(self.matrices), self.count().rank_sum
        if self.capabilities.ranked and self.capabilities.budget != "none" and now > allowed:
            raise BudgetExceeded(f"budget overrun: rank sum {now}, allowed {allowed}")

    def _layers(self) -> dict[str, Any]:
        """The tuner's layers by name, without those that a redistribution removed."""
        modules = dict(self.model.named_modules())
        return {name: modules[name] for name in self.matrices if hasattr(modules[name], "base_layer")}

    def _kept(self) -> dict[str, list[bool]]:
        """AdaLoRA's mask of every matrix."""
        pattern = getattr(self.peft_model.peft_config[ADAPTER], "rank_pattern", None) or {}
        return {
            name: pattern.get(f"{name}.lora_E.{ADAPTER}", [True] * layer.r[ADAPTER])
            for name, layer in self._layers().items()
            if hasattr(layer, "lora_E")
        }

    def ranks(self) -> dict[str, int]:
        """PEFT's ranks, for AdaLoRA without masked directions; empty for tuners without ranks."""
        kept = self._kept()
        ranks = {n: getattr(layer, "r", {}) for n, layer in self._layers().items()}
        if not ranks or not all(isinstance(r, dict) and isinstance(r.get(ADAPTER), int) for r in ranks.values()):
            return {}
        return {n: (sum(kept[n]) if n in kept else ranks[n][ADAPTER]) if n in ranks else 0 for n in self.matrices}

    def shapes(self) -> dict[str, tuple[int, int]]:
        return dict(self._shapes)

    def adapter_parameters(self) -> list[nn.Parameter]:
        """The trained parameters that the tuner added."""
        return [p for p in self.model.parameters() if p.requires_grad and id(p) in self._own]

    def count(self) -> Count:
        """Rank sum and the tuner's parameters, for AdaLoRA without masked directions."""
        masked = sum(row.count(False) * (1 + sum(self._shapes[name])) for name, row in self._kept().items())
        return Count(sum(self.ranks().values()), sum(p.numel() for p in self.adapter_parameters()) - masked)

    @property
    def matched(self) -> bool:
        """Whether the adapter's parameters are within 1 % of LoRA's at this budget."""
        reference = self.mean_rank * sum(sum(shape) for shape in self._shapes.values())
        return abs(self.count().params - reference) <= 0.01 * reference

    def remarks(self) -> list[str]:
        return [] if self.matched else ["off budget"]

    def _why_not_lora(self) -> str | None:
        """Why the result cannot be written as fixed-rank LoRA, or None."""
        config = self.peft_model.peft_config[ADAPTER]
        if self.config.tuner == "ADALORA":
            return None
        if self.config.tuner != "LORA":
            return f"tuner {self.config.tuner}"
        for option in ("use_dora", "lora_bias", "alora_invocation_tokens", "use_bdlora", "arrow_config"):
            if getattr(config, option, None):
                return option
        if getattr(config, "bias", "none") != "none":
            return f"bias={config.bias}"
        start = config.init_lora_weights
        if start not in PLAIN and not str(start).startswith(RESIDUAL):
            return f"init_lora_weights={start}"
        return None

    @torch.no_grad()
    def _factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """A (r, d_in) and scaled B (d_out, r) of the layers' update."""
        out = {}
        for name, layer in self._layers().items():
            a, b, scale = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER], layer.scaling[ADAPTER]
            if hasattr(layer, "lora_E"):
                kept = self._kept()[name]
                rows = [i for i, k in enumerate(kept) if k]
                scaled = (a * layer.lora_E[ADAPTER])[rows] * (scale / (layer.ranknum[ADAPTER] + 1e-5))
                out[name] = (scaled, b[:, rows].clone())
            else:
                out[name] = (a.weight.clone(), b.weight * scale)
        return out

    def lora_factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """As LoRA over the original weight; initialisations that changed it (PiSSA, OLoRA) take twice the rank."""
        reason = self._why_not_lora()
        if reason is not None:
            raise UserError(f"method=peft with {reason} cannot be written as fixed-rank LoRA")
        factors = self._factors()
        for name, (a0, b0) in self._start.items():
            a, b = factors[name]
            factors[name] = (torch.cat([a, a0.to(a)]), torch.cat([b, -b0.to(b)], dim=1))
        like = next(iter(factors.values()))[0]
        empty = {n: (like.new_zeros(0, d_in), like.new_zeros(d_out, 0)) for n, (d_out, d_in) in self._shapes.items()}
        return empty | factors

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict() | {"ranks": self.ranks()}
        if self.capabilities.adaptive:
            allocator = self.tuner.rankallocator
            state["rank_pattern"] = self.peft_model.peft_config[ADAPTER].rank_pattern
            for table in ("exp_avg_ipt", "exp_avg_unc"):
                state |= {f"{table}:{name}": t for name, t in getattr(allocator, table).items()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        if self.capabilities.adaptive:
            allocator = self.tuner.rankallocator
            self.peft_model.peft_config[ADAPTER].rank_pattern = state["rank_pattern"]
            slots = {f"{name}.lora_E.{ADAPTER}": layer.r[ADAPTER] for name, layer in self._layers().items()}
            if state["rank_pattern"] and {n: len(kept) for n, kept in state["rank_pattern"].items()} != slots:
                raise ValueError("the rank pattern does not fit the adapted matrices")
            allocator.reset_ipt()
            for key, tensor in state.items():
                table, colon, name = key.partition(":")
                if colon:
                    place = self.tuner.model.get_parameter(name)
                    getattr(allocator, table)[name] = tensor.to(place.device, copy=True).view_as(place)
                    allocator.ipt[name] = torch.zeros_like(place, requires_grad=False)
            if allocator.exp_avg_ipt.keys() != allocator.exp_avg_unc.keys():
                raise ValueError("the two averages belong to different matrices")
        if self.ranks() != state["ranks"]:
            raise MethodFailure("the checkpoint has other ranks: pass the same batches to prepare(batches)")


def _config_class(tuner: str) -> Any:
    """The config class of a tuner; raises UserError for one that is unknown, or works on prompts."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
    from peft.tuners.tuners_utils import BaseTuner

    usable = {
        kind.value: PEFT_TYPE_TO_CONFIG_MAPPING[kind]
        for kind, model in PEFT_TYPE_TO_TUNER_MAPPING.items()
        if issubclass(model, BaseTuner) and kind.value not in UNSUPPORTED
    }
    if tuner not in usable:
        raise UserError(f"method.tuner={tuner} is unknown or adapts no layers; allowed: {', '.join(sorted(usable))}")
    return usable[tuner]


def _undo(model: nn.Module, linears: Mapping[str, nn.Linear], trained: Mapping[nn.Parameter, bool]) -> None:
    """Restores the layers and the parameters' flags after a failed injection."""
    for name, linear in linears.items():
        put(model, name, linear)
    for parameter, flag in trained.items():
        parameter.requires_grad_(flag)
