"""Small runs over a sequence of increments: a tiny random encoder on random tokens of six classes."""

from __future__ import annotations

import torch
from encoders import TARGETS

from baselines.registry import method_class
from elalora import Budget
from experiments.config.schema import TrainerConfig
from experiments.config.task import TaskConfig
from experiments.data.increments import Increments, equal_steps, increments_of
from experiments.data.text_items import Padding, Ragged, TextItems
from experiments.runtime.signals import Preempted
from experiments.store.folder import RunFolder
from experiments.training.progress import Prepared, Split, Splits
from experiments.training.readout import make_readout
from experiments.training.recorder import Recorder
from experiments.training.resume import Checkpoints
from experiments.training.trainer import Trainer

CLASSES, STEPS = 6, 24


def encoder(classes=CLASSES):
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        num_labels=classes, problem_type="single_label_classification",
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BertForSequenceClassification(config).double()


def items(seed, count=90):
    """Tokens of which those of the class's own range are frequent."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    lengths = torch.randint(4, 9, (count,), generator=g)
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    owner = labels.repeat_interleave(lengths)
    tokens = (1 + owner * 8 + torch.randint(0, 8, owner.shape, generator=g)).int()
    padding = Padding(token=0, token_type=0, side="right")
    return TextItems(Ragged(tokens, offsets), torch.arange(count), labels, 0, 0, cached=False, padding=padding)


def task(increments=3, **more):
    return TaskConfig(
        name="tokens", source="vader", subset="movies", num_labels=CLASSES, metrics=["accuracy"],
        increments=increments, **more,
    )  # fmt: skip


def sequence(seed=0, increments=3, steps=STEPS, **more):
    """The increments of a run; None without any."""
    if increments is None:
        return None
    train, report = items(0).labels.tolist(), items(2).labels.tolist()
    return increments_of(task(increments, **more), train, report, seed, equal_steps(steps))


class StopAt:
    """A signal that arrives when this many steps are done; never with None."""

    def __init__(self, at):
        self.at, self.trainer = at, None

    @property
    def signal(self):
        reached = self.at is not None and self.trainer is not None and self.trainer.state.step >= self.at
        return "SIGTERM" if reached else None


class Silent:
    def __getattr__(self, name):
        return lambda *words, **more: None


def trainer(folder: RunFolder, name: str, increments: Increments | None, stop=None, seed=0, knobs=None, rank=3):
    """A trainer, ready to resume; the folder must be held."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    cls = method_class(name)
    method = cls(cls.Config(**(knobs or {})), Budget(rank) if cls.capabilities.budget != "none" else None)
    if increments is not None:
        method.increments = len(increments.parts)
    model = method.attach(encoder(), TARGETS, STEPS, keep=["bert.pooler", "classifier"], seed=seed)
    config = TrainerConfig(max_steps=STEPS, batch_size=8, lr=5e-3, log_every=1)
    splits = Splits(*(Split(n, items(s)) for s, n in enumerate(("train", "validation", "test"))))
    readout = make_readout(task(None), None, model)
    prepared = Prepared(Accelerator(cpu=True), None, splits, readout, model, method, increments=increments)
    stop = StopAt(stop)
    made = Trainer(prepared, config, seed, Recorder(folder, Silent(), Silent()), Checkpoints(folder), stop)
    stop.trainer = made
    return made


def weights(made):
    return {n: p.detach().clone() for n, p in made.state.model.named_parameters() if p.requires_grad}


def train(path, name, increments, stop=None, **more):
    """Trains to the end, in two attempts if it is stopped; returns the trainer and the lines of metrics.jsonl."""
    folder = RunFolder(path)
    with folder.working():
        for at in [stop, None] if stop is not None else [None]:
            made = trainer(folder, name, increments, at, **more)
            try:
                made.resume()
                made.run()
                made.evaluator.read_last()
            except Preempted:
                assert at is not None
        return made, folder.lines("metrics.jsonl")


def accuracies(lines):
    """Accuracy by step and split."""
    return {(line["step"], line["split"]): line["value"] for line in lines if line["metric"] == "accuracy"}
