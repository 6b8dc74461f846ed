"""The schema of a task, its data and its evaluation protocol, and the check of a task's settings against each other.

Hydra checks a command against these dataclasses. Every start of `run.py` imports this, so it imports nothing heavy.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from enum import StrEnum

from omegaconf import MISSING

from elalora.errors import UserError
from elalora.resolve import added

METRICS = {
    "classification": ("accuracy", "f1", "mcc"),
    "regression": ("pearson", "spearman"),
    "summarization": (
        "rouge1",
        "rouge2",
        "rougeL",
        "rougeLsum",
        "rouge1_unicode",
        "rouge2_unicode",
        "rougeL_unicode",
        "rougeLsum_unicode",
    ),  # fmt: skip
    "image": ("accuracy", "f1", "mcc"),
}
KNOWN_METRICS = tuple(dict.fromkeys(name for names in METRICS.values() for name in names))

# Hydra refuses any other value and lists these; each member equals its plain string, also in stored files
Kind = StrEnum("Kind", "classification regression summarization image")
Suite = StrEnum("Suite", "glue summarization vtab vader own")
Group = StrEnum("Group", "natural specialized structured")
Normalise = StrEnum("Normalise", "checkpoint imagenet")
Protocol = StrEnum("Protocol", "clean paper_last paper_best tune")


@dataclass
class TeacherConfig:
    """A teacher whose answers replace the task's labels (`experiments.models.teacher`).

    Attributes:
        pattern: rule that says where its update has its ranks (`elalora.layouts`); so `method.pattern` of the same rule
            is the layout that the task was made for. Null: no teacher.
        rank: mean rank of its update over all matrices of `model.targets`, as `budget=rN` counts.
        strength: norm of the update of a matrix, relative to that of the frozen weight.
        seed: of the update and the output layer.
    """

    pattern: str | None = None
    rank: int = 1
    strength: float = 1.0
    seed: int = 0


@dataclass
class TaskConfig:
    """One task: its inputs, label and metrics. conf/task/ holds one file per task.

    Attributes:
        name: the task's name on the command line and in every table.
        source: the loader: "glue", "summarization", "vtab", "vader", "digits" or "files".
        subset: the part of the source, such as "movies" or "cola"; for folders its name below data.root.
        suite: "glue", "summarization", "vtab", "vader" or "own": the benchmark; the protocols depend on it.
        group: "natural", "specialized" or "structured" in VTAB-1k, for means by group.
        kind: "classification" (integer labels), "regression" (one real number), "summarization" (a text) or "image"
            (integer labels of images).
        num_labels: outputs of the head; 1 for regression and summarization.
        text: names of the input columns: one or two texts, one document, or one image.
        label: name of the label's column in the user's own files.
        labels: the classes' names in the order of their ids; null takes the names in the data, sorted (own files).
        files: split -> path, for source "files": train, and validation or test or both. Relative paths start in
            data.root, or in the current folder if data.root is null. A pattern or a folder names several tables.
        sep: between the columns of CSV and TSV files: one character, or "tab"; null takes that of the suffix.
        drop_unlabelled: whether rows of own files without a label are dropped instead of refused.
        metrics: names of experiments.training.metrics, the primary one first.
        max_length, target_length: maximum tokens of an input, and of a summary that is trained on; longer ones are cut,
            and the cuts are counted.
        generate_length, beams: maximum number of generated tokens, and width of the beam search.
        min_generate_length, length_penalty: minimum number of generated tokens, and exponent of the length by which a
            beam's score is divided; null takes 0 and 1, and refuses a checkpoint that was made for other values.
        no_repeat_ngram: no sequence of that many tokens is generated twice; 0 allows all. BART's checkpoints have 3.
        early_stopping: whether the search ends with as many finished summaries as beams, as BART's checkpoints do.
        normalise: of images: "checkpoint" takes mean and deviation from the model's image processor, "imagenet" those
            of ImageNet, as ElaLoRA's code does.
        citation: what to cite in docs and tables.
        verify: whether counts, labels and content are compared with the official ones; false for subsets and stand-ins,
            and every result then says so.
        fingerprint: expected sha256 of the content, part of a run's identity and checked at load; null accepts any
            content with the right counts.
        hub_id, hub_name, hub_revision: data set on the hub, its configuration and the pinned commit.
        quick_items: training items under trainer=quick, or all if there are fewer; null takes all.
        teacher: labels the texts in place of the task's own labels, if it has a pattern.
    """

    name: str = MISSING
    source: str = MISSING
    subset: str = MISSING
    suite: Suite = Suite.own
    group: Group | None = None
    kind: Kind = Kind.classification
    num_labels: int = 2
    text: list[str] = field(default_factory=lambda: ["text"])
    label: str = "label"
    labels: list[str] | None = None
    files: dict[str, str | None] = field(default_factory=dict)
    sep: str | None = added(None)
    drop_unlabelled: bool = added(False)
    metrics: list[str] = field(default_factory=lambda: ["accuracy"])
    max_length: int = 128
    target_length: int = 64
    generate_length: int = 62
    beams: int = 4
    min_generate_length: int | None = added(None)
    length_penalty: float | None = added(None)
    no_repeat_ngram: int = added(3)
    early_stopping: bool = added(True)
    normalise: Normalise = Normalise.checkpoint
    citation: str = ""
    verify: bool = True
    fingerprint: str | None = None
    hub_id: str | None = None
    hub_name: str | None = None
    hub_revision: str | None = None
    quick_items: int | None = None
    teacher: TeacherConfig = added(TeacherConfig)


def check_task(task: TaskConfig) -> None:
    """Refuses a task with settings that contradict each other, before anything is loaded.

    Raises:
        UserError: names the setting, what is allowed, and what to type.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", task.name):
        raise UserError(f"task.name={task.name} becomes a folder name; allowed: at most 100 letters, digits, _ and -")
    for name in ("max_length", "target_length", "generate_length", "beams"):
        if getattr(task, name) < 1:
            raise UserError(f"task.{name}={getattr(task, name)} must be at least 1")
    if not 0 <= (task.min_generate_length or 0) <= task.generate_length:
        raise UserError(
            f"task.min_generate_length={task.min_generate_length} must lie between 0 and task.generate_length="
            f"{task.generate_length}"
        )
    if task.no_repeat_ngram < 0:
        raise UserError(f"task.no_repeat_ngram={task.no_repeat_ngram} must be at least 0; 0 allows repetitions")
    if task.length_penalty is not None and not math.isfinite(task.length_penalty):
        raise UserError(f"task.length_penalty={task.length_penalty} must be finite; 1 divides by the length")
    classes = task.kind in ("classification", "image")
    if classes and task.num_labels < 2 or not classes and task.num_labels != 1:
        needed = "at least 2" if classes else "1"
        raise UserError(f"task.num_labels={task.num_labels}, but kind {task.kind} needs {needed}")
    max_columns = 2 if task.kind in ("classification", "regression") else 1
    if not 1 <= len(task.text) <= max_columns:
        columns = "one or two input columns" if max_columns == 2 else "one input column"
        raise UserError(f"task.text={list(task.text)}: kind {task.kind} takes {columns}")
    if task.labels is not None and (len(task.labels) != task.num_labels or len(set(task.labels)) != len(task.labels)):
        raise UserError(f"task.labels has {len(set(task.labels))} different names; task.num_labels={task.num_labels}")
    _check_metrics(task)
    if unknown := [name for name in task.files if name not in ("train", "validation", "test")]:
        raise UserError(f"task.files.{unknown[0]} is not a split; allowed: train, validation, test")
    if task.sep is not None and task.sep != "tab" and (len(task.sep) != 1 or task.sep in '"\r\n'):
        raise UserError(f"task.sep={task.sep} is not one character; allowed: tab, or a character such as ; or |")
    if task.drop_unlabelled and task.source != "files":
        raise UserError(f"task.drop_unlabelled=true is for own files (task=own), not for task={task.name}")
    if task.teacher != TeacherConfig():
        _check_teacher(task, task.teacher)


def _check_teacher(task: TaskConfig, teacher: TeacherConfig) -> None:
    from elalora.layouts import read_rule  # imports torch

    if teacher.pattern is None:
        raise UserError("task.teacher needs task.teacher.pattern, such as 'layer1:1 rest:0', or none of its settings")
    read_rule(teacher.pattern, "task.teacher.pattern")
    if task.kind != "classification":
        raise UserError(f"task.teacher labels texts with classes; task={task.name} has kind {task.kind}")
    if teacher.rank < 1:
        raise UserError(f"task.teacher.rank={teacher.rank} must be at least 1")
    if not 0 < teacher.strength < math.inf:
        raise UserError(f"task.teacher.strength={teacher.strength} must be above 0 and finite")
    if not 0 <= teacher.seed < 2**63:
        raise UserError(f"task.teacher.seed={teacher.seed} must be at least 0 and below 2^63")


def _check_metrics(task: TaskConfig) -> None:
    if not task.metrics:
        raise UserError(f"task.metrics is empty; kind {task.kind} has {', '.join(METRICS[task.kind])}")
    for name in task.metrics:
        if name not in KNOWN_METRICS:
            raise UserError(f"task.metrics: {name} is unknown; allowed: {', '.join(KNOWN_METRICS)}")
        if name not in METRICS[task.kind]:
            raise UserError(f"task.metrics: kind {task.kind} has no {name}; allowed: {', '.join(METRICS[task.kind])}")
        if name == "f1" and task.num_labels != 2:
            raise UserError(f"task.metrics: f1 needs two classes; task.num_labels={task.num_labels}")


@dataclass
class DataConfig:
    """Where data are on this machine, and how much of the training split is used."""

    root: str | None = None  # local data folder, read first; docs/benchmarks.md describes its layout
    cache: str | None = None  # folder for fetched and tokenised data; null takes $ELALORA_CACHE, else ~/.cache/elalora
    train_items: int | None = None  # size of a training subset, drawn by the run's seed; null uses the whole split


@dataclass
class ProtocolConfig:
    """Which data select a checkpoint and which are reported (see experiments.data.protocols)."""

    name: Protocol = Protocol.clean  # "clean", "paper_last", "paper_best", or "tune" for tuning runs
    split_seed: int = 0  # draws the held-out part of train under "clean"; the same for all run seeds
