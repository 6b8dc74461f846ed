"""A pretrained encoder with a task head, in float32, from a package, a folder or a hub.

What is unusual: the dtype is set by hand, because transformers 5 takes the checkpoint's; no code from a model
folder ever runs; and the new head is drawn from a stream of its own, so every arm of a seed starts with the
same one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from elalora.errors import UserError
from experiments.config import ModelConfig
from experiments.config_task import TaskConfig
from experiments.model_files import resolve_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer; raises UserError where there is none."""
    from transformers import AutoTokenizer

    where = resolve_model(model.path, model.sha256, model.revision)
    try:
        return AutoTokenizer.from_pretrained(where, revision=model.revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"model.path={model.path} has no tokenizer that loads: {_first(error)}") from error


def load_model(model: ModelConfig, task: TaskConfig, seed: int) -> nn.Module:
    """The encoder with a fresh head for the task.

    Args:
        model: what to load.
        task: gives the number of labels and whether it is a regression.
        seed: of the new head's weights; the global generator is left as it was.

    Raises:
        UserError: nothing loads from that path, or the architecture has no such head.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    where = resolve_model(model.path, model.sha256, model.revision)
    try:
        config = AutoConfig.from_pretrained(where, revision=model.revision, trust_remote_code=False)
        config.num_labels = task.num_labels
        config.problem_type = "regression" if task.kind == "regression" else "single_label_classification"
        _set_dropout(config, model.dropout)
        _set_cls_dropout(config, model)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network, loading = AutoModelForSequenceClassification.from_pretrained(
                where,
                config=config,
                revision=model.revision,
                dtype=torch.float32,
                attn_implementation=model.attention,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, ValueError) as error:
        raise UserError(f"model.path={model.path} does not load as a sequence classifier: {_first(error)}") from error
    _refuse_untrained(loading["missing_keys"], list(model.head))
    return network


def _refuse_untrained(missing: Iterable[str], head: list[str]) -> None:
    """A module that the checkpoint lacks is random; it must train and be saved, so it must be part of the head."""
    fresh = sorted({key.rpartition(".")[0] for key in missing} - {""})
    outside = [name for name in fresh if not any(name == h or name.startswith(h + ".") for h in head)]
    if outside:
        raise UserError(
            f"the checkpoint has no weights for {', '.join(outside)}, and model.head={head} leaves them random and "
            f"frozen; type model.head=[{','.join(fresh)}]"
        )


def _set_dropout(config: Any, dropout: float | None) -> None:
    if dropout is None:
        return
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "cls_dropout"):
        if getattr(config, name, None) is not None or name == "hidden_dropout_prob":
            setattr(config, name, dropout)


def _set_cls_dropout(config: Any, model: ModelConfig) -> None:
    if model.cls_dropout is None:
        return
    deberta = config.model_type.startswith("deberta")
    if not deberta and not hasattr(config, "classifier_dropout"):
        raise UserError(f"model.cls_dropout={model.cls_dropout}: {config.model_type} has no dropout of its own there")
    setattr(config, "cls_dropout" if deberta else "classifier_dropout", model.cls_dropout)


def _first(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
