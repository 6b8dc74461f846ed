"""The schema of a run's configuration: Hydra checks what it composes from conf/ against these types.

This imports no heavy library, so `run.py --help` and tab completion are quick. A method's own settings are checked
against the dataclass in its file (`experiments.runs.plan`), because that file imports torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from hydra._internal.hydra import Hydra
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, StringNode, ValidationError, _utils

from elalora.resolve import added
from experiments.config.study import RecipeConfig, StudyConfig
from experiments.config.task import DataConfig, ProtocolConfig, TaskConfig

MAX_NAMED_BUDGET = 64

# Hydra refuses any other value and lists these; each member equals its plain string, also in stored files
Precision = StrEnum("Precision", "fp32 bf16")
Dtype = StrEnum("Dtype", "float32 bfloat16")
Quantization = StrEnum("Quantization", "nf4 int8")
LearningRateShape = StrEnum("LearningRateShape", "linear cosine constant")
BatchOrder = StrEnum("BatchOrder", "length random")
Launcher = StrEnum("Launcher", "basic local slurm")
TrackerName = StrEnum("TrackerName", "none wandb tensorboard trackio mlflow")
TrackingMode = StrEnum("TrackingMode", "offline online")


@dataclass
class ModelConfig:
    """A pretrained model and which of its matrices are adapted.

    Attributes:
        name: for tables and folders.
        path: "embedded" (MiniLM-L6 from its PyPI package), "digits" (pretrained here, see
            conf/model/vit_digits.yaml), "random" (drawn here, see conf/model/random_encoder.yaml), "smollm2" (from its
            PyPI package), a local folder, or a hub id.
        revision: commit of a hub id.
        sha256: expected digest of model.safetensors, checked at load; null accepts any.
        targets: a named set of the architecture's linear layers (`elalora.targets`), or name patterns
            (`elalora.attach`).
        matrices: number of layers they must match; null takes that of a named set, and any number above 0 for patterns.
        head: modules trained in full beside the adapters; null takes the architecture's.
        attention: "sdpa" or "eager"; null leaves the choice to transformers.
        dropout: of hidden states and attention; null keeps the checkpoint's.
        cls_dropout: of the classifier, in architectures that have a separate one; null takes `dropout`.
        pad_token: a token of the vocabulary; null takes the tokenizer's padding token, else its end-of-sequence token.
        dtype: of the frozen weights; what trains is float32 in any case.
        quantization: of the frozen weights of linear layers, by bitsandbytes: "nf4" or "int8"; null for none.
    """

    name: str = MISSING
    path: str = MISSING
    revision: str | None = None
    sha256: str | None = None
    targets: list[str] = field(default_factory=lambda: ["paper"])
    matrices: int | None = None
    head: list[str] | None = None
    attention: str | None = None
    dropout: float | None = None
    cls_dropout: float | None = None
    pad_token: str | None = added(None)
    dtype: Dtype = added(Dtype.float32)
    quantization: Quantization | None = added(None)


@dataclass
class BudgetConfig:
    """Either a mean rank or a cap on the adapter's parameters; see `elalora.budget`."""

    rank: int | None = None
    params: int | None = None


@dataclass
class TrainerConfig:
    """Settings of the trainer, which is the same for every method."""

    epochs: float = 3  # passes over the training items; ignored if max_steps is set
    max_steps: int | None = None  # optimizer steps
    batch_size: int = 32  # items per optimizer step, over all processes
    batches: BatchOrder = added(BatchOrder.length)  # items of similar length (less padding), or items drawn at random
    micro_batch: int | None = None  # maximum items per forward pass; null takes the whole batch at once
    lr: float = 1e-3  # peak learning rate
    weight_decay: float = 0.0  # decoupled; not on biases and norms
    warmup: float = 0.06  # fraction of the run (0..1) or a number of steps
    schedule: LearningRateShape = LearningRateShape.linear  # linear, cosine or constant
    max_grad_norm: float | None = 1.0  # clipping; null for none
    precision: Precision = Precision.fp32  # fp32 or bf16 (autocast; weights stay as they are)
    gradient_checkpointing: bool = added(False)  # layers run again in the backward pass, which keeps less in memory
    evaluations: int = 0  # on the selection split, evenly over the run; 0 evaluates at the end only
    log_every: int = 10  # steps between two training losses in metrics.jsonl


@dataclass
class StoreConfig:
    """Where runs are stored; not part of a run's identity."""

    root: str = "runs"  # folder of runs
    also: list[str] = field(default_factory=list)  # other stores; their finished runs count as done
    checkpoint_every: int = 200  # optimizer steps between two checkpoints; 0 writes none
    keep_checkpoint: bool = False  # whether a finished run keeps its last checkpoint


@dataclass
class LauncherConfig:
    """How runs are started; not part of a run's identity.

    Attributes:
        kind: set by hydra/launcher=NAME: "basic" (one after the other, in this process), "local" or "slurm".
        workers: runs at a time, each in a process: of hydra/launcher=local, or in one job of hydra/launcher=slurm.
        runs_per_job: number of runs in one SLURM job.
        partition, account, qos, constraint, gres, gpus, cpus, mem_gb: resources of a job; null takes the cluster's
            default.
        minutes: time limit of a job. A job that reaches it is requeued and resumes, so it may be shorter than its runs.
        parallel: maximum number of jobs of an array that run at a time.
        signal_seconds: how long before the limit SLURM signals a job to stop.
        max_requeues: how often a job may be requeued.
        resubmit_cancelled: whether runs whose SLURM job was cancelled are submitted again.
        wait: whether the command waits until all submitted jobs have ended.
    """

    kind: Launcher = Launcher.basic
    workers: int = 1
    runs_per_job: int = 1
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gres: str | None = None
    gpus: int | None = None
    cpus: int | None = None
    mem_gb: float | None = None
    minutes: int = 240
    parallel: int = 256
    signal_seconds: int = 120
    max_requeues: int = 50
    resubmit_cancelled: bool = False
    wait: bool = False


@dataclass
class TrackingConfig:
    """A mirror of the run store; not part of a run's identity.

    Attributes:
        name: none, wandb, tensorboard, trackio or mlflow.
        project: of W&B or Trackio, and MLflow's experiment.
        mode: of W&B; offline keeps the mirror in the run's folder (upload it with `wandb sync`), online sends it.
    """

    name: TrackerName = TrackerName.none
    project: str = "elalora"
    mode: TrackingMode = TrackingMode.offline


@dataclass
class RunConfig:
    """One run.

    Attributes:
        seed: of everything random; arms with the same seed share data order, subset and head.
        init_from: a finished run of the same method, model and budget whose update this run starts from: the overrides
            that turn this command into that run's ("task=mnli"), its folder, or its id.
        forgetting: general text on which a causal model is scored before and after training: a text file with a blank
            line between texts, or a task; null scores none.
        threads: of torch; null leaves the choice to it.
        recipe, overrides, study: where the settings come from, the words of the command, and the study of +study=NAME;
            not part of a run's identity.
    """

    method: dict[str, Any] = MISSING
    task: TaskConfig = MISSING
    model: ModelConfig = MISSING
    budget: BudgetConfig = MISSING
    protocol: ProtocolConfig = MISSING
    trainer: TrainerConfig = MISSING
    data: DataConfig = field(default_factory=DataConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    launcher: LauncherConfig = field(default_factory=LauncherConfig)
    seed: int = 0
    init_from: str | None = None
    forgetting: str | None = None
    threads: int | None = None
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    overrides: list[str] | None = None
    study: StudyConfig | None = None


def register() -> None:
    """Registers the schema and the budgets r1 .. r64, and disables Hydra's slow group listing."""
    store = ConfigStore.instance()
    store.store(name="schema", node=RunConfig)
    for rank in range(1, MAX_NAMED_BUDGET + 1):
        store.store(group="budget", name=f"r{rank}", node=BudgetConfig(rank=rank))
    # --help would read every folder of conf/recipe, for a list that our help does not show
    Hydra.format_config_groups = lambda *args, **kwargs: ""  # type: ignore[method-assign]
    StringNode._validate_and_convert_impl = _text
    _utils.get_yaml_loader = _yaml_loader


_convert, _make_loader = StringNode._validate_and_convert_impl, _utils.get_yaml_loader


def _text(node: StringNode, value: Any) -> str:
    """OmegaConf's conversion to a text, less the values whose spelling is lost: `no` as False, `1234e567` as inf."""
    if isinstance(value, bool | float):
        raise ValidationError(f"'{value}' of type '{type(value).__name__}' is not a text")
    return _convert(node, value)


def _yaml_loader() -> Any:
    """OmegaConf's loader without the texts that YAML 1.1 takes for others: no, yes, on, off, 012, 1:30."""
    loader = _make_loader()
    rules = {"bool": r"true|True|TRUE|false|False|FALSE", "int": r"[-+]?(0|[1-9][0-9_]*)"}
    for rule, pattern in rules.items():
        tag = f"tag:yaml.org,2002:{rule}"
        loader.yaml_implicit_resolvers = {
            first: [(name, re.compile(f"({pattern})$") if name == tag else regexp) for name, regexp in resolvers]
            for first, resolvers in loader.yaml_implicit_resolvers.items()
        }
    return loader
