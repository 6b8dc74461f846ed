"""Loads a pretrained model with a task head from a package, a folder or the hub.

The dtype is explicit because transformers 5 would use the checkpoint's. Code from a model folder never runs. The new
head has its own random stream, so that all arms of a seed start with the same head.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import nn

from elalora.errors import UserError, first_line
from experiments.config.schema import ModelConfig
from experiments.config.task import TaskConfig
from experiments.models.files import (
    BUILT_IN,
    EMBEDDED,
    PICKLE,
    WEIGHTS,
    digests,
    embedded_minilm,
    files_in,
    hub_folder,
    verify,
    verify_file,
    weights_in,
)
from experiments.models.images import SETTINGS, ImageProcessor, image_processor
from experiments.models.padding import set_pad_token
from experiments.models.pickled import as_safetensors
from experiments.models.positions import fix_computed
from experiments.models.precision import loading, prepare_weights
from experiments.runtime.digests import sha256_of, unchanged

# the transformers class with the head for a kind of task, and PEFT's task_type
HEADED = {
    "classification": ("AutoModelForSequenceClassification", "SEQ_CLS"),
    "regression": ("AutoModelForSequenceClassification", "SEQ_CLS"),
    "summarization": ("AutoModelForSeq2SeqLM", "SEQ_2_SEQ_LM"),
    "image": ("AutoModelForImageClassification", None),
    "causal": ("AutoModelForCausalLM", "CAUSAL_LM"),
}
LANGUAGE = ("summarization", "causal")  # kinds of tasks that need no new head: the model's own predicts tokens
TEXT = (
    "minilm", "minilm_hub", "deberta_v3_base", "deberta_v3_small", "roberta_base", "bert_base", "modernbert_base",
    "random_encoder",
)  # fmt: skip
DECODERS = (
    "smollm2_135m", "llama3_2_1b", "llama3_2_3b", "llama3_1_8b", "qwen3_0_6b", "qwen3_1_7b",
    "qwen3_8b", "qwen2_5_0_5b", "gemma3_1b", "smollm2_135m_base", "smollm2_360m_base", "mistral_7b",
)  # fmt: skip
SUMMARIES = ("bart_base", "bart_large")
IMAGES = ("vit_b16_in21k", "vit_digits")
# the models of conf/model/ that fit a kind of task; model=local is judged by its files
FITTING = {
    "classification": (*TEXT, *SUMMARIES, *DECODERS),
    "regression": (*TEXT, *SUMMARIES, *DECODERS),
    "summarization": SUMMARIES,
    "image": IMAGES,
    "causal": DECODERS,
}
SHOWN = {"smollm2_135m_q4_1": "smollm2_135m"}  # model.name where it is not that of its file, to the file's
CAUSAL = ("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "phi3", "gpt2")
# modules that train whole beside adapters; for other architectures those that the checkpoint lacks
HEADS = {
    "bert": ["bert.pooler", "classifier"],
    "roberta": ["classifier"],
    "electra": ["classifier"],
    "deberta-v2": ["pooler", "classifier"],
    "modernbert": ["head", "classifier"],
    "bart": ["classification_head"],
    "vit": ["classifier"],
    **dict.fromkeys(CAUSAL, ["score"]),
    **dict.fromkeys(("xlm-roberta", "camembert", "mpnet", "dinov2", "swin", "clip", "convnext"), ["classifier"]),
    **dict.fromkeys(("t5", "mt5", "mbart"), ["classification_head"]),
    **dict.fromkeys(
        ("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "phi3", "gpt2"), ["score"]
    ),
}
DROPOUTS = (
    "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "cls_dropout", "pooler_dropout",
    "dropout", "attention_dropout", "embedding_dropout", "mlp_dropout", "dropout_rate", "resid_pdrop", "embd_pdrop",
    "attn_pdrop",
)  # fmt: skip


class Loaded(NamedTuple):
    """A model, the names of its modules that train whole, and what it was read from (`manifest.json`)."""

    network: nn.Module
    head: list[str]
    read: dict[str, Any]


_LOADING = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError)  # raised by damaged folders


def check_kind(model: ModelConfig, task: TaskConfig) -> None:
    """Refuses a model of conf/model/ for a kind of task that it cannot do, before data are read.

    Raises:
        UserError: names the models that fit.
    """
    name = SHOWN.get(model.name, model.name)
    if name in (*TEXT, *SUMMARIES, *DECODERS, *IMAGES) and name not in FITTING[task.kind]:
        raise UserError(f"model={name} does not fit task={task.name}, which is {_kind(task)}; {_fitting(task)}")


def _kind(task: TaskConfig) -> str:
    names = {"image": "of images", "summarization": "of summaries", "causal": "of prompts and completions"}
    return names.get(task.kind, f"{task.kind} of text")


def _fitting(task: TaskConfig) -> str:
    return f"for it type model={', '.join(FITTING[task.kind])}, or local"


@contextmanager
def _reading(model: ModelConfig, planned: Mapping[str, str] | None) -> Iterator[Path]:
    """The model's folder; its content is the planned one before and after what is read inside."""
    folder = resolve_model(model.path, model.sha256, model.revision)
    with unchanged(files_in(folder).values(), f"model.path={model.path}"):
        if model.path == "embedded":
            planned = EMBEDDED
        elif model.path in ("digits", "random"):
            planned = digests(folder)
        if planned is not None:
            verify(folder, planned)
        yield folder


def load_processor(model: ModelConfig, task: TaskConfig, planned: Mapping[str, str] | None = None) -> Any:
    """The model's tokenizer, or for images an `ImageProcessor`.

    Args:
        model: what to load.
        task: determines the kind of processor.
        planned: name -> sha256 of a local folder's files, from the run's identity; None loads what is in the folder.

    Raises:
        UserError: the model has none, or it does not load or is not the planned one.
    """
    with _reading(model, planned) as folder:
        if task.kind == "image":
            return _image_processor(model, folder, task)
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        except _LOADING as error:
            line = f"model.path={model.path} has no tokenizer that loads: {first_line(error)}"
            raise UserError(f"{line}; task={task.name} is {_kind(task)}: {_fitting(task)}") from error
        set_pad_token(tokenizer, model)
        return tokenizer


def _image_processor(model: ModelConfig, folder: Path, task: TaskConfig) -> ImageProcessor:
    if not (folder / SETTINGS).is_file():
        raise UserError(
            f"model.path={model.path} has no {SETTINGS}, so it is not an image model; "
            f"task={task.name} is {_kind(task)}: {_fitting(task)}"
        )
    return image_processor(model, folder, imagenet=task.normalise == "imagenet")


def load_model(model: ModelConfig, task: TaskConfig, seed: int, planned: Mapping[str, str] | None = None) -> Loaded:
    """The model with a head for the task, newly drawn unless the checkpoint has one that fits.

    Args:
        model: what to load.
        task: determines the kind of head and the number of labels.
        seed: of the new head's weights; the global generator is unchanged.
        planned: as for `load_processor`.

    Raises:
        UserError: the path does not load or is not the planned one, or the architecture has no such head.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with _reading(model, planned) as folder:
        loadable = as_safetensors(folder, f"model.path={model.path}")
        network, report = _from_pretrained(model, task, seed, str(loadable))
        computed = fix_computed(network)
        _leave_files(network)
        read = _what_was_read(model, folder, loadable)
    mismatched = [key[0] if isinstance(key, tuple) else key for key in report["mismatched_keys"]]
    missing = {*report["missing_keys"], *mismatched} - computed
    fresh = sorted({key.rpartition(".")[0] for key in missing} - {""})
    head = _head(model, task, network.config.model_type, fresh)
    _refuse_untrained(fresh, head)
    prepare_weights(network, model, head)
    return Loaded(network, head, read)


def _from_pretrained(model: ModelConfig, task: TaskConfig, seed: int, source: str) -> tuple[Any, dict[str, Any]]:
    """The network, and transformers' report of what the checkpoint had."""
    import transformers

    cls = getattr(transformers, HEADED[task.kind][0])
    try:
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        if task.kind not in LANGUAGE:
            config.num_labels = task.num_labels
            config.problem_type = "regression" if task.kind == "regression" else "single_label_classification"
        _set_dropout(config, model.dropout)
        _set_cls_dropout(config, model)
        if type(config) not in cls._model_mapping:
            raise UserError(
                f"model.path={model.path} is a {config.model_type} model, which has no head for {task.kind} "
                f"(task={task.name}); {_fitting(task)}"
            )
        if other := getattr(config, "transformers_weights", None):
            raise UserError(
                f"model.path={model.path}: config.json names other weights (transformers_weights={other}); remove that "
                f"key, and name the file {WEIGHTS}"
            )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network, report = cls.from_pretrained(
                source,
                config=config,
                **loading(model, HEADS.get(config.model_type, []) if model.head is None else model.head),
                attn_implementation=model.attention,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # redraws a head for another number of labels
                output_loading_info=True,
            )
    except _LOADING as error:
        raise UserError(f"model.path={model.path} does not load for {task.kind}: {first_line(error)}") from error
    return network, report


def _leave_files(network: nn.Module) -> None:
    """Copies the weights into memory: mapped ones would change with their file, in the middle of training."""
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point():  # quantised ones were made in memory
            tensor.data = tensor.data.clone()


def _what_was_read(model: ModelConfig, folder: Path, loadable: Path) -> dict[str, Any]:
    """The digests of a model's files and of weights made from pickles, and the commit of a hub id."""
    read: dict[str, Any] = {} if _is_local(model.path) else {"commit": folder.name}
    read["files"] = digests(folder)
    if loadable != folder:
        read["converted"] = {name: sha256_of(loadable / name) for name in weights_in(loadable)}
    return read


def _head(model: ModelConfig, task: TaskConfig, model_type: str, fresh: list[str]) -> list[str]:
    if model.head is not None:
        return list(model.head)
    if task.kind in LANGUAGE:
        return []
    return HEADS.get(model_type, fresh)


def _refuse_untrained(fresh: Iterable[str], head: list[str]) -> None:
    """A module that the checkpoint lacks is random, so it must train and be saved as part of the head."""
    outside = [name for name in fresh if not any(name == h or name.startswith(h + ".") for h in head)]
    if outside:
        raise UserError(
            f"the checkpoint has no weights for {', '.join(outside)}, and model.head={head} leaves them random and "
            f"frozen; type model.head=[{','.join(fresh)}]"
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
        raise UserError(
            f"model.cls_dropout={model.cls_dropout}: {config.model_type} has no dropout before its classifier"
        )
    setattr(config, "cls_dropout" if deberta else "classifier_dropout", model.cls_dropout)


def resolve_model(path: str, sha256: str | None = None, revision: str | None = None) -> Path:
    """The folder of a model, verified; a hub id is fetched into the hub's cache.

    Args:
        path: "embedded", "digits", "random", "smollm2", a local folder, or a hub id (owner/model).
        sha256: expected checksum of model.safetensors, or of pytorch_model.bin where there is no other, in a folder or
            on the hub; None skips the check.
        revision: commit of a hub id; a branch would name other files tomorrow.

    Raises:
        UserError: the path is neither a folder nor a hub id with a commit, the hub cannot be read, the weights have
            another checksum, or a model that needs no hub cannot be made.
    """
    if path == "embedded":
        return embedded_minilm()
    if path == "digits":
        from experiments.models.digits import pretrained

        return pretrained()
    if path == "random":
        from experiments.models.random_encoder import drawn

        return drawn()
    if path == "smollm2":
        from experiments.models.smollm2 import dense

        return dense()
    folder = Path(path).expanduser()
    remedy = "to use it anyway, type model.sha256=null"
    if not folder.is_dir():
        _check_pinned(path, sha256, revision)
        folder, remedy = hub_folder(path, revision), "give the checksum of this model: model.sha256=..."
    if sha256 is not None:
        verify_file(folder / (PICKLE if weights_in(folder) == [PICKLE] else WEIGHTS), sha256, remedy)
    return folder


def base_of(path: str) -> str:
    """The base model of `model.path` as other programs name it: a hub id, or a folder.

    Raises:
        UserError: a model that is made on this machine cannot be.
    """
    if path == "embedded":
        return "sentence-transformers/all-MiniLM-L6-v2"
    return str(resolve_model(path)) if path in BUILT_IN else path


def _is_local(path: str) -> bool:
    return path in BUILT_IN or Path(path).expanduser().is_dir()


def _check_pinned(path: str, sha256: str | None, revision: str | None) -> None:
    """Refuses what cannot be a hub id, or one whose content could change."""
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise UserError(f"model.path={path} is not a folder; give a folder, a hub id (owner/model), or embedded")
    if revision is None and sha256 is None or revision is not None and not re.fullmatch(r"[0-9a-f]{40}", revision):
        given = "on the hub is not pinned" if revision is None else f"with model.revision={revision} can change"
        raise UserError(
            f"model.path={path} {given}; type model.revision=COMMIT with its 40 hex digits, or model.sha256=DIGEST, so "
            "that a result's identity says which weights were used"
        )
