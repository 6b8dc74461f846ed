"""A tiny float64 classifier in the stock Trainer, and the same training by the loop of `elalora.method`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from elalora import Budget, ElaLoRA, ElaLoRAConfig, Method, RowwiseAdamW, Schedule
from elalora.hf import adapt

TARGETS, HEAD = ["query", "value", "intermediate.dense"], ["bert.pooler", "classifier"]
LR, DECAY, CLIP, WARMUP = 5e-3, 0.01, 0.5, 3


def bert(dtype: torch.dtype = torch.float64) -> BertForSequenceClassification:
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BertForSequenceClassification(config).to(dtype)


def items(count: int) -> list[dict[str, Tensor]]:
    """Padded sentences of 4 to 8 tokens, the label is whether and how a token occurs."""
    g = torch.Generator().manual_seed(1)
    found = []
    for _ in range(count):
        ids = torch.randint(1, 40, (8,), generator=g)
        mask = (torch.arange(8) < int(torch.randint(4, 9, (), generator=g))).long()
        found.append({"input_ids": ids * mask, "attention_mask": mask, "labels": (ids[0] % 3).long()})
    return found


def ela(**knobs: Any) -> ElaLoRA:
    quick = {"t_initial": 3, "t_final": 4, "interval": 3, "b": 4, "alpha": 32.0}
    return ElaLoRA(ElaLoRAConfig(**quick | knobs), Budget(3))


def arguments(folder: Path, **more: Any) -> TrainingArguments:
    plain: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "num_train_epochs": 1,
        "learning_rate": LR,
        "weight_decay": DECAY,
        "max_grad_norm": CLIP,
        "warmup_steps": WARMUP,
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "logging_strategy": "no",
        "use_cpu": True,
        "seed": 7,
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(**plain | more)


def stock(folder: Path, method: Method, model: nn.Module | None = None, steps: int = 14, **more: Any) -> Trainer:
    """An adapted stock Trainer over `steps` batches of 8, which notes the losses of its micro-batches."""
    loss = more.pop("compute_loss_func", None)
    trainer = Trainer(
        model=bert() if model is None else model,
        args=arguments(folder, **more),
        train_dataset=items(8 * steps),
        eval_dataset=items(8),
        compute_loss_func=loss,
    )
    adapt(trainer, method, TARGETS, HEAD)
    trainer.seen = []
    step = trainer.training_step

    def training_step(*args: Any, **kwargs: Any) -> Tensor:
        loss = step(*args, **kwargs)
        trainer.seen.append(float(loss))
        return loss

    trainer.training_step = training_step
    return trainer


def own_loop(method: Method, steps: int = 14) -> tuple[nn.Module, list[float]]:
    """The loop as `elalora.method` writes it, on the same batches; the losses hold the penalty."""
    model = bert()
    method.attach(model, TARGETS, steps, HEAD, seed=7)
    optimizer = RowwiseAdamW(method.groups(model, LR, DECAY), method.directions())
    schedule = Schedule(optimizer, steps, WARMUP)
    data, losses = items(8 * steps), []
    for step in range(steps):
        batch = {k: torch.stack([i[k] for i in data[8 * step : 8 * step + 8]]) for k in data[0]}
        with method.watching(batch["attention_mask"]):
            loss = model(**batch).loss
        penalty = method.penalty()
        loss = loss if penalty is None else loss + penalty
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], CLIP)
        method.gradients_ready(step)
        optimizer.step()
        schedule.at(step + 1)
        method.after_step(step, optimizer, schedule)
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    method.finish()
    return model, losses


def weights(model: nn.Module) -> dict[str, Tensor]:
    """What training may have changed, by name."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def moves(method: Method) -> list[tuple[Any, ...]]:
    """Every rank decision of a run."""
    return [(r.step, r.ranks, r.pruned, r.grown) for r in method.rounds_seen]
