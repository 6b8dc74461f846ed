"""Measures how much the adapter of each matrix contributes: `python -m experiments.contribution runs`

A finished run is rebuilt from its folder: the base model, the trained head and the exported adapter. One matrix at a
time is then reset to its frozen weight, and the increase of the mean loss on held-out data is its contribution. A model
that is surer than it is right has a lower loss without most of its adapters, so for classes the loss at the best
temperature is measured too, and for classes and real numbers the fall of the score.

All is read on the split that selects checkpoints (in a tuning run, settings) and never on the one that tables
report, so that contributions do not use up the test data. Every method's result has the same form, W0 + B A, so one
procedure serves all: a scale of 0 removes a matrix. All runs of a task are measured on the same items. Results go to
contributions.json in the run's folder; runs that have one are skipped.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from elalora.errors import UserError, first_line
from experiments.runtime.pipes import as_command
from experiments.runtime.text import clean
from experiments.store.foreign import DAMAGE, read_json, read_yaml

if TYPE_CHECKING:
    from torch import Tensor, nn

    from elalora.adapters import LowRankLinear
    from experiments.config.schema import RunConfig
    from experiments.config.task import TaskConfig

SCHEMA = 2
READABLE = (1, SCHEMA)  # 1 has the loss only
FILE = "contributions.json"
SCORED = ("classification", "image", "regression")  # kinds of tasks whose score one pass gives
BATCH = 64
ITEMS = 500  # default number of held-out items; each matrix costs one pass over them


@dataclass
class Rebuilt:
    """A finished run's model with head and adapters, in eval mode, and `items` of the `split` that it held out."""

    task: TaskConfig
    model: nn.Module
    adapters: dict[str, LowRankLinear]  # by matrix, without those of rank 0
    batches: list[tuple[float, dict[str, Tensor]]]  # (number of items or label tokens, arguments of the model)
    split: str
    items: int


class Reading(NamedTuple):
    """What a model does on the held-out items.

    Attributes:
        loss: mean over items, over label tokens for generation, without the regulariser.
        calibrated, temperature: of classes, the loss at the best temperature, and that temperature; None elsewhere.
        score: the task's first metric in points, of classes and real numbers; None elsewhere.
    """

    loss: float
    calibrated: float | None = None
    temperature: float | None = None
    score: float | None = None


def measure(folder: str | Path, items: int | None = ITEMS) -> dict[str, Any]:
    """Measures the contribution of every matrix of a finished run.

    Args:
        folder: the run's folder.
        items: maximum number of held-out items; None uses all.

    Returns:
        The content of contributions.json: schema, id, asked, split, items, loss (of the whole model) and rises (by
        matrix, the loss without its adapter minus that loss; 0 for a matrix of rank 0). Where they can be read also
        calibrated, temperature (None where the logits are of no use) and calibrated_rises, likewise, and metric, score
        and score_falls, the score less that without the adapter.

    Raises:
        UserError: the run has no result, no adapter in LoRA form, or no held-out split.
    """
    folder = Path(folder)
    result = _result(folder)
    rebuilt = rebuild(folder, items)
    whole = read(rebuilt)
    alone = dict.fromkeys(result["ranks"]["final"], whole)
    for name, adapter in rebuilt.adapters.items():
        with without(adapter):
            alone[name] = read(rebuilt)
    facts: dict[str, Any] = {"schema": SCHEMA, "id": result["id"], "asked": items, "split": rebuilt.split}
    facts |= {"items": rebuilt.items, "loss": whole.loss}
    facts["rises"] = {name: one.loss - whole.loss for name, one in alone.items()}
    if (calibrated := whole.calibrated) is not None:
        temperature = whole.temperature if whole.temperature != math.inf else None
        facts |= {"calibrated": calibrated, "temperature": temperature}
        facts["calibrated_rises"] = {name: (one.calibrated or 0.0) - calibrated for name, one in alone.items()}
    if (score := whole.score) is not None:
        facts |= {"metric": rebuilt.task.metrics[0], "score": score}
        facts["score_falls"] = {name: score - (one.score or 0.0) for name, one in alone.items()}
    return facts


@contextmanager
def without(adapter: LowRankLinear) -> Iterator[None]:
    """Disables one adapter: its layer computes W0 x + b0 within the block."""
    scale, adapter.scale = adapter.scale, 0.0
    try:
        yield
    finally:
        adapter.scale = scale


def read(rebuilt: Rebuilt) -> Reading:
    """One pass over the held-out items."""
    import torch

    from experiments.training.metrics import calibrated_loss, compute

    kind, total, count = rebuilt.task.kind, 0.0, 0.0
    outputs, labels = [], []
    with torch.inference_mode():
        for weight, batch in rebuilt.batches:
            answer = rebuilt.model(**batch)
            total += weight * answer.loss.item()
            count += weight
            if kind in SCORED:
                outputs.append(answer.logits.cpu().double())  # Apple GPUs have no float64
                labels.append(batch["labels"].cpu())
    if kind not in SCORED:
        return Reading(total / count)
    logits, true = torch.cat(outputs).numpy(), torch.cat(labels).numpy()
    answers = logits[:, 0] if kind == "regression" else logits.argmax(1)
    score = next(iter(compute(rebuilt.task.metrics[:1], true, answers)[0].values()))
    calibrated, temperature = (None, None) if kind == "regression" else calibrated_loss(logits, true)
    return Reading(total / count, calibrated, temperature, score)


def rebuild(folder: str | Path, items: int | None = None) -> Rebuilt:
    """Rebuilds the model of a finished run and loads its held-out data, from config.yaml and adapter/.

    If there are more than `items` held-out items, as many are drawn, identically for all runs of the task.

    Raises:
        UserError: a file is missing, the method has no LoRA form, or the protocol holds no data out.
    """
    import torch

    from elalora.export import read_factors
    from experiments.data import load_task
    from experiments.data.batches import eval_batches
    from experiments.data.items import make_items
    from experiments.data.protocols import apply_protocol, draw_rows
    from experiments.models.fit import fit
    from experiments.models.load import load_model, load_processor
    from experiments.models.teacher import taught
    from experiments.runtime.memory import use_cpu
    from experiments.runtime.seeds import stream

    folder = Path(folder)
    config, identity = _config(folder), _result(folder)["identity"]
    files = identity["model"].get("files")
    use_cpu(config.threads)
    task = config.task
    loaded = load_task(task, config.data, identity["task"].get("files") or None)
    if task.teacher.pattern is not None:
        loaded = taught(loaded, config.data, config.model, files)
    seed = stream(config.seed, "subset")
    splits = apply_protocol(
        loaded, config.protocol, train_items=config.data.train_items, seed=seed, eval_items=config.data.eval_items
    )
    if config.protocol.name == "tune":  # its reported split chooses settings and is in no table
        held_out, split = splits.report, splits.report_name
    elif splits.select is not None and splits.select_name not in (None, splits.report_name):
        held_out, split = splits.select, str(splits.select_name)
    else:
        raise UserError(
            f"{folder}: protocol={config.protocol.name} holds out no data of {task.name} besides the reported split; "
            "contributions need such data: use protocol=clean, on VTAB-1k protocol=tune"
        )
    model = load_model(config.model, task, stream(config.seed, "head"), files).network
    processor = load_processor(config.model, task, files)
    fit(config.model, task, model, processor)
    adapters = put_adapter(model, read_factors(folder / "adapter"), folder / "adapter" / "adapter_model.safetensors")
    if items is not None and items < len(held_out):
        held_out = held_out.select(draw_rows(held_out, task, items, "contribution"))
    data = make_items(held_out, processor, task, config.data.cache)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batches = [
        (data.weight(indices), {name: tensor.to(device) for name, tensor in data.batch(indices).items()})
        for indices in eval_batches(data.lengths, BATCH)
    ]
    return Rebuilt(task, model.to(device).eval(), adapters, batches, split, len(data))


def put_adapter(
    model: nn.Module, factors: Mapping[str, tuple[Tensor, Tensor]], weights: Path
) -> dict[str, LowRankLinear]:
    """Loads an exported adapter into a bare model, its factors as adapters of scale 1.

    Args:
        model: changed in place.
        factors: A (r, d_in) and B (d_out, r) by matrix.
        weights: adapter_model.safetensors, which also holds the modules that trained whole.

    Raises:
        UserError: the adapter does not fit the model.
    """
    import torch
    from safetensors.torch import load_file

    from elalora.adapters import LowRankLinear
    from elalora.attach import attach, find_linears
    from elalora.directions import Directions
    from elalora.export import PREFIX

    tensors = {key.removeprefix(PREFIX): tensor for key, tensor in load_file(weights).items() if ".lora_" not in key}
    try:
        unknown = model.load_state_dict(tensors, strict=False).unexpected_keys
    except RuntimeError as error:
        raise UserError(f"{weights} does not fit this model ({str(error).splitlines()[-1].strip()})") from error
    if unknown:
        raise UserError(f"{weights} holds {', '.join(unknown[:3])}, which this model lacks")

    ranks = {name: a.shape[0] for name, (a, _) in factors.items()}
    linears = find_linears(model, list(factors))
    adapters = attach(
        model,
        {name: linears[name] for name in factors},
        lambda name, linear: LowRankLinear(linear, Directions(ranks[name], ranks[name]), 1.0, singular=False),
    )
    with torch.no_grad():
        for name, (a, b) in factors.items():
            adapters[name].A.copy_(a)
            adapters[name].B.copy_(b.T)
    return adapters


def _result(folder: Path) -> dict[str, Any]:
    from experiments.store.folder import RunFolder

    run = RunFolder(folder)
    if not run.done:
        raise UserError(f"{folder} has no result.json; finish the run first")
    return run.result()


def _config(folder: Path) -> RunConfig:
    """The run's configuration, with this machine's cache; refuses one that another version wrote with other keys."""
    from experiments.config.schema import RunConfig
    from experiments.config.stored import from_store
    from experiments.config.task import check_task

    path = folder / "config.yaml"
    try:
        config = from_store(RunConfig, read_yaml(path), path)
    except DAMAGE as error:
        raise UserError(f"{path} cannot be read, so the model cannot be rebuilt ({first_line(error)})") from error
    check_task(config.task)
    config.data.cache = None
    return config


def finished(paths: Iterable[str | Path]) -> list[Path]:
    """Folders of finished runs in the given stores, task folders or run folders.

    Raises:
        UserError: a path is not a folder.
    """
    folders: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            raise UserError(f"{path} is not a folder of runs; `python run.py` makes one")
        for pattern in ("result.json", "*/result.json", "*/*/result.json"):
            folders += [file.parent for file in sorted(path.glob(pattern))]
    return list(dict.fromkeys(folders))


def measured(folder: Path, items: int | None = ITEMS) -> bool:
    """Whether contributions.json holds this run's contributions from this number of items."""
    try:
        stored, result = read_json(folder / FILE), read_json(folder / "result.json")
        return stored["schema"] == SCHEMA and (stored["id"], stored["asked"]) == (result["id"], items)
    except DAMAGE:
        return False


def measure_all(paths: Sequence[str | Path], methods: Sequence[str] = (), items: int | None = ITEMS) -> int:
    """Writes contributions.json for every finished run that lacks it.

    Args:
        paths: see `finished`.
        methods: names of the methods to measure; empty means all.
        items: see `measure`.

    Returns:
        The exit code: 0, or 2 if a run could not be measured; the others are measured all the same.
    """
    from experiments.runtime.files import write_whole
    from experiments.store.folder import dump

    folders = finished(paths)
    if not folders:
        raise UserError(f"no finished run in {', '.join(map(str, paths))}; `python run.py` makes one")
    problems = 0
    for number, folder in enumerate(folders, start=1):
        prefix = clean(f"[{number}/{len(folders)}] {folder}")
        try:
            result = _result(folder)
            if methods and result.get("method") not in methods:
                continue
            if measured(folder, items):
                print(f"{prefix}: measured before")
                continue
            if not (folder / "adapter" / "adapter_model.safetensors").is_file():
                print(f"{prefix}: skipped, its method has no adapter in LoRA form")
                continue
            contributions = measure(folder, items)
        except UserError as error:
            print(f"contribution: {error}", file=sys.stderr)
            problems += 1
            continue
        except Exception as error:  # noqa: BLE001 - a damaged run must not cost the others
            print(f"contribution: {prefix}: {clean(first_line(error))}", file=sys.stderr)
            problems += 1
            continue
        write_whole(folder / FILE, dump(contributions))
        rises = contributions["rises"]
        top = max(rises, key=lambda name: rises[name])
        print(f"{prefix}: loss {contributions['loss']:.4f}, largest rise {rises[top]:+.4f} without {clean(top)}")
    return 2 if problems else 0


def main(words: list[str] | None = None) -> int:
    """Returns the exit code: 0 for success, 2 for a user's mistake or a run that could not be measured."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.contribution",
        description="Measures what loss and score on held-out data lose without the adapter of each matrix.",
        epilog="example: python -m experiments.contribution runs --method elalora,svd_lora",
    )
    parser.add_argument("paths", nargs="*", default=["runs"], metavar="RUN_OR_STORE", help="default: runs")
    parser.add_argument("--method", default="", metavar="A,B", help="only runs of these methods")
    parser.add_argument(
        "--items", type=int, default=ITEMS, metavar="N", help="held-out items, 0 for all (default: %(default)s)"
    )
    args = parser.parse_intermixed_args(words)
    try:
        methods = [part.strip() for part in args.method.split(",") if part.strip()]
        return measure_all(args.paths, methods, args.items or None)
    except UserError as error:
        print(f"contribution: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    as_command(main)
