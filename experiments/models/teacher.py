"""A planted teacher: labels whose best ranks are known, for a positive control.

The teacher is the run's own pretrained model with an update of low rank in a few matrices (LoRA with a layout,
`elalora.layouts`) and a freshly drawn output layer; it answers real texts. A student with enough ranks where the
teacher has its update can fit the labels exactly. One with as many ranks elsewhere has to imitate it, and the head
alone sees only the pretrained features. The teacher has a random stream of its own: no student's head starts at its.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from baselines.lora import LoRA, LoRAConfig
from elalora.budget import Budget
from elalora.errors import UserError
from elalora.low_rank import draw_normal
from elalora.targets import patterns_in
from experiments.config.schema import ModelConfig
from experiments.config.task import DataConfig, TaskConfig, TeacherConfig
from experiments.data.batches import eval_batches
from experiments.data.content import TaskData, content_hash, make_split
from experiments.data.items import make_items
from experiments.models.load import Loaded, load_model, load_processor
from experiments.runtime.cache import cache_dir
from experiments.runtime.distributed import print_once
from experiments.runtime.files import replacing
from experiments.runtime.seeds import stream

if TYPE_CHECKING:
    from datasets import Dataset

FORMAT = 1  # raise when the same settings give other labels
BATCH = 64
STEPS = 1_000  # of `even_offsets`
REMARK = "labels of a planted teacher"


def taught(data: TaskData, config: DataConfig, model: ModelConfig, files: Mapping[str, str] | None = None) -> TaskData:
    """The data of a task with a teacher, labelled by it; labels are cached on disk.

    Args:
        data: as loaded; config: names the cache.
        model: the pretrained model that the teacher is made of; files: digests of a local model, as for `load_model`.

    Raises:
        UserError: the model cannot be read, the pattern does not fit it, or the labels are uneven.
    """
    task = data.config
    key = [FORMAT, data.fingerprint, asdict(task.teacher), task.num_labels, task.max_length, asdict(model), files]
    name = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
    cached = cache_dir(config.cache) / "taught" / f"{name}.safetensors"
    labels = _read(cached, data)
    if labels is None:
        labels = _labels(data, config, model, files)
        _write(cached, labels)
    return labelled(data, labels)


def labelled(data: TaskData, labels: Mapping[str, Tensor]) -> TaskData:
    """The data with other labels, (n,) int64 for each split; every result on them carries a remark."""
    splits = {name: _relabelled(data.config, rows, labels[name]) for name, rows in data.splits.items()}
    return replace(
        data,
        splits=splits,
        fingerprint=content_hash(splits, data.config),
        source=f"{data.source}, {REMARK}",
        remarks=[*data.remarks, REMARK],
    )


def plant(loaded: Loaded, targets: list[str], teacher: TeacherConfig) -> LoRA:
    """Puts the teacher's update into the model: of the norm of each frozen matrix, times `teacher.strength`.

    Args:
        loaded: changed in place.
        targets: `model.targets`, over which the pattern spreads the ranks.

    Returns:
        The method that holds the update.

    Raises:
        UserError: the pattern does not fit the model.
    """
    method = LoRA(LoRAConfig(pattern=teacher.pattern), Budget(teacher.rank))
    seed = stream(teacher.seed, "teacher")
    method.attach(loaded.network, patterns_in(loaded.network, targets), 1, keep=loaded.head, seed=seed)
    for adapter in method.adapters.values():
        draw_normal(adapter.B, adapter.rank, 1.0, method.generator)
        size = torch.linalg.matrix_norm(adapter.delta())
        if adapter.rank:
            adapter.B.data.mul_(teacher.strength * torch.linalg.matrix_norm(adapter.weight) / size)
    return method


def even_offsets(logits: Tensor) -> Tensor:
    """Offsets (classes,) with which the largest logit falls on every class about equally often.

    Args:
        logits: (n, classes), float64.
    """
    classes, offsets = logits.shape[1], logits.new_zeros(logits.shape[1])
    for step in range(STEPS):
        shares = torch.bincount((logits + offsets).argmax(1), minlength=classes) / len(logits)
        offsets -= logits.std() * (shares - 1 / classes) / (1 + step / 100)
    return offsets


def _labels(data: TaskData, config: DataConfig, model: ModelConfig, files: Any) -> dict[str, Tensor]:
    """The teacher's answers on every split; its output layer is drawn and centred on train."""
    task = data.config
    loaded = load_model(model, task, stream(task.teacher.seed, "teacher"), files)
    method = plant(loaded, list(model.targets), task.teacher)
    processor = load_processor(model, task, files)
    features = {
        name: _features(loaded, make_items(rows, processor, task, config.cache)) for name, rows in data.splits.items()
    }
    mean, std = features["train"].mean(0), features["train"].std(0)
    shape = (len(mean), task.num_labels)
    drawn = torch.randn(shape, generator=method.generator, dtype=torch.float64)
    logits = {name: (values - mean) / (std + 1e-12) @ drawn for name, values in features.items()}
    offsets = even_offsets(logits["train"])
    labels = {name: (values + offsets).argmax(1) for name, values in logits.items()}
    _check_even(labels, task)
    return labels


@torch.no_grad()
def _features(loaded: Loaded, items: Any) -> Tensor:
    """Inputs of the model's output layer, (n, d) float64, on the CPU so that every machine has the same."""
    seen: list[Tensor] = []
    network, layer = loaded.network.eval(), _output_layer(loaded)
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].double()))
    order = eval_batches(items.lengths, BATCH)
    for indices in order:
        network(**{name: value for name, value in items.batch(indices).items() if name != "labels"})
    handle.remove()
    rows = torch.cat(seen)
    out = torch.empty_like(rows)
    out[torch.tensor([i for indices in order for i in indices])] = rows
    return out


def _output_layer(loaded: Loaded) -> nn.Linear:
    """The last linear layer of the head, which gives the logits."""
    inside = tuple(f"{name}." for name in loaded.head)
    layers = [
        module
        for name, module in loaded.network.named_modules()
        if f"{name}.".startswith(inside) and isinstance(module, nn.Linear)
    ]
    if not layers:
        raise UserError("task.teacher needs a model with a classification head, such as model=minilm")
    return layers[-1]


def _check_even(labels: Mapping[str, Tensor], task: TaskConfig) -> None:
    """Prints the shares of the classes; refuses one that has less than half or more than twice its part of train."""
    for name, values in labels.items():
        shares = torch.bincount(values, minlength=task.num_labels) / len(values) * task.num_labels
        low, high = float(shares.min()), float(shares.max())
        least, most = low / task.num_labels, high / task.num_labels
        print_once(f"teacher: {len(values):,} labels of {name}, {least:.1%} to {most:.1%} in each class")
        if name == "train" and not 0.5 <= low <= high <= 2:
            raise UserError(
                f"the teacher's labels are uneven: {least:.1%} to {most:.1%} in each of {task.num_labels} classes; "
                "change task.teacher.seed, or lower task.num_labels"
            )


def _relabelled(task: TaskConfig, rows: Dataset, labels: Tensor) -> Dataset:
    columns = {name: rows[name][:] for name in ("idx", *task.text)}
    return make_split(task, {**columns, "label": labels.tolist()})


def _read(file: Path, data: TaskData) -> dict[str, Tensor] | None:
    """Cached labels, or None where the file is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not file.is_file():
        return None
    try:
        labels = load_file(file)
    except SafetensorError:
        return None
    sizes = {name: len(rows) for name, rows in data.splits.items()}
    return labels if {name: len(values) for name, values in labels.items()} == sizes else None


def _write(file: Path, labels: dict[str, Tensor]) -> None:
    from safetensors.torch import save

    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as part:
        part.write_bytes(save(labels))
