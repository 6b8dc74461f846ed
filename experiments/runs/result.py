"""What a finished run writes: result.json, its predictions and its adapter."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from elalora.method import Method, gross_share, net_share
from elalora.names import place
from elalora.schedules import steps_of
from experiments.runs.cost import cost_of
from experiments.runs.plan import Plan, budget_name
from experiments.runtime.files import replacing
from experiments.store.finished import DID_NOT_LEARN, FORGETTING, ZERO_SHOT, increment_split
from experiments.store.folder import SCHEMA
from experiments.training.increment_scores import (
    accuracy_matrix,
    anytime_accuracy,
    forgetting,
    forward_transfer,
    seen_accuracy,
)
from experiments.training.stability import UNSTABLE, logged_losses, stability

if TYPE_CHECKING:
    from experiments.training.progress import Prepared, TrainState

LEARNED = 0.95  # of the constant answer's training loss; a run that ends above it has learned next to nothing


def assemble(plan: Plan, prepared: Prepared, state: TrainState) -> dict[str, Any]:
    """The content of result.json (schema: docs/store.md).

    Args:
        plan: of the run; prepared: what it trained.
        state: after training, with the last checkpoint's readings.
    """
    from experiments.runtime.manifest import loaded_code

    data, items, method = prepared.data, prepared.splits.train.data, prepared.method
    progress, reading, start = state.progress, state.report, state.start_ranks
    assert data is not None and reading is not None
    config = plan.config
    # what guesses best changes with every increment
    guessing = prepared.readout.guessing(items) if len(prepared.sequence.parts) == 1 else None
    reportable = prepared.splits.reportable
    return {
        "schema": SCHEMA,
        "id": plan.id,
        "identity": plan.identity,
        "commit": loaded_code().commit,
        "method": method.name,
        "variant": method.variant,
        "label": method.label,
        "reconstructed": method.reconstructed,
        "task": config.task.name,
        "model": config.model.name,
        "budget": budget_name(plan.budget),
        "protocol": config.protocol.name,
        "recipe": plan.recipe,
        "seed": config.seed,
        "metric": config.task.metrics[0],
        "steps": method.total_steps,
        "readings": {
            "last": {
                "step": method.total_steps,
                "report": asdict(reading.scores),
                "select": None if state.select is None else asdict(state.select.scores),
                **({"by_rank": {str(rank): scores for rank, scores in state.by_rank.items()}} if state.by_rank else {}),
            },
            "best": None if progress.best is None else asdict(progress.best),
        },
        "ranks": {
            "initial": start,
            "final": method.ranks(),
            "places": {name: list(place(name)) for name in start},
            "shapes": {name: list(shape) for name, shape in method.shapes().items()},
        },
        "counts": {
            "initial": asdict(progress.initial),
            "peak": asdict(progress.peak),
            "final": asdict(method.count()),
            **{name: asdict(count) for name, count in method.further_counts().items()},
            **_other_parameters(prepared),
        },
        **({"increments": _increments(plan, prepared)} if prepared.increments else {}),
        "moves": _moves(method, start),
        "cost": cost_of(plan, prepared, state),
        "data": {
            "fingerprint": data.fingerprint,
            "source": data.source,
            "verified": data.verified,
            "citation": config.task.citation,
            "train_items": len(items),
            "available_items": prepared.splits.available,
            "report_items": len(reading.rows),
            **({"available_report_items": reportable} if reportable > len(reading.rows) else {}),
            "truncated": items.truncated,
            "truncated_targets": getattr(items, "truncated_targets", 0),
            "majority": prepared.readout.constant(reading.rows),
            **_more_data(plan, items),
            "guessing_loss": guessing,
        },
        "flags": [
            *_flags(plan, method, reading.collapsed, data.verified, guessing),
            *data.remarks,
            *(["training rows left out"] if getattr(items, "dropped", 0) else []),
            *([f"on {len(reading.rows)} of {reportable} reported items"] if reportable > len(reading.rows) else []),
            *method.remarks(),
        ],
    }


def _flags(plan: Plan, method: Method, collapsed: bool, verified: bool, guessing: float | None) -> list[str]:
    """What a reader of the score must know; `guessing` is the training loss of the best constant answer."""
    from experiments.runtime.manifest import code_now, loaded_code, resumed_under

    changed = resumed_under(json.loads((plan.folder.path / "manifest.json").read_text(encoding="utf-8")))
    losses = logged_losses(plan.folder.lines("metrics.jsonl"))
    warmup = steps_of(plan.config.trainer.warmup, min(method.stages()), "trainer.warmup")
    regression = plan.config.task.kind == "regression"
    flags = {
        "collapsed": collapsed,
        DID_NOT_LEARN: guessing is not None and _final(losses) > LEARNED * guessing,
        UNSTABLE: guessing is not None and stability(losses, guessing, warmup, regression=regression).unstable,
        "unverified data": not verified,
        **{f"resumed under other {part}": True for part in changed},
        "code changed on disk": code_now() != loaded_code(),
    }
    return [flag for flag, holds in flags.items() if holds]


def _final(losses: list[tuple[int, float]]) -> float:
    """Mean training loss over the last quarter of a run."""
    return statistics.fmean(loss for _, loss in losses[-max(1, len(losses) // 4) :])


def _more_data(plan: Plan, items: Any) -> dict[str, Any]:
    """What only runs on causal tasks have: rows left out, scores before training, and losses on general text."""
    lines = plan.folder.lines("metrics.jsonl")
    before = {line["metric"]: line["value"] for line in lines if line["split"] == ZERO_SHOT}
    general = [line["value"] for line in lines if line["split"] == FORGETTING]
    more = {"dropped": items.dropped} if hasattr(items, "dropped") else {}
    if general:
        more[FORGETTING] = {"text": plan.identity[FORGETTING], "before": general[0], "after": general[-1]}
    return more | ({ZERO_SHOT: before} if before else {})


def _increments(plan: Plan, prepared: Prepared) -> dict[str, Any]:
    """The parts of a sequence, its accuracy matrix and the scores of that matrix; null where nothing was read."""
    sequence, lines = prepared.sequence, plan.folder.lines("metrics.jsonl")
    ends = [*(part.end - 1 for part in sequence.parts[:-1]), sequence.parts[-1].end]  # steps of the readings
    read = {(line["step"], line["split"]): line["value"] for line in lines if line["metric"] == "accuracy"}
    names = [increment_split(number) for number in range(len(ends))]
    matrix = accuracy_matrix([[read.get((step, name)) for name in names] for step in ends])
    sizes = [len(sequence.reported(number)) for number in range(len(ends))]
    before = [read.get((-1, name), math.nan) for name in names]
    return {
        "kind": "domains" if sequence.domains else "classes",
        "groups": [list(part.groups) for part in sequence.parts],
        "ends": [part.end for part in sequence.parts],
        "train_items": [len(part.items) for part in sequence.parts],
        "report_items": sizes,
        "matrix": [[None if math.isnan(value) else value for value in row] for row in matrix.tolist()],
        "seen": seen_accuracy(matrix, sizes).tolist(),
        "anytime_accuracy": anytime_accuracy(matrix, sizes),
        "forgetting": forgetting(matrix),
        "forward_transfer": forward_transfer(matrix, before),
    }


def _other_parameters(prepared: Prepared) -> dict[str, int]:
    """Trained parameters that belong to no adapter: the task head, and the rest."""
    method = prepared.method
    adapter = {id(p) for p in method.adapter_parameters()}
    counts = {"head_params": 0, "other_params": 0}
    for name, parameter in prepared.model.named_parameters():
        if parameter.requires_grad and id(parameter) not in adapter:
            head = any(name.startswith(f"{module}.") for module in method.whole)
            counts["head_params" if head else "other_params"] += parameter.numel()
    return counts


def _moves(method: Method, start: dict[str, int]) -> dict[str, Any]:
    rounds = method.rounds_seen
    return {
        "rounds_due": method.rounds_due(),
        "rounds": len(rounds),
        "pruned": sum(len(r.pruned) for r in rounds),
        "grown": sum(len(r.grown) for r in rounds),
        "gross_share": gross_share(rounds, start, method.ranks()),
        "net_share": net_share(start, method.ranks()),
        "blocked": sum(r.notes.get("blocked", 0) for r in rounds),
        "replaced_in_place": sum(r.notes.get("replaced_in_place", 0) for r in rounds),
    }


def export_adapter(plan: Plan, prepared: Prepared) -> None:
    """Writes adapter/: a stock PEFT checkpoint where the method has that form, else the trained parameters."""
    from elalora.export import export_peft, export_trained
    from experiments.models.load import HEADED, base_of

    folder, method, model = plan.folder.path / "adapter", prepared.method, prepared.model
    if not method.capabilities.exports_lora:
        export_trained(model, folder)
        return
    base, task_type = base_of(plan.config.model.path), HEADED[plan.config.task.kind][1]
    export_peft(method, model, folder, task_type=task_type, base=base)


def store_predictions(plan: Plan, prepared: Prepared, state: TrainState) -> None:
    """Writes predictions.parquet: idx and the readout's columns of every reported item."""
    import pyarrow
    from pyarrow import parquet

    def arrow(kind: str) -> Any:
        inner = kind.removeprefix("list<").removesuffix(">")
        return pyarrow.list_(arrow(inner)) if inner != kind else pyarrow.type_for_alias(kind)

    assert state.report is not None
    types = {"idx": "int64", **prepared.readout.columns}
    columns = zip(types.items(), zip(*state.report.rows, strict=True), strict=True)
    table = pyarrow.table({name: pyarrow.array(list(values), arrow(kind)) for (name, kind), values in columns})
    with replacing(plan.folder.path / "predictions.parquet") as part:
        parquet.write_table(table, part, compression="zstd")
