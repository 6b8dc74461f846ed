"""Settings of a Trainer with which something else than the method would be trained, or the result could not be used."""

from __future__ import annotations

import math
from typing import Any

from elalora.errors import UserError
from elalora.method import Method


def refuse_settings(trainer: Any) -> None:
    """Raises UserError for settings of the Trainer under which no method of this library trains as it should."""
    args = trainer.args
    if trainer.optimizer is not None or trainer.lr_scheduler is not None:
        raise UserError("the Trainer already has an optimizer: create it without optimizers=, and adapt it only once")
    if trainer.model_init is not None or trainer.model is None:
        raise UserError("model_init creates a new model for every training: pass model= to the Trainer instead")
    if trainer.train_dataset is None:
        raise UserError("the Trainer has no train_dataset, so the number of steps is unknown: pass train_dataset=")
    if args.fp16:
        raise UserError("fp16=True skips steps whose gradients overflow: set bf16=True or neither")
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise UserError("DeepSpeed and FSDP split parameters that must stay whole: use data parallelism (torchrun)")
    if args.n_gpu > 1:
        raise UserError(f"with {args.n_gpu} GPUs in one process the model is copied at every step: start with torchrun")
    if args.auto_find_batch_size:
        raise UserError("auto_find_batch_size=True changes the number of steps: set per_device_train_batch_size")
    if "adamw_torch" not in str(getattr(args.optim, "value", args.optim)):
        raise UserError(f"optim={args.optim} would be replaced by the row-wise AdamW: leave optim at its default")
    if str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)) in ("reduce_lr_on_plateau", "greedy"):
        raise UserError(f"lr_scheduler_type={args.lr_scheduler_type} needs more than the step: use linear or cosine")


def refuse_early_weights(trainer: Any, method: Method, steps_per_epoch: int) -> None:
    """Raises UserError if weights from before the ranks are final could become the result.

    It concerns methods that meet their budget at the end only (`Capabilities.final_only`), with the best checkpoint or
    early stopping.
    """
    phases = method.phases
    if not method.capabilities.final_only or phases is None:
        return
    callbacks = [type(c).__name__ for c in trainer.callback_handler.callbacks]
    stopping = next((name for name in callbacks if "EarlyStopping" in name), None)
    cause = "load_best_model_at_end=True" if trainer.args.load_best_model_at_end else stopping
    first, final = first_evaluation(trainer.args, method.total_steps, steps_per_epoch), phases.rounds()[-1] + 1
    if cause is None or first is None or first >= final:
        return
    in_epochs = str(getattr(trainer.args.eval_strategy, "value", "")) == "epoch"
    delay = math.ceil(final / steps_per_epoch) if in_epochs else final
    raise UserError(
        f"{cause} could end with the weights of step {first}, and the ranks of {method.title} are final from step "
        f"{final} of {method.total_steps} on: set eval_delay={delay} in the TrainingArguments, or train without it"
    )


def first_evaluation(args: Any, total_steps: int, steps_per_epoch: int) -> int | None:
    """Step of the first evaluation that a best checkpoint or early stopping uses; None without evaluations."""
    strategy = str(getattr(args.eval_strategy, "value", args.eval_strategy))
    if strategy == "no":
        return None
    every: float = steps_per_epoch
    delay = args.eval_delay * steps_per_epoch if strategy == "epoch" else args.eval_delay
    if strategy == "steps":
        every = args.eval_steps if args.eval_steps >= 1 else math.ceil(total_steps * args.eval_steps)
    return int(max(1, math.ceil(delay / every)) * every)
