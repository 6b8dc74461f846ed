"""What a task, its data and its evaluation protocol are made of, as typed configuration.

Plain dataclasses that Hydra turns into structured configs: a wrong key or type fails while the
command line is read. Nothing heavy is imported here, because every start of `run.py` reads it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

KNOWN_METRICS = ("accuracy", "f1", "mcc", "pearson", "spearman", "rouge1", "rouge2", "rougeL", "rougeLsum")


@dataclass
class TaskConfig:
    """One task: which texts, which label, which metrics. conf/task/ holds one file per task.

    Attributes:
        name: the task's name on the command line and in every table.
        source: "vader" or "glue": the loader that knows where the data come from.
        subset: the part of the source, such as "movies" or "cola".
        suite: "glue", "summarization", "vtab", "vader" or "own": the benchmark, which decides its paper protocols.
        kind: "classification" (integer labels), "regression" (one real number), "summarization" (a text) or "image"
            (integer labels of images).
        num_labels: outputs of the head; 1 for regression.
        text: names of the one or two text columns.
        metrics: names of experiments.metrics, the primary one first.
        max_length: longest sequence in tokens; longer ones are cut, and the cuts are counted.
        target_length: likewise of a summary that is trained on.
        generate_length: most tokens that are generated.
        beams: of the beam search.
        citation: who to cite in docs and tables.
        fingerprint: expected sha256 of the content, part of a run's identity and checked at load;
            null accepts any content that has the right counts.
        hub_id: data set on the hub, for sources that have one.
        hub_name: its configuration on the hub.
        hub_revision: the pinned commit on the hub.
    """

    name: str = MISSING
    source: str = MISSING
    subset: str = MISSING
    suite: str = "own"
    kind: str = "classification"
    num_labels: int = 2
    text: list[str] = field(default_factory=lambda: ["text"])
    metrics: list[str] = field(default_factory=lambda: ["accuracy"])
    max_length: int = 128
    target_length: int = 64
    generate_length: int = 62
    beams: int = 4
    citation: str = ""
    fingerprint: str | None = None
    hub_id: str | None = None
    hub_name: str | None = None
    hub_revision: str | None = None


@dataclass
class DataConfig:
    """Where data are found on this machine, and how much of the training split is used.

    Attributes:
        root: local folder that is looked at first (glue/<task>/*.parquet, or the VADER archive).
        cache: folder for fetched and tokenised data; null means $ELALORA_CACHE, else
            ~/.cache/elalora.
        train_items: size of a training subset, drawn by the run's seed; null uses all of it.
    """

    root: str | None = None
    cache: str | None = None
    train_items: int | None = None


@dataclass
class ProtocolConfig:
    """Which data choose a checkpoint and which are reported (see experiments.protocols).

    Attributes:
        name: "clean", "paper_last", "paper_best", or "tune" for runs that only choose settings.
        split_seed: draws the held-out part of train under "clean"; the same for all run seeds.
    """

    name: str = "clean"
    split_seed: int = 0
