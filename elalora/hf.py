"""Any method of this library inside the stock Hugging Face `Trainer` or `Seq2SeqTrainer`.

    trainer = Trainer(model=model, args=args, train_dataset=data)
    method = adapt(trainer, ElaLoRA(ElaLoRAConfig(), Budget(rank=4)), targets="paper", keep=["classifier"])
    trainer.train()

`adapt` attaches the method to the Trainer's model, gives the Trainer the row-wise optimizer, and adds a callback that
calls the method's hooks in the order of `elalora.method`; nothing is subclassed. A callback cannot add to the loss, so
the Trainer's `compute_loss` is wrapped. Only there all kinds of loss pass (of the model, of a `compute_loss_func`, with
label smoothing), and it is known whether the Trainer divides the loss by the number of micro-batches afterwards. The
Trainer keeps its own learning-rate schedule. Whatever it saves is a PEFT adapter (`elalora.export.save_as_adapter`);
elalora.safetensors and elalora.json in each checkpoint hold what resuming and `load_best_model_at_end` need.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elalora.attach import find_linears, refuse_adapted, unadaptable
from elalora.errors import UserError
from elalora.export import modules_to_save, save_tensors, with_running_norms
from elalora.hf_checks import refuse_early_weights, refuse_settings
from elalora.merging import is_quantised, restore_layout
from elalora.method import Method, MethodFailure, NeverActed, Round
from elalora.optim import RowwiseAdamW
from elalora.targets import matrices_in, patterns_in

TENSORS, VALUES = "elalora.safetensors", "elalora.json"
MODEL = "model/"  # before the names of the model's tensors
SCHEMA = 3  # of both files; version 2 left the model's tensors to the Trainer, version 1 had rows for every slot
LEARNED = 0.95  # of a constant answer's loss; training that ends above it has learned next to nothing
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
    refuse_settings(trainer)
    args, model = trainer.args, trainer.model
    _, per_epoch, *_, total = trainer.set_initial_training_values(args, trainer.get_train_dataloader())
    patterns = _patterns(model, targets, keep)
    if method.capabilities.exports_lora:
        modules_to_save(model, with_running_norms(model, keep), find_linears(model, patterns, outside=keep))
    if trainer.is_world_process_zero():
        _print_unadaptable(model, keep)
    attached = method.attach(model, patterns, total, keep, args.seed if seed is None else seed)
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
    session = _Session(trainer, method, optimizer, per_epoch)
    for name in ("compute_loss", "train", "save_model", "_load_from_checkpoint", "_load_best_model"):
        if not hasattr(trainer, name):
            raise UserError(f"this version of transformers has no Trainer.{name}: install transformers>=5,<6")
        setattr(trainer, name, getattr(session, name))
    trainer.add_callback(_callback(session))
    return method


def _print_unadaptable(model: Any, keep: Sequence[str]) -> None:
    share, names = unadaptable(model, keep)
    if share > 0.01:
        print(
            f"adapt: {share:.0%} of the model's parameters cannot be adapted, because these modules are not nn.Linear: "
            + ", ".join(names)
        )


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


def prepare_quantised(model: Any) -> Any:
    """Makes the Trainer accept a model that transformers loaded in int8 or 4-bit, for `adapt` to adapt afterwards.

        model = prepare_quantised(AutoModelForCausalLM.from_pretrained(name, quantization_config=config))

    The Trainer refuses a quantised model without adapters, and `adapt` needs the Trainer, so the model is marked as
    adapted. All its parameters are frozen: if `adapt` is forgotten, training fails at its first step.

    Raises:
        UserError: the model is not quantised, or its quantisation cannot be trained through.
    """
    quantiser = getattr(model, "hf_quantizer", None)
    if quantiser is None:
        raise UserError("the model is not quantised: pass it to the Trainer as it is")
    if not quantiser.is_trainable:
        raise UserError(f"a model quantised by {type(quantiser).__name__} cannot be trained: use bitsandbytes")
    refuse_adapted(model)
    restore_layout(model)
    for module in filter(is_quantised, model.modules()):
        module.support_avx512bf16_for_cpu = False  # evaluation would pack 4-bit weights, which pass no gradient on
    model._hf_peft_config_loaded = True  # asked by the Trainer, and by gradient checkpointing
    return model.requires_grad_(False)


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

    def restarted(self, step: int, start: int) -> float:
        """As `factor`, for what begins to train at `start`: the same warm-up, then a decay to the run's end."""
        rule: Any = self._trainer.lr_scheduler.lr_lambdas[0]
        words = dict(getattr(rule, "keywords", {}))
        if "num_training_steps" not in words:  # a constant rate, or a rule of the user's own
            return float(rule(step - start))
        words["num_training_steps"] -= start
        return float(rule.func(step - start, *rule.args, **words))

    def hold_peak(self) -> None:
        """Holds the rate at its peak from now on (D2)."""
        self.held = True
        scheduler = self._trainer.lr_scheduler
        scheduler.lr_lambdas = [lambda step: 1.0] * len(scheduler.lr_lambdas)

    def keep_constant_rates(self) -> None:
        """Takes the optimizer's groups with "constant_rate" out of the schedule; call it before the first step."""
        scheduler = self._trainer.lr_scheduler
        for i, group in enumerate(scheduler.optimizer.param_groups):
            if group.get("constant_rate"):
                scheduler.lr_lambdas[i] = lambda step: 1.0
                group["lr"] = scheduler.base_lrs[i]


class _Session:
    """The training of one adapted Trainer: the wrapped functions and what the callback calls."""

    def __init__(self, trainer: Any, method: Method, optimizer: RowwiseAdamW, steps_per_epoch: int) -> None:
        self.trainer, self.method, self.optimizer = trainer, method, optimizer
        self.steps_per_epoch = steps_per_epoch
        self.schedule: Any = TrainerSchedule(trainer)
        self.checkpoint: Path | None = None
        self.best: Path | None = None
        self.used = False
        # of the last quarter of the micro-batches, without the penalty
        self.losses: deque[Tensor] = deque(
            maxlen=max(1, method.total_steps * trainer.args.gradient_accumulation_steps // 4)
        )
        self._loss, self._train, self._save_model = trainer.compute_loss, trainer.train, trainer.save_model

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The Trainer's loss plus, in training, the method's penalty, which counts once per optimizer step."""
        if not model.training:
            return self._loss(model, inputs, return_outputs, num_items_in_batch=num_items_in_batch)
        penalty = self.method.penalty()
        with self.method.watching(*_masks(inputs, self.trainer.model)):
            loss = self._loss(model, inputs, return_outputs, num_items_in_batch=num_items_in_batch)
        # where the loss is not scaled yet, the Trainer divides loss and penalty later
        parts = self.trainer.current_gradient_accumulation_steps if self._loss_is_scaled(num_items_in_batch) else 1
        self.losses.append((loss[0] if return_outputs else loss).detach() * parts)
        if penalty is None:
            return loss
        penalty = penalty / parts
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
            resume_from_checkpoint = str(self.checkpoint)
        elif self.used and not resume_from_checkpoint:
            raise UserError("this Trainer has already trained its method: create a new model, method and Trainer")
        refuse_early_weights(self.trainer, self.method, self.steps_per_epoch)
        self.used = True
        output = self._train(resume_from_checkpoint, *args, **kwargs)
        self._report_rounds(output)
        self._report_loss(output)
        return output

    def _report_loss(self, output: Any) -> None:
        """Puts into the result whether a classifier learned more than a constant answer; prints it if it did not."""
        classes = _classes(self.trainer.model)
        if classes < 2 or not self.losses:
            return
        loss, constant = float(torch.stack(list(self.losses)).mean()), math.log(classes)
        output.metrics["did_not_learn"] = loss > LEARNED * constant
        if output.metrics["did_not_learn"] and self.trainer.is_world_process_zero():
            print(
                f"adapt: {self.method.title} did not learn: the training loss ended at {loss:.3f}, that of a constant "
                f"answer among {classes} classes is {constant:.3f}. Train longer, or change "
                f"learning_rate={self.trainer.args.learning_rate:g} (in short runs 1e-3 suits LoRA, 3e-3 methods with "
                "singular values)"
            )

    def _report_rounds(self, output: Any) -> None:
        """Puts the number of rounds into the Trainer's result; prints it if training stopped before the last one."""
        if not self.method.capabilities.adaptive:
            return
        rounds, due, step = len(self.method.rounds_seen), self.method.rounds_due(), self.trainer.state.global_step
        output.metrics.update(rounds=rounds, rounds_due=due)
        total, title = self.method.total_steps, self.method.title
        if step < total and (rounds < due or not rounds) and self.trainer.is_world_process_zero():
            print(
                f"adapt: training stopped at step {step} of {total}, after {rounds} of {due} rounds of {title}"
                + ("" if rounds else ": its ranks never changed")
            )

    def begin(self, max_steps: int) -> None:
        """Checks that the run has the planned length; holds the rate if it was held in the checkpoint."""
        if max_steps != self.method.total_steps:
            raise UserError(
                f"the method was planned for {self.method.total_steps} steps and the Trainer runs {max_steps}: "
                "set batch size and length before adapt()"
            )
        self.schedule.keep_constant_rates()
        if self.checkpoint is not None and _values(self.checkpoint)["held"]:
            self.schedule.hold_peak()

    def end(self, last_step: int) -> None:
        """Finishes the method, with the weights of the best checkpoint if the Trainer loaded them.

        Raises:
            MethodFailure: the method failed, or the weights are those of a step before its ranks were final.
        """
        step = last_step if self.best is None else int(self.best.name.rpartition("-")[2])
        try:
            self.method.finish()
        except MethodFailure as error:
            total = self.method.total_steps
            if step >= total:
                raise
            if self._stopped_before_the_first_round(error, last_step):
                return
            which = "training stopped at" if self.best is None else "the best checkpoint is of"
            raise MethodFailure(
                f"{which} step {step} of {total}, where the ranks of {self.method.title} were not final: train to the "
                "end, and with load_best_model_at_end=True evaluate and save in its last phase only"
            ) from error

    def _stopped_before_the_first_round(self, error: MethodFailure, last_step: int) -> bool:
        """Whether the method could not act yet, so that its first ranks are a valid result if they meet the budget."""
        method = self.method
        if not isinstance(error, NeverActed) or method.rounds_seen or method.capabilities.final_only:
            return False
        return method.phases is None or last_step <= method.phases.rounds()[0]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """`Trainer.save_model`, which writes an adapter; a checkpoint gets what resuming needs as well."""
        self._save_model(output_dir, _internal_call)
        if _internal_call and output_dir is not None and self.trainer.args.should_save:
            self.save(Path(output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Replaces the method of the Trainer, which knows whole models and PeftModels only."""
        self.load(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        """Replaces the method of the Trainer; the rounds stay those of the whole run."""
        rounds = self.method.rounds_seen
        self.best = Path(self.trainer.state.best_model_checkpoint)
        self.load(self.best)
        self.method.rounds_seen = rounds

    def save(self, folder: Path) -> None:
        """Writes the method's state and everything of the model that training changes."""
        state = self.method.state_dict()
        tensors = {n: v for n, v in state.items() if isinstance(v, Tensor)}
        tensors |= {MODEL + n: t for n, t in _changing(self.trainer.model).items()}
        save_tensors({n: t.detach().cpu().clone().contiguous() for n, t in tensors.items()}, folder / TENSORS)
        values = {
            "schema": SCHEMA,
            "method": self.method.name,
            "state": {n: v for n, v in state.items() if not isinstance(v, Tensor)},
            "rounds": [asdict(r) for r in self.method.rounds_seen],
            "held": self.schedule.held,
        }
        (folder / VALUES).write_text(json.dumps(values), encoding="utf-8")

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Restores what `save` wrote; the Trainer restores moments and learning rates."""
        from safetensors.torch import load_file

        values, tensors = _values(folder), load_file(folder / TENSORS)
        saved = {n.removeprefix(MODEL): tensors.pop(n) for n in list(tensors) if n.startswith(MODEL)}
        changing = _changing(self.trainer.model)
        if {n: t.shape for n, t in saved.items()} != {n: t.shape for n, t in changing.items()}:
            raise UserError(
                f"'{folder}' is of a model with other trained parameters: adapt with the targets, keep and budget of "
                "the script that wrote it"
            )
        self.method.load_state_dict(values["state"] | tensors)
        for name, tensor in changing.items():
            tensor.copy_(saved[name])
        self.method.rounds_seen = [Round.read(line) for line in values["rounds"]]


def _changing(model: Any) -> dict[str, Tensor]:
    """Trained parameters and saved buffers, by name; the rest is the base model's."""
    saved = model.state_dict().keys()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return trained | {name: buffer for name, buffer in model.named_buffers() if name in saved}


def _values(folder: Path) -> dict[str, Any]:
    """The JSON values that `save` wrote; raises UserError for those of another version."""
    values: dict[str, Any] = json.loads((folder / VALUES).read_text(encoding="utf-8"))
    if values.get("schema") != SCHEMA:
        raise UserError(f"'{folder}' was written by another version of elalora: training cannot resume from it")
    return values


def _masks(inputs: dict[str, Any], model: Any) -> tuple[Tensor | None, Tensor | None]:
    """Masks of the input and, in an encoder-decoder model, of the decoder's input; 0 at padding."""
    labels = inputs.get("labels")
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return inputs.get("attention_mask"), None  # the labels of a causal model hide its prompts, too
    target = inputs.get("decoder_attention_mask")
    if target is None and isinstance(labels, Tensor) and labels.ndim > 1:
        target = labels.ne(-100).long()
    return inputs.get("attention_mask"), target


def _classes(model: Any) -> int:
    """The number of classes among which a model's loss is a cross-entropy; 0 for every other loss."""
    config = getattr(model, "config", None)
    single = getattr(config, "problem_type", None) in (None, "single_label_classification")
    classifier = type(model).__name__.endswith(("ForSequenceClassification", "ForImageClassification"))
    return int(config.num_labels) if classifier and single and config is not None else 0


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

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            session.end(state.global_step)

    return MethodCallback()
