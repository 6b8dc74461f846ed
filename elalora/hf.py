"""Any method of this library inside the stock Hugging Face `Trainer` or `Seq2SeqTrainer`.

    trainer = Trainer(model=model, args=args, train_dataset=data)
    method = adapt(trainer, ElaLoRA(ElaLoRAConfig(), Budget(rank=4)), targets="paper", keep=["classifier"])
    trainer.train()

`adapt` attaches the method to the Trainer's model, gives the Trainer the row-wise optimizer, and adds a callback that
calls the method's hooks in the order of `elalora.method`; nothing is subclassed. A callback cannot add to the loss, so
the Trainer's `compute_loss` is wrapped. Only there all kinds of loss pass (of the model, of a `compute_loss_func`, with
label smoothing), and it is known whether the Trainer divides the loss by the number of micro-batches afterwards. The
Trainer keeps its own learning-rate schedule and checkpoints; elalora.safetensors and elalora.json in each checkpoint
hold the method's state.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from elalora.attach import find_linears
from elalora.errors import UserError
from elalora.export import save_tensors
from elalora.method import Method, MethodFailure, Round
from elalora.optim import RowwiseAdamW
from elalora.targets import matrices_in, patterns_in

TENSORS, VALUES = "elalora.safetensors", "elalora.json"
SCHEMA = 2  # of both files; version 1 had rows for every slot
OPTIMIZER = "optimizer.pt"  # written by the Trainer


def adapt(
    trainer: Any, method: Method, targets: str | Sequence[str], keep: Sequence[str] = (), seed: int | None = None
) -> Method:
    """Attaches a method to a Trainer's model and makes `trainer.train()` train it.

    Args:
        trainer: a `transformers.Trainer` or a subclass, not yet trained; its arguments set learning rate, weight decay,
            betas, schedule and clipping.
        method: any method, not yet attached.
        targets: name patterns of the linear layers to adapt (`elalora.attach`), or a named set of the model's
            architecture, such as "paper" or "attention" (`elalora.targets`).
        keep: names of submodules that are trained whole. Name a new task head here, or it stays random.
        seed: of every random choice that the method makes; None is the Trainer's `seed`.

    Returns:
        The method; `elalora.export.export_peft` saves it after training.

    Raises:
        UserError: the method cannot work with these settings of the Trainer, or the targets do not fit.
    """
    _refuse(trainer)
    args, model = trainer.args, trainer.model
    total = trainer.set_initial_training_values(args, trainer.get_train_dataloader())[-1]
    attached = method.attach(model, _patterns(model, targets, keep), total, keep, args.seed if seed is None else seed)
    if method.batches_wanted:
        raise UserError(f"{method.title} needs batches before training, which the Trainer does not provide")
    if attached is not model:
        raise UserError(f"{method.title} wraps the model in another: pass the wrapped model to the Trainer instead")
    if tuple(method.stages()) != (total,):
        raise UserError(
            f"{method.title} trains in {len(method.stages())} stages with separate schedules, but the Trainer has one "
            "schedule: set lambda_num=1, or write your own training loop"
        )
    optimizer = RowwiseAdamW(
        method.groups(model, args.learning_rate, args.weight_decay),
        method.directions(),
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
    )
    trainer.optimizer = optimizer
    session = _Session(trainer, method, optimizer)
    trainer.compute_loss = session.compute_loss
    trainer.train = session.train
    trainer.add_callback(_callback(session))
    return method


def _patterns(model: Any, targets: str | Sequence[str], keep: Sequence[str]) -> list[str]:
    """The targets as patterns; a named set must match the number of layers that the architecture has."""
    names = [targets] if isinstance(targets, str) else list(targets)
    patterns, expected = patterns_in(model, names), matrices_in(model, names)
    matched = len(find_linears(model, patterns, outside=keep)) if expected is not None else None
    if matched != expected:
        raise UserError(
            f"targets={names} match {matched} layers instead of {expected} in {model.config.model_type}: use patterns"
        )
    return patterns


def _refuse(trainer: Any) -> None:
    """Refuses settings of the Trainer with which something else than the method would be trained."""
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


class TrainerSchedule:
    """The Trainer's learning-rate schedule with the interface that methods use (`elalora.schedules.Schedule`).

    Args:
        trainer: must have created its scheduler before a method uses this one.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self.held = False

    def factor(self, step: int) -> float:
        """Learning rate divided by its peak at a step, 0-based."""
        return float(self._trainer.lr_scheduler.lr_lambdas[0](step))

    def hold_peak(self) -> None:
        """Holds the rate at its peak from now on (D2)."""
        self.held = True
        scheduler = self._trainer.lr_scheduler
        scheduler.lr_lambdas = [lambda step: 1.0] * len(scheduler.lr_lambdas)


class _Session:
    """The training of one adapted Trainer: the wrapped functions and what the callback calls."""

    def __init__(self, trainer: Any, method: Method, optimizer: RowwiseAdamW) -> None:
        self.trainer, self.method, self.optimizer = trainer, method, optimizer
        self.schedule: Any = TrainerSchedule(trainer)
        self.checkpoint: Path | None = None
        self.used = False
        self._loss, self._train = trainer.compute_loss, trainer.train

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The Trainer's loss plus, in training, the method's penalty, which counts once per optimizer step."""
        if not model.training:
            return self._loss(model, inputs, return_outputs, num_items_in_batch=num_items_in_batch)
        penalty = self.method.penalty()
        with self.method.watching(*_masks(inputs)):
            loss = self._loss(model, inputs, return_outputs, num_items_in_batch=num_items_in_batch)
        if penalty is None:
            return loss
        if self._loss_is_scaled(num_items_in_batch):  # otherwise the Trainer divides loss and penalty later
            penalty = penalty / self.trainer.current_gradient_accumulation_steps
        return (loss[0] + penalty, loss[1]) if return_outputs else loss + penalty

    def _loss_is_scaled(self, num_items_in_batch: Any) -> bool:
        """Whether the loss is already scaled for gradient accumulation, by the rule of `Trainer.training_step`."""
        trainer = self.trainer
        if trainer.loss_is_scaled_for_ga is not None:
            return bool(trainer.loss_is_scaled_for_ga)
        by_model = trainer.model_accepts_loss_kwargs and num_items_in_batch is not None
        return bool(by_model or trainer.compute_loss_func is not None)

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """`Trainer.train`, wrapped because callbacks do not see the checkpoint that it resumes from."""
        if resume_from_checkpoint is True:
            from transformers.trainer_utils import get_last_checkpoint

            resume_from_checkpoint = get_last_checkpoint(self.trainer.args.output_dir) or True
        self.checkpoint = Path(resume_from_checkpoint) if isinstance(resume_from_checkpoint, str | Path) else None
        if self.checkpoint is not None:
            for name in (TENSORS, VALUES, OPTIMIZER):
                if not (self.checkpoint / name).is_file():
                    raise UserError(
                        f"'{self.checkpoint}' has no {name}: it is not a complete checkpoint of an adapted Trainer "
                        "(save_only_model must be False), so training cannot resume from it"
                    )
            writer = _values(self.checkpoint)["method"]
            if writer != self.method.name:
                raise UserError(
                    f"'{self.checkpoint}' was written by method {writer}, this one is {self.method.name}: "
                    "adapt the Trainer with the method that wrote it"
                )
            self.load(self.checkpoint)  # before the Trainer loads the moments, which have rows for the ranks
            resume_from_checkpoint = str(self.checkpoint)
        elif self.used and not resume_from_checkpoint:
            raise UserError("this Trainer has already trained its method: create a new model, method and Trainer")
        self.used = True
        return self._train(resume_from_checkpoint, *args, **kwargs)

    def begin(self, max_steps: int) -> None:
        """Checks that the run has the planned length; holds the rate if it was held in the checkpoint."""
        if max_steps != self.method.total_steps:
            raise UserError(
                f"the method was planned for {self.method.total_steps} steps and the Trainer runs {max_steps}: "
                "set batch size and length before adapt()"
            )
        if self.checkpoint is not None and _values(self.checkpoint)["held"]:
            self.schedule.hold_peak()

    def end(self, best: str | None, step: int) -> None:
        """Loads the ranks of the best checkpoint if the Trainer loaded its weights, and finishes the method.

        Args:
            best: the folder of that checkpoint, or None.
            step: the last step of the training.

        Raises:
            MethodFailure: the method failed, or the weights are those of a step before its ranks were final.
        """
        if best is not None:
            rounds = self.method.rounds_seen
            self.load(Path(best))
            self.method.rounds_seen = rounds  # of the whole run, also those after its best checkpoint
            step = int(best.rpartition("-")[2])
        try:
            self.method.finish()
        except MethodFailure as error:
            total = self.method.total_steps
            if step >= total:
                raise
            which = f"training stopped at step {step}" if best is None else f"the best checkpoint is of step {step}"
            raise MethodFailure(
                f"{which} of {total}, where the ranks of {self.method.title} were not final: train to the end, and "
                "with load_best_model_at_end=True evaluate and save in its last phase only"
            ) from error

    def save(self, folder: Path) -> None:
        """Writes the method's state into a checkpoint of the Trainer."""
        state = self.method.state_dict()
        tensors = {n: v.detach().cpu().clone().contiguous() for n, v in state.items() if isinstance(v, Tensor)}
        save_tensors(tensors, folder / TENSORS)
        values = {
            "schema": SCHEMA,
            "method": self.method.name,
            "state": {n: v for n, v in state.items() if not isinstance(v, Tensor)},
            "rounds": [asdict(r) for r in self.method.rounds_seen],
            "held": self.schedule.held,
        }
        (folder / VALUES).write_text(json.dumps(values), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Restores the method's state; the Trainer restores weights, moments and learning rates."""
        from safetensors.torch import load_file

        values = _values(folder)
        self.method.load_state_dict(values["state"] | load_file(folder / TENSORS))
        self.method.rounds_seen = [Round.read(line) for line in values["rounds"]]


def _values(folder: Path) -> dict[str, Any]:
    """The JSON values that `save` wrote; raises UserError for those of another version."""
    values: dict[str, Any] = json.loads((folder / VALUES).read_text(encoding="utf-8"))
    if values.get("schema") != SCHEMA:
        raise UserError(f"'{folder}' was written by another version of elalora: training cannot resume from it")
    return values


def _masks(inputs: dict[str, Any]) -> tuple[Tensor | None, Tensor | None]:
    """Masks of the input and, in an encoder-decoder model, of the decoder's input; 0 at padding."""
    labels = inputs.get("labels")
    target = inputs.get("decoder_attention_mask")
    if target is None and isinstance(labels, Tensor) and labels.ndim > 1:
        target = labels.ne(-100).long()
    return inputs.get("attention_mask"), target


def _callback(session: _Session) -> Any:
    """A `TrainerCallback` that calls the method's hooks; defined here to import transformers only when used."""
    from transformers import TrainerCallback

    class MethodCallback(TrainerCallback):
        """The hooks of one optimizer step; `state.global_step` is its 0-based number in both."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            session.begin(state.max_steps)

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            session.method.gradients_ready(state.global_step)

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            session.method.after_step(state.global_step, session.optimizer, session.schedule)

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                session.save(Path(args.output_dir) / f"checkpoint-{state.global_step}")

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            session.end(state.best_model_checkpoint if args.load_best_model_at_end else None, state.global_step)

    return MethodCallback()
