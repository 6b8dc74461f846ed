"""What a finished run leaves: result.json's content, predictions and the adapter's size."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elalora.attach import place
from elalora.budget import Count
from elalora.method import Method, gross_share, net_share
from experiments.config.task import TaskConfig
from experiments.runs.plan import Plan, budget_name
from experiments.runtime.places import CHECKOUT
from experiments.store.folder import SCHEMA
from experiments.training.metrics import majority_baseline

if TYPE_CHECKING:
    from experiments.training.outcome import Outcome, Reading


def assemble(
    plan: Plan,
    data: Any,
    train: Any,
    method: Method,
    model: Any,
    outcome: Outcome,
    start: dict[str, int],
    reading: Reading,
    chosen: Reading | None,
) -> dict[str, Any]:
    """The content of result.json (schema: docs/store.md)."""
    from experiments.runtime.manifest import commit_of

    config = plan.config
    return {
        "schema": SCHEMA,
        "id": plan.id,
        "identity": plan.identity,
        "commit": commit_of(CHECKOUT)[0],
        "method": method.name,
        "variant": getattr(plan.method_config, "variant", None),
        "label": _label(plan),
        "reconstructed": method.reconstructed,
        "task": config.task.name,
        "model": config.model.name,
        "budget": budget_name(plan.budget),
        "protocol": config.protocol.name,
        "recipe": plan.recipe,
        "seed": config.seed,
        "metric": config.task.metrics[0],
        "steps": method.total_steps,
        "readings": {"last": _last(method.total_steps, reading, chosen), "best": outcome.best},
        "ranks": {
            "initial": start,
            "final": method.ranks(),
            "places": {name: list(place(name)) for name in start},
            "shapes": {name: list(shape) for name, shape in method.shapes().items()},
        },
        "counts": _counts(plan, method, model, outcome),
        "moves": _moves(method, start),
        "cost": {
            "step_seconds_median": statistics.median(outcome.step_seconds) if outcome.step_seconds else None,
            "train_seconds": outcome.train_seconds,
            "eval_seconds": outcome.eval_seconds,
            "peak_memory_mib": _peak_memory(),
            "adapter_bytes": _size(plan.folder.path / "adapter"),
        },
        "data": {
            "fingerprint": data.fingerprint,
            "source": data.source,
            "verified": data.verified,
            "citation": config.task.citation,
            "train_items": len(train.data),
            "report_items": len(reading.rows),
            "truncated": train.data.truncated,
            "truncated_targets": getattr(train.data, "truncated_targets", 0),
            "majority": _constant_answer(config.task, reading),
        },
        "flags": _flags(reading, data) + method.remarks(),
    }


def _flags(reading: Reading, data: Any) -> list[str]:
    return ["collapsed"] * reading.collapsed + ["unverified data"] * (not data.verified)


def _label(plan: Plan) -> str:
    label = plan.method.title
    if getattr(plan.method_config, "ranks_from", None):
        label += " transplant" + (" shuffled" if plan.method_config.shuffle else "")
    return label


def _constant_answer(task: Any, reading: Reading) -> dict[str, float]:
    """Scores of the best constant answer; a summary has none."""
    if task.kind == "summarization":
        return {}
    kind = "regression" if task.kind == "regression" else "classification"
    return majority_baseline(kind, list(task.metrics), [row[1] for row in reading.rows])


def _last(step: int, reading: Reading, chosen: Reading | None) -> dict[str, Any]:
    select = None if chosen is None else {"split": chosen.split, "metrics": chosen.metrics}
    return {"step": step, "report": {"split": reading.split, "metrics": reading.metrics}, "select": select}


def _counts(plan: Plan, method: Method, model: Any, outcome: Outcome) -> dict[str, Any]:
    """Adapter parameters at the start, at the peak and at the end; the head and other trained parts apart."""
    factors = {id(p) for p in method.adapter_parameters()}
    head = other = 0
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or id(parameter) in factors:
            continue
        if any(name.startswith(h + ".") for h in method.whole):
            head += parameter.numel()
        else:
            other += parameter.numel()

    def shown(count: Count) -> dict[str, int]:
        return {"rank_sum": count.rank_sum, "params": count.params}

    return {
        "initial": shown(outcome.initial),
        "peak": shown(outcome.peak),
        "final": shown(method.count()),
        "head_params": head,
        "other_params": other,
    }


def _moves(method: Method, start: dict[str, int]) -> dict[str, Any]:
    rounds = method.rounds_seen
    phases = getattr(method, "phases", None)
    return {
        "rounds_due": len(phases.rounds()) if phases is not None and method.capabilities.adaptive else len(rounds),
        "rounds": len(rounds),
        "pruned": sum(len(r.pruned) for r in rounds),
        "grown": sum(len(r.grown) for r in rounds),
        "gross_share": gross_share(rounds, sum(start.values())),
        "net_share": net_share(start, method.ranks()),
        "blocked": sum(r.notes.get("blocked", 0) for r in rounds),
        "replaced_in_place": sum(r.notes.get("replaced_in_place", 0) for r in rounds),
    }


def _peak_memory() -> float | None:
    import torch

    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None


def _size(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def export_adapter(plan: Plan, method: Method, model: Any) -> None:
    """adapter/: a stock PEFT checkpoint where the method has that form, else the trained parameters."""
    from elalora.export import export_peft, export_trained
    from experiments.models.load import HEADED, resolve_model

    folder = plan.folder.path / "adapter"
    head = method.whole + method.trained_modules()
    if not method.capabilities.exports_lora:
        export_trained(model, folder)
        return
    path = plan.config.model.path
    if path == "embedded":
        base = "sentence-transformers/all-MiniLM-L6-v2"
    else:
        base = resolve_model(path) if path == "digits" else path
    export_peft(method, model, folder, head, task_type=HEADED[plan.config.task.kind][1], base=base)


def store_predictions(folder: Path, reading: Reading, task: TaskConfig) -> None:
    """predictions.parquet: idx, label, prediction, score of every reported item."""
    import os

    import pyarrow
    from pyarrow import parquet

    text = pyarrow.string()
    answers = {"regression": (pyarrow.float64(),) * 2, "summarization": (pyarrow.list_(text), text)}
    label, prediction = answers.get(task.kind, (pyarrow.int64(),) * 2)
    types = {"idx": pyarrow.int64(), "label": label, "prediction": prediction, "score": pyarrow.float64()}
    columns = zip(types.items(), zip(*reading.rows, strict=True), strict=True)
    table = pyarrow.table({name: pyarrow.array(list(values), kind) for (name, kind), values in columns})
    part = folder / f".predictions.{os.getpid()}"
    parquet.write_table(table, part, compression="zstd")
    os.replace(part, folder / "predictions.parquet")
