"""From a model's outputs to predictions and scores: one readout for each kind of task.

The trainer evaluates every kind by the same two calls, `read` for a batch and `score` for all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from experiments.config.task import TaskConfig
from experiments.data.items import Items
from experiments.training import metrics

Row = tuple[int, Any, Any, float]  # idx, label, prediction, score


class NotFinite(RuntimeError):
    """A loss, gradient or output that is NaN or infinite."""

    failure = "nan"


class Readout(Protocol):
    """How one kind of task is read.

    Attributes:
        metrics: names, the primary one first.
    """

    metrics: list[str]

    def read(self, model: nn.Module, items: Items, indices: Sequence[int], batch: dict[str, Tensor]) -> list[Row]:
        """Rows of one batch; the model is in evaluation mode and no gradient is kept."""
        ...

    def score(self, rows: Sequence[Row]) -> tuple[dict[str, float], bool]:
        """Every metric in points, and whether all items got the same answer."""
        ...


def make_readout(task: TaskConfig, processor: Any, bare: nn.Module) -> Readout:
    """The readout of a task.

    Args:
        task: its kind, metrics and generation settings.
        processor: the tokenizer, for summaries.
        bare: the model itself, which generates.
    """
    if task.kind == "summarization":
        return Summaries(task, processor, bare)
    return Values(task) if task.kind == "regression" else Classes(task)


class Classes:
    """Classification of texts or images: the label with the largest logit; the score is its margin to the next."""

    def __init__(self, task: TaskConfig) -> None:
        self.metrics = list(task.metrics)

    def read(self, model: nn.Module, items: Items, indices: Sequence[int], batch: dict[str, Tensor]) -> list[Row]:
        """label and prediction are class numbers."""
        labels, logits = _logits(model, batch)
        top = logits.topk(min(2, logits.shape[1]), dim=1)
        margin = top.values[:, 0] - top.values[:, -1]
        return _rows(items, indices, labels.long(), top.indices[:, 0], margin)

    def score(self, rows: Sequence[Row]) -> tuple[dict[str, float], bool]:
        """See `experiments.training.metrics.compute`."""
        return metrics.compute(self.metrics, [row[1] for row in rows], [row[2] for row in rows])


class Values(Classes):
    """Regression: the one output is prediction and score."""

    def read(self, model: nn.Module, items: Items, indices: Sequence[int], batch: dict[str, Tensor]) -> list[Row]:
        """label and prediction are real numbers."""
        labels, logits = _logits(model, batch)
        return _rows(items, indices, labels.double(), logits[:, 0], logits[:, 0])


class Summaries:
    """Summaries by beam search with a key-value cache; the score of an item is its primary metric in points.

    The model's generation settings are the task's, as `experiments.models.fit` sets them.
    """

    def __init__(self, task: TaskConfig, tokenizer: Any, bare: nn.Module) -> None:
        self.metrics = list(task.metrics)
        self.task, self.tokenizer = task, tokenizer
        self.generate: Any = bare.generate

    def read(self, model: nn.Module, items: Any, indices: Sequence[int], batch: dict[str, Tensor]) -> list[Row]:
        """label is the list of references, prediction the generated text."""
        generated = self.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        texts = [t.strip() for t in self.tokenizer.batch_decode(generated, skip_special_tokens=True)]
        references = [items.references[i] for i in indices]
        scores = 100 * metrics.rouge(references, texts, self.metrics[:1])[self.metrics[0]]
        numbers = items.idx[torch.as_tensor(indices)].tolist()
        return list(zip(numbers, references, texts, scores.tolist(), strict=True))

    def score(self, rows: Sequence[Row]) -> tuple[dict[str, float], bool]:
        """Mean over items of every ROUGE asked for."""
        texts = [row[2] for row in rows]
        found = metrics.rouge([row[1] for row in rows], texts, self.metrics)
        return {name: 100 * float(found[name].mean()) for name in self.metrics}, len(set(texts)) == 1


def _logits(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """labels (b,) and logits (b, labels) in float64 on the CPU; raises NotFinite."""
    labels = batch["labels"].cpu()
    # first to the CPU: Apple's GPUs have no float64
    logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits.cpu().double()
    if not torch.isfinite(logits).all():
        raise NotFinite("an output is not finite; lower trainer.lr")
    return labels, logits


def _rows(items: Items, indices: Sequence[int], *columns: Tensor) -> list[Row]:
    numbers = items.idx[torch.as_tensor(indices)].tolist()
    return list(zip(numbers, *(column.tolist() for column in columns), strict=True))
