"""From a model's outputs to predictions and scores: one readout for each kind of task.

The trainer evaluates every kind by the same two calls, `read` for a batch and `score` for all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from experiments.config.task import RULES_PARSER, TaskConfig
from experiments.data.items import Items
from experiments.training import metrics
from experiments.training.causal_readout import CAUSAL
from experiments.training.followed import Followed
from experiments.training.rows import NotFinite, Row, check_finite, rows_of

__all__ = ["Classes", "NotFinite", "Readout", "Row", "Summaries", "Values", "make_readout"]


class Readout(Protocol):
    """How one kind of task is read.

    Attributes:
        metrics: names, the primary one first.
        columns: names and Arrow types of what a row holds after its idx.
        zero_shot: whether a model answers before it is trained, so that its score then says something.
    """

    metrics: list[str]
    columns: ClassVar[dict[str, str]]
    zero_shot: ClassVar[bool]

    def read(self, model: nn.Module, items: Any, indices: Sequence[int], batch: dict[str, Tensor]) -> list[Row]:
        """Rows of one batch; the model is in evaluation mode and no gradient is kept."""
        ...

    def score(self, rows: Sequence[Row]) -> tuple[dict[str, float], bool]:
        """Every metric in points or in its own unit, and whether all items got the same answer."""
        ...

    def constant(self, rows: Sequence[Row]) -> dict[str, float]:
        """Metrics of the best constant answer, taken from these rows' labels; empty where there is none."""
        ...

    def guessing(self, items: Any) -> float | None:
        """Training loss of the best constant answer; None where there is none."""
        ...


def make_readout(task: TaskConfig, processor: Any, bare: nn.Module) -> Readout:
    """The readout of a task.

    Args:
        task: its kind, metrics and generation settings.
        processor: the tokenizer, for summaries and causal tasks.
        bare: the model itself, which generates.
    """
    if task.kind == "causal":
        reading = Followed if task.answer == "generate" and task.parser == RULES_PARSER else CAUSAL[task.answer]
        return reading(task, processor, bare)
    if task.kind == "summarization":
        return Summaries(task, processor, bare)
    return Values(task) if task.kind == "regression" else Classes(task)


class Classes:
    """Classification of texts or images: the label with the largest logit; the score is its margin to the next."""

    columns: ClassVar[dict[str, str]] = {"label": "int64", "prediction": "int64", "score": "double"}
    zero_shot: ClassVar[bool] = False
    baseline: ClassVar[str] = "classification"

    among: Tensor | None = None  # the classes that may be predicted; None for all

    def __init__(self, task: TaskConfig) -> None:
        self.metrics = list(task.metrics)

    def among_classes(self, classes: Sequence[int] | None) -> Classes:
        """This readout, which predicts one of these classes; None allows all."""
        other = copy(self)
        other.among = None if classes is None else torch.tensor(classes)
        return other

    def read(self, model: nn.Module, items: Items, indices: Sequence[int], batch: dict[str, Tensor]) -> list[Row]:
        """label and prediction are class numbers."""
        labels, logits = _logits(model, batch)
        if self.among is not None:
            logits = logits[:, self.among]
        top = logits.topk(min(2, logits.shape[1]), dim=1)
        margin = top.values[:, 0] - top.values[:, -1]
        predicted = top.indices[:, 0] if self.among is None else self.among[top.indices[:, 0]]
        return rows_of(items, indices, labels.long(), predicted, margin)

    def score(self, rows: Sequence[Row]) -> tuple[dict[str, float], bool]:
        """See `experiments.training.metrics.compute`."""
        return metrics.compute(self.metrics, [row[1] for row in rows], [row[2] for row in rows])

    def constant(self, rows: Sequence[Row]) -> dict[str, float]:
        """The commonest class, or the mean of real labels."""
        return metrics.majority_baseline(self.baseline, self.metrics, [row[1] for row in rows])

    def guessing(self, items: Items) -> float | None:
        """Entropy of the labels, or their variance."""
        return metrics.guessing_loss(items.labels.numpy())


class Values(Classes):
    """Regression: the one output is prediction and score."""

    columns: ClassVar[dict[str, str]] = {"label": "double", "prediction": "double", "score": "double"}
    baseline: ClassVar[str] = "regression"

    def read(self, model: nn.Module, items: Items, indices: Sequence[int], batch: dict[str, Tensor]) -> list[Row]:
        """label and prediction are real numbers."""
        labels, logits = _logits(model, batch)
        return rows_of(items, indices, labels.double(), logits[:, 0], logits[:, 0])


class Summaries:
    """Summaries by beam search with a key-value cache; the score of an item is its primary metric in points.

    The model's generation settings are the task's, as `experiments.models.fit` sets them.
    """

    columns: ClassVar[dict[str, str]] = {"label": "list<string>", "prediction": "string", "score": "double"}
    zero_shot: ClassVar[bool] = False

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
        return rows_of(items, indices, references, texts, scores.tolist())

    def score(self, rows: Sequence[Row]) -> tuple[dict[str, float], bool]:
        """Mean over items of every ROUGE asked for."""
        texts = [row[2] for row in rows]
        found = metrics.rouge([row[1] for row in rows], texts, self.metrics)
        return {name: 100 * float(found[name].mean()) for name in self.metrics}, len(set(texts)) == 1

    def constant(self, rows: Sequence[Row]) -> dict[str, float]:
        """None."""
        return {}

    def guessing(self, items: Any) -> float | None:
        """None."""
        return None


def _logits(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """labels (b,) and logits (b, labels) in float64 on the CPU; raises NotFinite."""
    labels = batch["labels"].cpu()
    # first to the CPU: Apple's GPUs have no float64
    logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits.cpu().double()
    check_finite(logits)
    return labels, logits
