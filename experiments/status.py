"""Every run of a store by state: `python -m experiments status runs`. Reads small files only, and imports no torch.

What is unusual: nothing is asked of a scheduler and no process is looked for, because a run may be on another machine.
A run whose state is "running" and whose heartbeat is old is called stale.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from elalora.errors import UserError

STATES = ("running", "stale", "failed", "preempted", "done")
STALE_SECONDS = 15 * 60.0
SHOWN = 20  # runs of a state that the text names one by one


@dataclass(frozen=True)
class RunState:
    """One run as it stands.

    Attributes:
        run: task/folder; arm: the same without seed and id.
        state: one of STATES; failure: nan, budget, never_acted, crash or preempted, else None.
        age: seconds since its last heartbeat, never negative; None where status.json is unreadable.
        step, total: progress; seconds_per_step: the last that was written.
    """

    run: str
    arm: str
    state: str
    failure: str | None
    age: float | None
    step: int | None
    total: int | None
    seconds_per_step: float | None
    attempts: int
    error: str | None


def states(store: Path, now: float | None = None) -> list[RunState]:
    """Every run of a store, in order of their folders.

    Raises:
        UserError: there is no such folder.
    """
    if not store.is_dir():
        raise UserError(f"{store} is no folder; type the store's, for instance: python -m experiments status runs")
    now = time.time() if now is None else now
    return [_state(path, now) for path in _folders(store)]


def _folders(store: Path) -> Iterator[Path]:
    for task in sorted(entry.path for entry in os.scandir(store) if entry.is_dir() and entry.name[0] != "."):
        for run in sorted(entry.path for entry in os.scandir(task) if entry.is_dir()):
            path = Path(run)
            if (path / "status.json").exists() or (path / "result.json").exists():
                yield path


def _state(path: Path, now: float) -> RunState:
    status = _read(path / "status.json")
    beat = status.get("heartbeat")
    age = max(0.0, now - beat) if isinstance(beat, int | float) else None
    state = status.get("state")
    if (path / "result.json").exists():
        state = "done"
    elif state not in ("failed", "preempted"):
        state = "running" if age is not None and age < STALE_SECONDS else "stale"
    lost = state in ("failed", "preempted")
    return RunState(
        run=f"{path.parent.name}/{path.name}",
        arm=_arm(path),
        state=state,
        failure=str(status.get("failure") or "crash") if lost else None,
        age=age,
        step=status.get("step"),
        total=status.get("total"),
        seconds_per_step=_speed(path / "timing.jsonl") if state == "running" else None,
        attempts=status.get("attempts") or 0,
        error=status.get("error") if lost else None,
    )


def _arm(path: Path) -> str:
    """task/method-budget of task/method-budget-s3-0123456789."""
    words = path.name.split("-")
    return f"{path.parent.name}/{'-'.join(words[:-2])}" if len(words) > 2 else f"{path.parent.name}/{path.name}"


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _speed(path: Path) -> float | None:
    """Seconds per step of the last whole line."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 400))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            return float(json.loads(line)["seconds_per_step"])
        except (ValueError, KeyError, TypeError):
            continue
    return None


def text(store: Path, found: list[RunState]) -> str:
    """Arms with how many runs of each state, then every run that is not done, and what goes on with them."""
    arms: dict[str, list[RunState]] = defaultdict(list)
    for run in found:
        arms[run.arm].append(run)
    lines = [_counted(found)]
    lines += [f"  {arm}: {len(runs)} repeats, {_counted(runs)}" for arm, runs in arms.items()]
    for state in STATES[:-1]:
        those = [run for run in found if run.state == state]
        if those:
            lines += ["", f"{state}:", *(f"  {_one(run)}" for run in those[:SHOWN])]
        if len(those) > SHOWN:
            lines.append(f"  and {len(those) - SHOWN} more (--json shows all)")
    again = [run for run in found if run.state in ("stale", "failed", "preempted")]
    commands = [command for run in again[:SHOWN] if (command := retry(store / run.run))]
    if commands:
        lines += ["", "to go on with what stopped:", *(f"  {command}" for command in dict.fromkeys(commands))]
    return "\n".join(lines)


def _counted(runs: list[RunState]) -> str:
    counts = {state: sum(run.state == state for run in runs) for state in STATES}
    failures = sorted(run.failure for run in runs if run.state == "failed" and run.failure)
    kinds = ", ".join(f"{failures.count(kind)} {kind}" for kind in dict.fromkeys(failures))
    words = [f"{n} {state}" + (f" ({kinds})" if state == "failed" else "") for state, n in counts.items() if n]
    return ", ".join(words) or "no runs"


def _one(run: RunState) -> str:
    parts = [run.run]
    if run.step is not None and run.total:
        parts.append(f"step {run.step} of {run.total}")
    if run.seconds_per_step is not None:
        parts.append(f"{run.seconds_per_step:.3g} s per step")
    parts.append("no heartbeat" if run.age is None else f"heartbeat {_ago(run.age)} ago")
    if run.attempts > 1:
        parts.append(f"attempt {run.attempts}")
    if run.error:
        parts.append(f"{run.failure}: {run.error}")
    return ", ".join(parts)


def _ago(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def retry(folder: Path) -> str | None:
    """The command that goes on with a run, from the words that its config.yaml keeps."""
    import yaml

    try:
        config = yaml.load((folder / "config.yaml").read_bytes(), yaml.CSafeLoader)
        words = config["overrides"]
        return "python run.py " + " ".join(shlex.quote(str(word)) for word in words)
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return None


def as_json(found: list[RunState]) -> str:
    """One list, for other programs."""
    return json.dumps([asdict(run) for run in found], indent=1)
