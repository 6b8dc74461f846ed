"""What a run logged while it trained: its training loss and held-out scores by step, and how stable it was."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from analysis.reading.result_row import reason
from analysis.reading.rounds import RUN_AGAIN
from elalora.errors import UserError
from elalora.schedules import steps_of
from experiments.runtime.digests import stamp_of
from experiments.store.foreign import DAMAGE, read_text
from experiments.training.stability import Stability, stability

Points = list[tuple[int, float]]
NO_CURVE = re.compile(r"train$|increment \d+$")  # splits: of training, and of a single part of a sequence


class Curve(NamedTuple):
    """Values by step, counted from 0.

    Attributes:
        loss: mean training loss since the last entry.
        scores: the task's first metric on the split that was evaluated during training, in points.
    """

    loss: Points
    scores: Points


def load_curve(run: Mapping[str, Any]) -> Curve:
    """The curve of a row of `load_runs`, from metrics.jsonl; empty without the file.

    Raises:
        UserError: a line is damaged.
    """
    path = Path(run["folder"]) / "metrics.jsonl"
    return _curve(path, run["metric"], stamp_of(path))


@cache
def _curve(path: Path, metric: str, stamp: tuple[int, ...]) -> Curve:
    """Read once for all tables, while the file's stamp stays the same."""
    loss: Points = []
    scores: dict[str, Points] = {}
    try:
        for line in read_text(path).splitlines():
            entry = json.loads(line)
            point = (int(entry["step"]), float(entry["value"]))
            if (entry["split"], entry["metric"]) == ("train", "loss"):
                loss.append(point)
            elif entry["metric"] == metric and not NO_CURVE.match(entry["split"]):
                scores.setdefault(entry["split"], []).append(point)
    except FileNotFoundError:
        return Curve([], [])
    except DAMAGE as error:
        raise UserError(f"{path} cannot be read ({reason(error)}); {RUN_AGAIN}") from error
    return Curve(loss, next((points for points in scores.values() if len(points) > 1), []))


def stability_of(run: Mapping[str, Any], curve: Curve) -> Stability:
    """How stable the run of a row of `load_runs` was."""
    return stability(curve.loss, run["guessing"], warmup_steps(run), regression=is_regression(run))


def is_regression(run: Mapping[str, Any]) -> bool:
    """Whether the task of a row of `load_runs` is a regression."""
    return bool(run["settings"].get("task", {}).get("kind") == "regression")


def warmup_steps(run: Mapping[str, Any]) -> int:
    """Steps of warm-up of a row of `load_runs`."""
    return steps_of(run["settings"].get("trainer", {}).get("warmup", 0), run["steps"], "trainer.warmup")
