"""A planted teacher: labels whose best ranks are known, for a positive control.

The teacher is the run's own model with an update of low rank in a few matrices (LoRA with a layout, `elalora.layouts`).
Its labels say how the update changes the features of a text, so they can be learned from real texts by a student with
enough ranks in the same matrices. The update reads directions of a matrix's inputs that the features of the unchanged
model do not determine (`unread`): neither the head alone nor ranks elsewhere can stand in for it easily. The teacher
has a random stream of its own, so no student's head starts at its.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.linalg
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

FORMAT = 2  # raise when the same settings give other labels
BATCH = 64
STEPS = 1_000  # of `even_offsets`
NOISE = 0.3  # of `unread`
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


def laid_out(loaded: Loaded, targets: list[str], teacher: TeacherConfig) -> LoRA:
    """Attaches adapters with the teacher's ranks; they change nothing yet.

    Args:
        loaded: changed in place; targets: `model.targets`, over which the pattern spreads the ranks.

    Raises:
        UserError: the pattern does not fit the model.
    """
    method = LoRA(LoRAConfig(pattern=teacher.pattern), Budget(teacher.rank))
    seed = stream(teacher.seed, "teacher")
    method.attach(loaded.network, patterns_in(loaded.network, targets), 1, keep=loaded.head, seed=seed)
    return method


def plant(method: LoRA, strength: float, inputs: Mapping[str, Tensor], features: Tensor) -> None:
    """Gives the adapters an update: of the norm of each frozen matrix, times `strength`.

    Args:
        method: of `laid_out`.
        inputs: rows (n, d_in) that each matrix with ranks reads; features: those of the unchanged model, (n, d).
    """
    for name, adapter in method.adapters.items():
        if adapter.rank:
            adapter.A.data[: adapter.rank] = unread(inputs[name], features, adapter.rank).to(adapter.A)
            draw_normal(adapter.B, adapter.rank, 1.0, method.generator)
            size = torch.linalg.matrix_norm(adapter.delta())
            adapter.B.data.mul_(strength * torch.linalg.matrix_norm(adapter.weight) / size)


def unread(inputs: Tensor, features: Tensor, rank: int) -> Tensor:
    """Directions of the inputs that the features determine least, orthonormal rows (rank, d_in) float64.

    They span the leading solutions v of L v = s (C + NOISE c I) v, with C the covariance of the inputs, c its mean
    variance, and L the covariance of what a least-squares fit on the features leaves of the inputs: s is the share of
    a direction's variance that the features do not have, and NOISE keeps directions with hardly any variance out.

    Args:
        inputs: (n, d_in); features: (n, d).
    """
    x, f = (rows.double() - rows.double().mean(0) for rows in (inputs, features))
    left = x - f @ (torch.linalg.pinv(f.T @ f, rtol=1e-8, hermitian=True) @ (f.T @ x))
    every = x.T @ x
    floor = NOISE * every.diagonal().mean() * torch.eye(len(every), dtype=every.dtype)
    found = scipy.linalg.eigh((left.T @ left).numpy(), (every + floor).numpy())[1][:, ::-1][:, :rank]
    found = found * np.sign(found[abs(found).argmax(0), range(rank)])  # a solution's sign is free, labels depend on it
    q, r = np.linalg.qr(found)
    return torch.from_numpy((q * np.sign(r.diagonal())).T)


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
    """The teacher's answers on every split: the largest of random sums of what its update changes in the features."""
    task = data.config
    loaded = load_model(model, task, stream(task.teacher.seed, "teacher"), files)
    method = laid_out(loaded, list(model.targets), task.teacher)
    processor = load_processor(model, task, files)
    items = {name: make_items(rows, processor, task, config.cache) for name, rows in data.splits.items()}
    planted = {name: adapter for name, adapter in method.adapters.items() if adapter.rank}
    head = _output_layer(loaded)
    features, *inputs = _read_by([head, *planted.values()], loaded, items["train"])
    plain = {name: features if name == "train" else _read_by([head], loaded, rows)[0] for name, rows in items.items()}
    plant(method, task.teacher.strength, dict(zip(planted, inputs, strict=True)), features)
    change = {name: _read_by([head], loaded, rows)[0] - plain[name] for name, rows in items.items()}
    mean, std = change["train"].mean(0), change["train"].std(0)
    drawn = torch.randn(len(mean), task.num_labels, generator=method.generator, dtype=torch.float64)
    logits = {name: (values - mean) / (std + 1e-12) @ drawn for name, values in change.items()}
    offsets = even_offsets(logits["train"])
    labels = {name: (values + offsets).argmax(1) for name, values in logits.items()}
    _check_even(labels, task)
    return labels


@torch.no_grad()
def _read_by(layers: list[nn.Module], loaded: Loaded, items: Any) -> list[Tensor]:
    """What each layer reads of every item, (n, d) float64: of a sequence, its first token.

    Computed on the CPU, so that every machine has the same.
    """
    seen: list[list[Tensor]] = [[] for _ in layers]

    def keep(place: int) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = inputs[0].double()
            seen[place].append(rows[:, 0] if rows.ndim == 3 else rows)

        return hook

    network = loaded.network.eval()
    handles = [layer.register_forward_pre_hook(keep(place)) for place, layer in enumerate(layers)]
    order = eval_batches(items.lengths, BATCH)
    for indices in order:
        network(**{name: value for name, value in items.batch(indices).items() if name != "labels"})
    for handle in handles:
        handle.remove()
    back = torch.tensor([i for indices in order for i in indices]).argsort()
    return [torch.cat(rows)[back] for rows in seen]


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
