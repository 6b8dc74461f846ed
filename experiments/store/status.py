"""`python -m experiments status`: every run of a store by state, with progress, age, speed and error.

What is unusual: it reads a few small files per run and imports nothing heavy, so thousands of runs take seconds. A
file that is damaged or that a run is just writing costs its line, never the overview.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from elalora.errors import UserError
from experiments.runtime.pipes import reader_left
from experiments.store.compact import opened

STATES = ("running", "stale", "failed", "preempted", "done", "unreadable")
STALE_SECONDS = 600.0
NAME = re.compile(r"(?P<arm>.+)-s(?P<seed>\d+)-[0-9a-f]{10}")
OVERRIDES = re.compile(r"^overrides:\n((?:[- ].*\n?)*)", re.M)
PLAIN = re.compile(r"(- [a-z+~][\w.=+~/@,-]*\n)+")  # words that YAML means as they stand
UNSHOWN = ("seed", "task", "method", "budget", "store.", "tracking.", "threads", "hydra")  # of an arm's name


@dataclass(frozen=True)
class RunStatus:
    """One run as its files show it.

    Attributes:
        state: one of STATES; stale is a running one whose heartbeat is old, so it was killed or hangs.
        failure: nan, budget, never_acted, crash, refused or preempted; None for a run that did not stop.
        age: seconds since the last heartbeat.
        step, total: progress; None before the first logged step.
        seconds_per_step: of the last log line, None unless it runs.
        overrides: the words the run was composed from, None where they are not kept.
    """

    path: str
    task: str
    arm: str
    seed: int | None
    state: str
    failure: str | None
    age: float | None
    step: int | None
    total: int | None
    seconds_per_step: float | None
    attempts: int
    error: str | None
    overrides: list[str] | None


def read_store(root: Path, stale: float = STALE_SECONDS) -> list[RunStatus]:
    """Every run of a store, in order of its folders.

    Args:
        root: the store.
        stale: seconds without a heartbeat after which a running run counts as stale.

    Raises:
        UserError: there is no such folder.
    """
    if not root.is_dir():
        raise UserError(f"{root} is no folder of runs; type python -m experiments status FOLDER")
    now = time.time()
    started = {path.parent for name in ("status.json", "result.json") for path in opened(root).glob(f"*/*/{name}")}
    return [_read(folder, now, stale) for folder in sorted(started)]


def _read(folder: Path, now: float, stale: float) -> RunStatus:
    status = _object(folder / "status.json")
    heartbeat = _number(status.get("heartbeat"))
    age = None if heartbeat is None else now - heartbeat
    state = str(status.get("state"))
    if (folder / "result.json").is_file():
        state = "done"  # the result is the marker, whatever the status says
    elif state == "running" and (age is None or abs(age) > stale):  # a clock that was set back is no sign of life
        state = "stale"
    elif state not in STATES or state == "done":
        state = "unreadable"
    found = NAME.fullmatch(folder.name)
    stopped = state in ("failed", "preempted")
    step, total = _number(status.get("step")), _number(status.get("total"))
    return RunStatus(
        path=str(folder),
        task=folder.parent.name,
        arm=found["arm"] if found else folder.name,
        seed=int(found["seed"]) if found else None,
        state=state,
        failure=str(status.get("failure") or "crash") if stopped else None,
        age=None if age is None else max(0.0, age),
        step=None if step is None else int(step),
        total=None if total is None else int(total),
        seconds_per_step=_speed(folder) if state == "running" else None,
        attempts=int(_number(status.get("attempts")) or 0),
        error=_one_line(status.get("error")) if stopped else None,
        overrides=_overrides(folder / "config.yaml"),
    )


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15  # NaN does not
    return value if fits else None


def _one_line(text: Any) -> str | None:
    """The first line, without what could steer a terminal."""
    first = next(iter(str(text or "").splitlines()), "")
    return "".join(c for c in first if c.isprintable())[:200] or None


def _speed(folder: Path) -> float | None:
    try:
        with (folder / "timing.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 500))
            return _number(json.loads(file.read().split(b"\n")[-2])["seconds_per_step"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _overrides(path: Path) -> list[str] | None:
    """The block `overrides:` of config.yaml; reading the whole file would take most of the time."""
    from omegaconf import OmegaConf

    try:
        found = OVERRIDES.search(path.read_text(encoding="utf-8"))
        if found is None:
            return None
        if PLAIN.fullmatch(found[1]):  # the YAML reader would take most of the time
            return [line[2:] for line in found[1].splitlines()]
        words = OmegaConf.to_container(OmegaConf.create(found[1]))
    except Exception:  # noqa: BLE001 - whatever a damaged file or a stranger's makes the YAML reader raise
        return None
    return [str(word) for word in words] if isinstance(words, list) else None


# -- showing -------------------------------------------------------------------------------------------


def overview(runs: Sequence[RunStatus]) -> str:
    """States in one line, then arms with their repeats, then what runs, what stopped and how to go on."""
    counts = Counter(run.state for run in runs)
    lines = [f"{_count(len(runs), 'run')}: " + (", ".join(f"{counts[s]} {s}" for s in STATES if counts[s]) or "none")]
    lines += [f"  {name}: {_repeats(alike)}" for name, alike in sorted(arms(runs).items())]
    moving = [run for run in runs if run.state in ("running", "stale")]
    if moving:
        lines += ["", "under way:", *(f"  {run.path}  {_progress(run)}" for run in moving)]
    stopped = [run for run in runs if run.state in ("failed", "preempted", "unreadable")]
    if stopped:
        lines += ["", "stopped:", *(f"  {run.path}  {_why(run)}" for run in stopped)]
    commands = retry(runs)
    if commands:
        lines += ["", "to go on:", *(f"  {command}" for command in commands)]
    return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)


def arms(runs: Iterable[RunStatus]) -> dict[str, list[RunStatus]]:
    """Runs that differ in their seed only, by a name; overrides are part of it where the name would join two arms."""
    groups: dict[tuple[str, tuple[str, ...]], list[RunStatus]] = defaultdict(list)
    for run in runs:
        words = tuple(sorted(w for w in run.overrides or () if not w.lstrip("+~").startswith(UNSHOWN)))
        groups[f"{run.task}/{run.arm}", words].append(run)
    alike: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for name, words in groups:
        alike[name].append(words)
    named = {}
    for (name, words), members in groups.items():
        common = set.intersection(*(set(other) for other in alike[name]))
        own = [word for word in words if word not in common]
        named[f"{name} ({' '.join(own)})" if own else name] = members
    return named


def _repeats(alike: Sequence[RunStatus]) -> str:
    counts = Counter(run.state for run in alike)
    parts = []
    for state in STATES:
        kinds = Counter(run.failure for run in alike if run.state == state == "failed")
        shown = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items(), key=str))
        if counts[state]:
            parts.append(f"{counts[state]} {state}" + (f" ({shown})" if shown else ""))
    return f"{_count(len(alike), 'repeat')}, {', '.join(parts)}"


def _progress(run: RunStatus) -> str:
    step = "starting" if run.step is None else f"step {run.step}/{run.total}"
    speed = "" if run.seconds_per_step is None else f", {run.seconds_per_step:.3g} s/step"
    seen = "never" if run.age is None else f"{_duration(run.age)} ago"
    return f"{step}{speed}, last seen {seen}" + (", STALE: killed or hanging" if run.state == "stale" else "")


def _why(run: RunStatus) -> str:
    if run.state == "unreadable":
        return "status.json is damaged; the same command runs it again"
    again = f", {run.attempts} attempts" if run.attempts > 1 else ""
    return f"{run.failure}{again}: {run.error or 'no message'}"


def retry(runs: Iterable[RunStatus]) -> list[str]:
    """Commands that go on with what has stopped and start nothing else; seeds of one arm share a command."""
    groups: dict[tuple[str, ...], list[RunStatus]] = defaultdict(list)
    for run in runs:
        if run.state in ("failed", "stale", "preempted", "unreadable") and run.overrides is not None:
            groups[tuple(w for w in run.overrides if not w.startswith("seed="))].append(run)
    commands = []
    for words, members in groups.items():
        seeds = sorted({run.seed for run in members if run.seed is not None})
        many = len(seeds) > 1
        given = [*words, f"seed={','.join(map(str, seeds))}"] if seeds else list(words)
        commands.append("python run.py " + ("-m " if many else "") + shlex.join(given))
    return commands


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


# -- the command ---------------------------------------------------------------------------------------


def add_to(commands: Any) -> None:
    """Adds `status` to the command line."""
    given: argparse.ArgumentParser = commands.add_parser("status", help="every run of a store by state")
    given.add_argument("store", nargs="?", default="runs", metavar="STORE", help="folder of runs (default: runs)")
    given.add_argument("--json", action="store_true", help="a list of objects, one for each run")
    given.add_argument("--watch", action="store_true", help="shows it again every 5 seconds, until ctrl-C")
    given.add_argument("--stale", type=float, default=STALE_SECONDS, metavar="SECONDS", help="default: 600")
    given.set_defaults(do=show)


def show(asked: argparse.Namespace) -> int:
    """Does the command."""
    while True:
        runs = read_store(Path(asked.store), asked.stale)
        text = json.dumps([asdict(run) for run in runs], indent=1) if asked.json else overview(runs)
        print("\x1b[2J\x1b[H" + text if asked.watch else text, flush=True)
        if not asked.watch or reader_left():
            return 0
        time.sleep(5)
