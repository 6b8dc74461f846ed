"""One training step of every arm, run the way its users would run it.

Methods of this project use the loop described in `elalora.method`. Stock PEFT uses torch's foreach AdamW, and its
AdaLoRA calls the allocator after every step, as PEFT's documentation requires. The floor is a step that updates the
head while gradients flow to the first layer's input, plus the bare matrix products of an adapter of that rank.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from elalora.attach import find_linears
from elalora.budget import Budget
from elalora.method import Method
from elalora.optim import RowwiseAdamW
from elalora.schedules import Schedule
from experiments.bench.shapes import DECODERS, Shape, twin

TOTAL = 100_000  # nominal run length, so that every arm stays in its middle phase
INTERVAL = 20  # steps between two rounds


@dataclass
class Setting:
    """Model, batch, rank and precision, which all arms share."""

    shape: Shape
    model: nn.Module
    batch: dict[str, Tensor]
    rank: int
    bf16: bool = False
    compiled: bool = False

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 autocast if enabled, else a context that does nothing."""
        device = self.batch["labels"].device.type
        return torch.autocast(device, torch.bfloat16) if self.bf16 else nullcontext()

    def call(self, model: nn.Module) -> Callable[..., Any]:
        """The forward pass of a model, compiled if enabled."""
        return torch.compile(model, dynamic=False) if self.compiled else model


@dataclass
class Loop:
    """The training loop described in `elalora.method`, for a method that is attached."""

    method: Method
    call: Callable[..., Any]  # the forward pass, possibly compiled
    optimizer: RowwiseAdamW
    schedule: Schedule
    clip: float | None = 1.0  # maximum gradient norm
    at: int = 0  # index of the next step

    def __post_init__(self) -> None:
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]

    def step(self, batch: dict[str, Tensor], autocast: AbstractContextManager[Any] | None = None) -> None:
        """One optimizer step."""
        penalty = self.method.penalty()
        with autocast or nullcontext(), self.method.watching(batch.get("attention_mask")):
            loss = self.call(**batch).loss
        (loss if penalty is None else loss + penalty).backward()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.method.gradients_ready(self.at)
        self.optimizer.step()
        self.schedule.at(self.at + 1)
        self.method.after_step(self.at, self.optimizer, self.schedule)
        self.optimizer.zero_grad(set_to_none=True)
        self.at += 1


@dataclass
class Arm:
    """A training step and the objects that hold its memory."""

    step: Callable[[], None]
    model: nn.Module  # with all adapters
    tensors: Callable[[], list[Tensor]] = field(default=list)  # the state of optimizer and method


def ours(setting: Setting, name: str, rank: int | None = None, final: bool = False, **knobs: Any) -> Arm:
    """A method of this project with some of its settings, at the setting's rank unless another is given.

    With `final` it starts in the last phase: the third step sets the final ranks, from the scores of two steps.
    """
    from baselines.registry import method_class

    cls = method_class(name)
    method = cls(cls.Config(**knobs), Budget(rank or setting.rank) if cls.capabilities.budget != "none" else None)
    model = twin(setting.model, setting.shape)
    model = method.attach(model, setting.shape.targets, TOTAL, keep=setting.shape.head)
    if method.batches_wanted:
        method.prepare(itertools.repeat(setting.batch, method.batches_wanted))
        model.train()
    phases: Any = getattr(method, "phases", None)
    begin = phases.end - 2 if final else TOTAL // 10 + 1  # the middle phase has begun
    optimizer = RowwiseAdamW(method.groups(model, 1e-4, 0.0), method.directions())
    loop = Loop(method, setting.call(model), optimizer, Schedule(optimizer, TOTAL), at=begin)
    return Arm(
        lambda: loop.step(setting.batch, setting.autocast()),
        model,
        lambda: _tensors([*optimizer.state.values(), method.state_dict()]),
    )


def _tensors(states: Iterable[Mapping[str, Any]]) -> list[Tensor]:
    return [value for state in states for value in state.values() if isinstance(value, Tensor)]


def peft(setting: Setting, adalora: bool = False) -> Arm:
    """Stock PEFT LoRA, or AdaLoRA at init rank 1.5 r with its allocator called after every step."""
    import peft as stock

    linears = list(find_linears(setting.model, setting.shape.targets, outside=setting.shape.head))
    # a new list, because PEFT adds names to it
    common: dict[str, Any] = {"target_modules": linears, "lora_alpha": 16, "modules_to_save": [*setting.shape.head]}
    tasks = {"bart-base": "SEQ_2_SEQ_LM", "vit-b16": None, **dict.fromkeys(DECODERS, "CAUSAL_LM")}
    task = tasks.get(setting.shape.name, "SEQ_CLS")
    if adalora:
        start = -(-3 * setting.rank // 2)
        config: Any = stock.AdaLoraConfig(
            task_type=task, init_r=start, target_r=setting.rank, tinit=TOTAL // 10, tfinal=TOTAL // 4, deltaT=INTERVAL,
            total_step=TOTAL, orth_reg_weight=0.1, **common,
        )  # fmt: skip
    else:
        config = stock.LoraConfig(task_type=task, r=setting.rank, **common)
    model: Any = stock.get_peft_model(twin(setting.model, setting.shape), config)
    model.train()
    steps = count(TOTAL // 10 + 1)
    return _plain(setting, model, (lambda: model.base_model.update_and_allocate(next(steps))) if adalora else None)


def full(setting: Setting) -> Arm:
    """Full fine-tuning with torch's foreach AdamW, on a copy of the weights."""
    return _plain(setting, copy.deepcopy(setting.model).requires_grad_(True))


def frozen_backbone(setting: Setting) -> Arm:
    """Only the head trains, while gradients flow through the whole frozen backbone."""
    model: Any = twin(setting.model, setting.shape)
    head = tuple(f"{name}." for name in setting.shape.head)  # empty for language models: then nothing trains
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(head))
    # the modules whose outputs the first layers read
    if setting.shape.name == "bart-base":
        inputs = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    else:
        inputs = [model.vit.embeddings if setting.shape.name == "vit-b16" else model.get_input_embeddings()]
    for module in inputs:
        module.register_forward_hook(lambda module, arguments, output: output.requires_grad_())
    return _plain(setting, model)


def _plain(setting: Setting, model: nn.Module, after: Callable[[], None] | None = None) -> Arm:
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0, foreach=True) if parameters else None
    call = setting.call(model)

    def step() -> None:
        with setting.autocast():
            loss = call(**setting.batch).loss
        loss.backward()
        if optimizer is None:
            return
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if after is not None:
            after()
        optimizer.zero_grad(set_to_none=True)

    return Arm(step, model, lambda: _tensors(optimizer.state.values()) if optimizer is not None else [])


def bare_products(setting: Setting) -> Callable[[], None]:
    """The six thin matrix products of every adapter, forward and backward, at the shapes of the batch."""
    sizes: list[tuple[int, int, int]] = []  # (tokens, d_in, d_out)

    def note(module: Any, arguments: Any, output: Tensor) -> None:
        sizes.append((output.numel() // output.shape[-1], module.in_features, module.out_features))

    linears = find_linears(setting.model, setting.shape.targets, outside=setting.shape.head).values()
    hooks = [linear.register_forward_hook(note) for linear in linears]
    with torch.no_grad(), setting.autocast():
        setting.model(**setting.batch)
    for hook in hooks:
        hook.remove()
    device = setting.batch["labels"].device
    kind = torch.bfloat16 if setting.bf16 else torch.float32
    r = setting.rank

    @functools.cache
    def drawn(*size: int) -> Tensor:
        return torch.randn(size, device=device, dtype=kind)

    def products() -> None:
        for tokens, d_in, d_out in sizes:
            x, grad, a, b = drawn(tokens, d_in), drawn(tokens, d_out), drawn(r, d_in), drawn(r, d_out)
            down = x @ a.T  # (tokens, r)
            down @ b
            back = grad @ b.T  # (tokens, r)
            back @ a
            back.T @ x
            down.T @ grad

    return products
