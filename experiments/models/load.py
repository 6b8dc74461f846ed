"""A pretrained model with a task head, in float32, from a package, a folder or a hub.

What is unusual: the dtype is set by hand, because transformers 5 takes the checkpoint's; no code from a model
folder ever runs; and the new head is drawn from a stream of its own, so every arm of a seed starts with the
same one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import nn

from elalora.errors import UserError
from experiments.config.schema import ModelConfig
from experiments.config.task import TaskConfig
from experiments.models.files import _hub_weights, embedded_minilm, model_file, verify_weights

# the class of transformers that has the head of a kind of task, and the task_type by which PEFT knows it
HEADED = {
    "classification": ("AutoModelForSequenceClassification", "SEQ_CLS"),
    "regression": ("AutoModelForSequenceClassification", "SEQ_CLS"),
    "summarization": ("AutoModelForSeq2SeqLM", "SEQ_2_SEQ_LM"),
    "image": ("AutoModelForImageClassification", None),
}
# modules that train whole beside adapters; of an architecture that is not here, those that the checkpoint lacks
HEADS = {
    "bert": ["bert.pooler", "classifier"],
    "roberta": ["classifier"],
    "electra": ["classifier"],
    "deberta-v2": ["pooler", "classifier"],
    "bart": ["classification_head"],
    "vit": ["classifier"],
}
DROPOUTS = (
    "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "cls_dropout", "pooler_dropout",
    "dropout", "attention_dropout",
)  # fmt: skip


class Loaded(NamedTuple):
    """A model and the modules of it that are trained whole."""

    network: nn.Module
    head: list[str]


class ImageProcessor(NamedTuple):
    """What an image model expects of its input.

    Attributes:
        size: (height, width).
        mean, std: of each channel, for values in 0..1.
        resample: the number of a PIL filter.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: int


_LOADING = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError)  # what a damaged folder raises
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CONVERT = (
    """python -c "from transformers import AutoModel; AutoModel.from_pretrained('FOLDER').save_pretrained('NEW')\""""
)
BICUBIC = 3  # PIL's number


def load_processor(model: ModelConfig, task: TaskConfig) -> Any:
    """The model's tokenizer, or for images an `ImageProcessor`.

    Raises:
        UserError: the model has none that loads.
    """
    where = resolve_model(model.path, model.sha256, model.revision)
    if task.kind == "image":
        return _image_processor(model, where, task)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(where, revision=model.revision, trust_remote_code=False)
    except _LOADING as error:
        raise UserError(f"model.path={model.path} has no tokenizer that loads: {_first(error)}") from error


def _image_processor(model: ModelConfig, where: str, task: TaskConfig) -> ImageProcessor:
    file = model_file(where, "preprocessor_config.json", model.revision)
    if file is None:
        raise UserError(f"model.path={model.path} has no preprocessor_config.json: it is no model of images")
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        size = told["size"]
        edge = (size["height"], size["width"]) if isinstance(size, dict) else (size, size)
        found = ImageProcessor(
            (int(edge[0]), int(edge[1])),
            tuple(float(v) for v in told["image_mean"]),
            tuple(float(v) for v in told["image_std"]),
            int(told.get("resample", BICUBIC)),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"model.path={model.path}: its preprocessor_config.json must give size, image_mean and image_std "
            f"({type(error).__name__}: {error})"
        ) from error
    if task.normalise == "imagenet":  # as ElaLoRA's image code does, whatever the checkpoint was trained with
        return found._replace(mean=IMAGENET_MEAN, std=IMAGENET_STD, resample=BICUBIC)
    return found


def load_model(model: ModelConfig, task: TaskConfig, seed: int) -> Loaded:
    """The model with a head for the task, fresh where the checkpoint has none that fits.

    Args:
        model: what to load.
        task: gives the kind of head and the number of labels.
        seed: of the new head's weights; the global generator is left as it was.

    Raises:
        UserError: nothing loads from that path, or the architecture has no such head.
    """
    import transformers
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    where = resolve_model(model.path, model.sha256, model.revision)
    _refuse_pickle(model, where)
    cls = getattr(transformers, HEADED[task.kind][0])
    try:
        config = transformers.AutoConfig.from_pretrained(where, revision=model.revision, trust_remote_code=False)
        if task.kind != "summarization":
            config.num_labels = task.num_labels
            config.problem_type = "regression" if task.kind == "regression" else "single_label_classification"
        _set_dropout(config, model.dropout)
        _set_cls_dropout(config, model)
        if type(config) not in cls._model_mapping:
            raise UserError(
                f"model.path={model.path} is a {config.model_type} model, which has no head for {task.kind} "
                f"(task={task.name}); choose another model or task"
            )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network, loading = cls.from_pretrained(
                where,
                config=config,
                revision=model.revision,
                dtype=torch.float32,
                attn_implementation=model.attention,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # a head for another number of labels is drawn anew
                output_loading_info=True,
            )
    except _LOADING as error:
        raise UserError(f"model.path={model.path} does not load for {task.kind}: {_first(error)}") from error
    mismatched = [key[0] if isinstance(key, tuple) else key for key in loading["mismatched_keys"]]
    fresh = sorted({key.rpartition(".")[0] for key in [*loading["missing_keys"], *mismatched]} - {""})
    head = _head(model, task, config.model_type, fresh)
    _refuse_untrained(fresh, head)
    return Loaded(network, head)


def _head(model: ModelConfig, task: TaskConfig, model_type: str, fresh: list[str]) -> list[str]:
    if model.head is not None:
        return list(model.head)
    if task.kind == "summarization":
        return []
    return HEADS.get(model_type, fresh)


def _refuse_untrained(fresh: Iterable[str], head: list[str]) -> None:
    """A module that the checkpoint lacks is random; it must train and be saved, so it must be part of the head."""
    outside = [name for name in fresh if not any(name == h or name.startswith(h + ".") for h in head)]
    if outside:
        raise UserError(
            f"the checkpoint has no weights for {', '.join(outside)}, and model.head={head} leaves them random and "
            f"frozen; type model.head=[{','.join(fresh)}]"
        )


def check_fit(model: ModelConfig, task: TaskConfig, network: Any, processor: Any) -> None:
    """Whether tokenizer or image size, lengths and model belong together.

    Raises:
        UserError: token ids beyond the embedding, more tokens than positions, or images of another size.
    """
    config = network.config
    if task.kind == "image":
        wanted = getattr(config, "image_size", None)
        wanted = (wanted, wanted) if isinstance(wanted, int) else wanted and tuple(wanted)
        if wanted and wanted != processor.size:
            raise UserError(
                f"model.path={model.path} expects images of {wanted}, "
                f"its preprocessor_config.json makes {processor.size}"
            )
        return
    rows = network.get_input_embeddings().num_embeddings
    if len(processor) > rows:
        raise UserError(
            f"model.path={model.path}: its tokenizer has {len(processor)} ids, the model {rows} embeddings; "
            "they are not of one model"
        )
    positions = _positions(config)
    asked = {"task.max_length": task.max_length}
    if task.kind == "summarization":
        asked |= {"task.target_length": task.target_length, "task.generate_length": task.generate_length + 1}
    for name, length in asked.items():
        if positions is not None and length > positions:
            raise UserError(f"{name}={length} is more than the {positions} positions of {model.name}; lower it")


def _positions(config: Any) -> int | None:
    """Most tokens that the model can place; None where positions are relative only."""
    if getattr(config, "relative_attention", False) and not getattr(config, "position_biased_input", True):
        return None
    most = getattr(config, "max_position_embeddings", None)
    if most is None or most < 1:
        return None
    # RoBERTa counts positions from behind the padding id
    return most - config.pad_token_id - 1 if config.model_type == "roberta" else most


def _refuse_pickle(model: ModelConfig, where: str) -> None:
    """A folder with pickled weights only: loading them could run code, so the user converts them knowingly."""
    folder = Path(where)
    if folder.is_dir() and not list(folder.glob("*.safetensors")) and list(folder.glob("*.bin")):
        raise UserError(
            f"model.path={model.path} has pickled weights only, which could run code when they are read; where you "
            f"trust them, convert once: {CONVERT}, and copy the tokenizer's files"
        )


def _set_dropout(config: Any, dropout: float | None) -> None:
    if dropout is None:
        return
    for name in DROPOUTS:
        if getattr(config, name, None) is not None or name == "hidden_dropout_prob":
            setattr(config, name, dropout)


def _set_cls_dropout(config: Any, model: ModelConfig) -> None:
    if model.cls_dropout is None:
        return
    deberta = config.model_type.startswith("deberta")
    if not deberta and not hasattr(config, "classifier_dropout"):
        raise UserError(f"model.cls_dropout={model.cls_dropout}: {config.model_type} has no dropout of its own there")
    setattr(config, "cls_dropout" if deberta else "classifier_dropout", model.cls_dropout)


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def resolve_model(path: str, sha256: str | None = None, revision: str | None = None) -> str:
    """What to give to from_pretrained: a verified folder, or a hub id left as it is.

    Args:
        path: "embedded", "digits", a local folder, or a hub id (owner/model).
        sha256: expected checksum of model.safetensors, in a folder or on the hub; None skips the check.
        revision: of a hub id.

    Raises:
        UserError: a path that is no folder, weights that are not the expected ones, or no embedded model.
    """
    if path == "embedded":
        return str(embedded_minilm())
    if path == "digits":
        from experiments.models.digits import pretrained

        return str(pretrained())
    folder = Path(path).expanduser()
    if folder.is_dir():
        if sha256 is not None:
            verify_weights(folder, sha256, "to use it all the same, type model.sha256=null")
        return str(folder)
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise UserError(f"model.path={path} is not a folder; give a folder, a hub id (owner/model), or embedded")
    if sha256 is None and revision is None:
        raise UserError(
            f"model.path={path} on the hub is not pinned; type model.revision=COMMIT or model.sha256=DIGEST, "
            "so that a stored result says which weights made it"
        )
    if sha256 is not None:
        verify_weights(_hub_weights(path, revision).parent, sha256, "give the digest of this model: model.sha256=...")
    return path
