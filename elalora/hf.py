"""Any method of this library inside the stock Hugging Face `Trainer` or `Seq2SeqTrainer`.

    trainer = Trainer(model=model, args=args, train_dataset=data)
    method = adapt(trainer, ElaLoRA(ElaLoRAConfig(), Budget(rank=4)), targets="paper", keep=["classifier"])
    trainer.train()

What is unusual: nothing is subclassed. `adapt` attaches the method to the Trainer's model, gives the Trainer the
row-wise optimizer, and adds a callback that calls the method's hooks in the order of `elalora.method`. A callback
cannot add to the loss, so the Trainer's `compute_loss` is wrapped: it alone sees every kind of loss (of the model, of a
`compute_loss_func`, with label smoothing) and knows whether the Trainer divides it by the number of micro-batches
afterwards. The learning-rate schedule and the checkpoints stay the Trainer's own; the method's part of a checkpoint is
elalora.safetensors and elalora.json beside it.
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
from elalora.method import Method, MethodFailure, Round
from elalora.optim import RowwiseAdamW
from elalora.targets import matrices_in, patterns_in

TENSORS, VALUES = "elalora.safetensors", "elalora.json"
SCHEMA = 2  # of both; 1 had rows for every slot
OPTIMIZER = "optimizer.pt"  # the Trainer's file


def adapt(
    trainer: Any, method: Method, targets: str | Sequence[str], keep: Sequence[str] = (), seed: int | None = None
) -> Method:
    """Attaches a method to a Trainer's model and makes `trainer.train()` train it.

    Args:
        trainer: a `transformers.Trainer` or a subclass, not yet trained; learning rate, weight decay, betas, schedule
            and clipping are those of its arguments.
        method: any method of this interface, not yet attached.
        targets: name patterns of the linear layers to adapt (`elalora.attach`), or a named set of the model's
            architecture, such as "paper" or "attention" (`elalora.targets`).
        keep: names of submodules that are trained whole. A task head that is new must be named, else it stays random.
        seed: of every random choice the method makes; None is the Trainer's `seed`.

    Returns:
        The method; `elalora.export.export_peft` writes it when training is over.

    Raises:
        UserError: settings under which the method could not do what it says, or targets that do not fit.
    """
    _refuse(trainer)
    args, model = trainer.args, trainer.model
    total = trainer.set_initial_training_values(args, trainer.get_train_dataloader())[-1]
    attached = method.attach(model, _patterns(model, targets, keep), total, keep, args.seed if seed is None else seed)
    if method.batches_wanted:
        raise UserError(f"{method.title} wants batches before training, which the Trainer does not offer")
    if attached is not model:
        raise UserError(f"{method.title} wraps the model in another: give the wrapped model to the Trainer instead")
    if tuple(method.stages()) != (total,):
        raise UserError(
            f"{method.title} trains in {len(method.stages())} stages with a learning rate each, and the Trainer has "
            "one schedule: set lambda_num=1, or use a loop of your own"
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
    """The targets as patterns; a named set must match as many layers as the architecture has."""
    names = [targets] if isinstance(targets, str) else list(targets)
    patterns, expected = patterns_in(model, names), matrices_in(model, names)
    found = len(find_linears(model, patterns, outside=keep)) if expected is not None else None
    if found != expected:
        raise UserError(
            f"targets={names} match {found} layers, {expected} are expected in {model.config.model_type}: give patterns"
        )
    return patterns


def _refuse(trainer: Any) -> None:
    """One line for each setting that would train something else than the method."""
    args = trainer.args
    if trainer.optimizer is not None or trainer.lr_scheduler is not None:
        raise UserError("the Trainer has an optimizer already: make it without optimizers=, or adapt it once only")
    if trainer.model_init is not None or trainer.model is None:
        raise UserError("model_init makes a new model for every training: give the Trainer model= instead")
    if trainer.train_dataset is None:
        raise UserError("the Trainer has no train_dataset, so the number of steps is not known: give it one")
    if args.fp16:
        raise UserError("fp16=True skips steps whose gradients overflow: set bf16=True or neither")
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise UserError("DeepSpeed and FSDP cut parameters that belong together: use plain data parallelism (torchrun)")
    if args.n_gpu > 1:
        raise UserError(f"{args.n_gpu} GPUs in one process copy the model at every step: start with torchrun")
    if args.auto_find_batch_size:
        raise UserError("auto_find_batch_size=True starts again with other steps: set per_device_train_batch_size")
    if "adamw_torch" not in str(getattr(args.optim, "value", args.optim)):
        raise UserError(f"optim={args.optim} is replaced by the row-wise AdamW: leave optim at its default")
    if str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)) in ("reduce_lr_on_plateau", "greedy"):
        raise UserError(f"lr_scheduler_type={args.lr_scheduler_type} is no function of the step: use linear or cosine")


class TrainerSchedule:
    """The Trainer's own learning-rate schedule, as methods see one (`elalora.schedules.Schedule`).

    Args:
        trainer: has made its scheduler when a method asks.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self.held = False

    def factor(self, step: int) -> float:
        """Learning rate over its peak at a step, 0-based."""
        return float(self._trainer.lr_scheduler.lr_lambdas[0](step))

    def hold_peak(self) -> None:
        """From now on the rate is the peak (D2)."""
        self.held = True
        scheduler = self._trainer.lr_scheduler
        scheduler.lr_lambdas = [_one] * len(scheduler.lr_lambdas)


def _one(step: int) -> float:
    return 1.0


class _Session:
    """What happens during the training of one adapted Trainer."""

    def __init__(self, trainer: Any, method: Method, optimizer: RowwiseAdamW) -> None:
        self.trainer, self.method, self.optimizer = trainer, method, optimizer
        self.schedule: Any = TrainerSchedule(trainer)
        self.checkpoint: Path | None = None
        self.used = False
        self._loss, self._train = trainer.compute_loss, trainer.train

    # -- what is wrapped -------------------------------------------------------------------------------

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The Trainer's loss plus, in training, the method's penalty: once in the mean over the micro-batches."""
        if not model.training:
            return self._loss(model, inputs, return_outputs, num_items_in_batch=num_items_in_batch)
        penalty = self.method.penalty()
        with self.method.watching(*_masks(inputs)):
            found = self._loss(model, inputs, return_outputs, num_items_in_batch=num_items_in_batch)
        if penalty is None:
            return found
        if self._loss_is_scaled(num_items_in_batch):  # else the Trainer divides loss and penalty after this
            penalty = penalty / self.trainer.current_gradient_accumulation_steps
        return (found[0] + penalty, found[1]) if return_outputs else found + penalty

    def _loss_is_scaled(self, num_items_in_batch: Any) -> bool:
        """Whether the loss is a share of the whole step's already, by the rule of `Trainer.training_step`."""
        trainer = self.trainer
        if trainer.loss_is_scaled_for_ga is not None:
            return bool(trainer.loss_is_scaled_for_ga)
        by_model = trainer.model_accepts_loss_kwargs and num_items_in_batch is not None
        return bool(by_model or trainer.compute_loss_func is not None)

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """`Trainer.train`, which tells no callback the checkpoint it resumes from."""
        if resume_from_checkpoint is True:
            from transformers.trainer_utils import get_last_checkpoint

            resume_from_checkpoint = get_last_checkpoint(self.trainer.args.output_dir) or True
        self.checkpoint = Path(resume_from_checkpoint) if isinstance(resume_from_checkpoint, str | Path) else None
        if self.checkpoint is not None:
            for name in (TENSORS, VALUES, OPTIMIZER):
                if not (self.checkpoint / name).is_file():
                    raise UserError(
                        f"'{self.checkpoint}' has no {name}: it is no whole checkpoint of an adapted Trainer "
                        "(save_only_model must be False), training cannot go on from it"
                    )
            writer = _values(self.checkpoint)["method"]
            if writer != self.method.name:
                raise UserError(
                    f"'{self.checkpoint}' was written by method {writer}, this one is {self.method.name}: "
                    "adapt the Trainer with the method that wrote it"
                )
            self.load(self.checkpoint)  # before the Trainer loads the moments: their rows are those of the ranks
            resume_from_checkpoint = str(self.checkpoint)
        elif self.used and not resume_from_checkpoint:
            raise UserError("this Trainer has trained its method already: make model, method and Trainer anew")
        self.used = True
        return self._train(resume_from_checkpoint, *args, **kwargs)

    # -- what the callback calls -----------------------------------------------------------------------

    def begin(self, max_steps: int) -> None:
        """Checks that the run is the one that was planned, and holds the rate where it was held before a stop."""
        if max_steps != self.method.total_steps:
            raise UserError(
                f"the method was planned for {self.method.total_steps} steps and the Trainer runs {max_steps}: "
                "set batch size and length before adapt()"
            )
        if self.checkpoint is not None and _values(self.checkpoint)["held"]:
            self.schedule.hold_peak()

    def end(self, best: str | None, step: int) -> None:
        """Takes the ranks of the best checkpoint where the Trainer took its weights, and finishes the method.

        Args:
            best: the folder of that checkpoint, or None.
            step: the last that was done.

        Raises:
            MethodFailure: what the method says; or the weights are those of a step at which it was not done.
        """
        if best is not None:
            rounds = self.method.rounds_seen
            self.load(Path(best))
            self.method.rounds_seen = rounds  # the run's, also those after its best checkpoint
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
        from safetensors.torch import save_file

        state = self.method.state_dict()
        tensors = {n: v.detach().cpu().clone().contiguous() for n, v in state.items() if isinstance(v, Tensor)}
        save_file(tensors, folder / TENSORS)
        values = {
            "schema": SCHEMA,
            "method": self.method.name,
            "state": {n: v for n, v in state.items() if not isinstance(v, Tensor)},
            "rounds": [asdict(r) for r in self.method.rounds_seen],
            "held": self.schedule.held,
        }
        (folder / VALUES).write_text(json.dumps(values), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Restores what `save` wrote of the method; weights, moments and rates are the Trainer's."""
        from safetensors.torch import load_file

        values = _values(folder)
        self.method.load_state_dict(values["state"] | load_file(folder / TENSORS))
        self.method.rounds_seen = [Round(**r | {"pruned": [(m, i) for m, i in r["pruned"]]}) for r in values["rounds"]]


def _values(folder: Path) -> dict[str, Any]:
    """The JSON half of what `save` wrote.

    Raises:
        UserError: another version wrote it.
    """
    values: dict[str, Any] = json.loads((folder / VALUES).read_text(encoding="utf-8"))
    if values.get("schema") != SCHEMA:
        raise UserError(f"'{folder}' was written by another version of elalora: training cannot go on from it")
    return values


def _masks(inputs: dict[str, Any]) -> tuple[Tensor | None, Tensor | None]:
    """Where the input and, in an encoder-decoder model, the decoder's input is no padding."""
    labels = inputs.get("labels")
    target = inputs.get("decoder_attention_mask")
    if target is None and isinstance(labels, Tensor) and labels.ndim > 1:
        target = labels.ne(-100).long()
    return inputs.get("attention_mask"), target


def _callback(session: _Session) -> Any:
    """A `TrainerCallback` that calls the method's hooks; made here, because its base class is transformers'."""
    from transformers import TrainerCallback

    class MethodCallback(TrainerCallback):
        """The hooks of one optimizer step; `state.global_step` is still the step's own 0-based number in both."""

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
