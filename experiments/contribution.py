"""How much does each matrix's adapter carry? `python -m experiments.contribution runs`

A finished run is rebuilt from its folder: the base model, the trained head and the adapter as it was exported. Then one
matrix at a time is set back to its frozen weight, and the rise of the mean loss on held-out data is its contribution.

What is unusual: the loss is read on the split that selects checkpoints (in a tuning run, settings) and never on the one
that tables report, so a look at contributions spends nothing of the test. Because every method's result has the same
form, W0 + B A, one procedure serves all of them, and a matrix is taken out by a scale of 0, which is the same as
factors of 0. The items are the same for every run of a task. Answers go to contributions.json in the run's folder; a
run that has one is skipped.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elalora.errors import UserError
from experiments.runtime.pipes import as_command

if TYPE_CHECKING:
    from torch import Tensor, nn

    from elalora.adapters import LowRankLinear

SCHEMA = 1
FILE = "contributions.json"
BATCH = 64
ITEMS = 500  # held-out items by default: a matrix costs one pass over them


@dataclass
class Rebuilt:
    """A finished run's model in eval mode, and the data it never trained on.

    Attributes:
        model: the classifier with trained head and adapters.
        adapters: those of rank 1 and more, by matrix.
        batches: (items or label tokens, keyword arguments of the model) over the whole split, in a fixed order.
        split: name of the split.
        items: how many.
    """

    model: nn.Module
    adapters: dict[str, LowRankLinear]
    batches: list[tuple[float, dict[str, Tensor]]]
    split: str
    items: int


def measure(folder: str | Path, items: int | None = ITEMS) -> dict[str, Any]:
    """The contribution of every matrix of a finished run, as it is written to contributions.json.

    Args:
        folder: of the run.
        items: how many held-out items at most; None takes all.

    Returns:
        schema, id, asked, split, items, loss (of the whole model) and rises: by matrix, the loss without its adapter
        less that loss. A matrix of rank 0 has a rise of 0.

    Raises:
        UserError: the run has no result, no LoRA form, or no held-out split.
    """
    folder = Path(folder)
    result = _result(folder)
    rebuilt = rebuild(folder, items)
    loss = mean_loss(rebuilt)
    rises = {}
    for name in result["ranks"]["final"]:
        if name not in rebuilt.adapters:
            rises[name] = 0.0
            continue
        with without(rebuilt.adapters[name]):
            rises[name] = mean_loss(rebuilt) - loss
    return {
        "schema": SCHEMA,
        "id": result["id"],
        "asked": items,
        "split": rebuilt.split,
        "items": rebuilt.items,
        "loss": loss,
        "rises": rises,
    }


@contextmanager
def without(adapter: LowRankLinear) -> Iterator[None]:
    """Takes one adapter out: its layer computes W0 x + b0 inside."""
    scale, adapter.scale = adapter.scale, 0.0
    try:
        yield
    finally:
        adapter.scale = scale


def mean_loss(rebuilt: Rebuilt) -> float:
    """Mean loss over the held-out items (over label tokens where a model writes text), without the regulariser."""
    import torch

    total = count = 0.0
    with torch.inference_mode():
        for weight, batch in rebuilt.batches:
            total += weight * rebuilt.model(**batch).loss.double().item()
            count += weight
    return total / count


# -- a finished run again ----------------------------------------------------------------------------------


def rebuild(folder: str | Path, items: int | None = None) -> Rebuilt:
    """The model of a finished run and its held-out data, from config.yaml and adapter/.

    Args:
        folder: of the run.
        items: held-out items at most, drawn alike for all runs of the task; None takes all.

    Raises:
        UserError: a file is missing, the method has no LoRA form, or the protocol holds nothing out.
    """
    import torch
    from omegaconf import OmegaConf

    from elalora.export import read_factors
    from experiments.data import load_task
    from experiments.data.batches import eval_batches
    from experiments.data.items import make_items
    from experiments.data.protocols import apply_protocol
    from experiments.models.load import load_model, load_processor
    from experiments.runtime.memory import use_cpu
    from experiments.runtime.seeds import stream

    folder = Path(folder)
    config = _config(folder)
    use_cpu(config.threads)
    task = OmegaConf.to_object(config.task)
    splits = apply_protocol(
        load_task(task, OmegaConf.to_object(config.data)),
        OmegaConf.to_object(config.protocol),
        train_items=config.data.train_items,
        seed=stream(config.seed, "subset"),
    )
    if config.protocol.name == "tune":  # what it reports is held out and chooses settings; no table is about it
        held_out, split = splits.report, splits.report_name
    elif splits.select is not None and splits.select_name not in (None, splits.report_name):
        held_out, split = splits.select, str(splits.select_name)
    else:
        raise UserError(
            f"{folder}: protocol={config.protocol.name} holds out no data of {task.name} that is not reported; "
            "contributions need such data: protocol=clean has it, on VTAB-1k protocol=tune"
        )
    model = load_model(config.model, task, stream(config.seed, "head")).network
    adapters = put_adapter(model, read_factors(folder / "adapter"), folder / "adapter" / "adapter_model.safetensors")
    processor = load_processor(config.model, task)
    data = make_items(_some(held_out, items, task), processor, task, config.data.cache)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batches = []
    for indices in eval_batches(data.lengths, BATCH):
        batch = {name: tensor.to(device) for name, tensor in data.batch(indices).items()}
        batches.append((data.weight(indices), batch))
    return Rebuilt(model.to(device).eval(), adapters, batches, split, len(data))


def _some(rows: Any, items: int | None, task: Any) -> Any:
    from experiments.data.protocols import draw

    if items is None or items >= len(rows):
        return rows
    classes = rows["label"] if task.kind in ("classification", "image") else [0] * len(rows)
    return rows.select(draw(list(rows["idx"]), list(classes), items, f"{task.name}/contribution"))


def put_adapter(
    model: nn.Module, factors: Mapping[str, tuple[Tensor, Tensor]], weights: Path
) -> dict[str, LowRankLinear]:
    """Puts an exported result into a bare model: factors as adapters of scale 1, whole modules as they are.

    Args:
        model: changed in place.
        factors: A (r, d_in) and B (d_out, r) by matrix.
        weights: adapter_model.safetensors, for the modules that trained whole.

    Raises:
        UserError: the result does not belong to this model.
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
        raise UserError(f"{weights} holds {', '.join(unknown[:3])}, which this model does not have")

    def adapter(name: str, linear: nn.Linear) -> LowRankLinear:
        rank = factors[name][0].shape[0]
        return LowRankLinear(linear, Directions(rank, rank), 1.0, singular=False)

    found = find_linears(model, list(factors))
    adapters = attach(model, {name: found[name] for name in factors}, adapter)
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


def _config(folder: Path) -> Any:
    """The run's configuration; one of a command's version that has other keys is refused in one line."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from experiments.config.schema import RunConfig

    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"{path} is missing; it says how to rebuild the model")
    try:
        return OmegaConf.merge(OmegaConf.structured(RunConfig), OmegaConf.load(path))
    except OmegaConfBaseException as error:
        line = str(error).splitlines()[0]
        raise UserError(f"{path} does not fit this version ({line}); check out the commit in manifest.json") from error


# -- many runs ---------------------------------------------------------------------------------------------


def finished(places: Iterable[str | Path]) -> list[Path]:
    """Folders of finished runs in the given stores, folders of one task, or folders of one run.

    Raises:
        UserError: a place is no folder.
    """
    found: dict[Path, None] = {}
    for place in map(Path, places):
        if not place.is_dir():
            raise UserError(f"{place} is no folder of runs; `python run.py` makes one")
        for pattern in ("result.json", "*/result.json", "*/*/result.json"):
            found |= dict.fromkeys(path.parent for path in sorted(place.glob(pattern)))
    return list(found)


def measured(folder: Path, items: int | None = ITEMS) -> bool:
    """Whether contributions of this run, in this schema and from as many items, are there already."""
    try:
        stored = json.loads((folder / FILE).read_text(encoding="utf-8"))
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        return stored["schema"] == SCHEMA and (stored["id"], stored["asked"]) == (result["id"], items)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def measure_all(places: Sequence[str | Path], methods: Sequence[str] = (), items: int | None = ITEMS) -> int:
    """Writes contributions.json of every finished run that has none.

    Args:
        places: see `finished`.
        methods: only these; empty means all.
        items: see `measure`.

    Returns:
        0, or 2 when a run could not be measured; the others are.
    """
    from experiments.runtime.files import write_whole
    from experiments.store.folder import dump

    folders = finished(places)
    if not folders:
        raise UserError(f"no finished run in {', '.join(map(str, places))}; `python run.py` makes one")
    problems = 0
    for number, folder in enumerate(folders, start=1):
        shown = f"[{number}/{len(folders)}] {folder}"
        try:
            result = _result(folder)
            if methods and result["method"] not in methods:
                continue
            if measured(folder, items):
                print(f"{shown}: measured before")
                continue
            if not (folder / "adapter" / "adapter_model.safetensors").is_file():
                print(f"{shown}: skipped, {result['label']} has no adapter in LoRA form")
                continue
            found = measure(folder, items)
        except UserError as error:
            print(f"contribution: {error}", file=sys.stderr)
            problems += 1
            continue
        write_whole(folder / FILE, dump(found))
        top = max(found["rises"], key=lambda name: found["rises"][name])
        print(f"{shown}: loss {found['loss']:.4f}, most without {top}: {found['rises'][top]:+.4f}")
    return 2 if problems else 0


def main(words: list[str] | None = None) -> int:
    """Exit codes: 0 measured, 2 a run could not be measured or a mistake in what was asked for."""
    given = argparse.ArgumentParser(
        prog="python -m experiments.contribution",
        description="Measures how much the loss on held-out data rises without the adapter of each matrix.",
        epilog="example: python -m experiments.contribution runs --method elalora,svd_lora",
    )
    given.add_argument("places", nargs="*", default=["runs"], metavar="RUN_OR_STORE", help="default: runs")
    given.add_argument("--method", default="", metavar="A,B", help="only runs of these methods")
    given.add_argument("--items", type=int, default=ITEMS, metavar="N", help=f"held-out items, 0 all (default {ITEMS})")
    asked = given.parse_args(words)
    try:
        methods = [part.strip() for part in asked.method.split(",") if part.strip()]
        return measure_all(asked.places, methods, asked.items or None)
    except UserError as error:
        print(f"contribution: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    as_command(main)
