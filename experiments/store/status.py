"""`python -m experiments status`: every run of a store by state, with progress, age, speed and error.

Reads a few small files per run and imports nothing heavy, so that thousands of runs take seconds. A damaged or
half-written file affects that run only. The store may be a stranger's: its words are shown, and of the command that
resumes a run only those that set what it computes (`experiments.store.commands`).
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from elalora.errors import UserError
from experiments.runtime.pipes import reader_left
from experiments.runtime.text import clean, counted, duration
from experiments.store.commands import plain_words
from experiments.store.compact import opened
from experiments.store.folder import RunFolder
from experiments.store.foreign import DAMAGE, parse_yaml, read_tail, read_text
from experiments.store.name import RunName
from experiments.store.queue import queued_folders

STATES = ("running", "queued", "stale", "failed", "preempted", "done", "older", "unreadable")
STALE_SECONDS = 600.0
LONGEST_LINE = 10_000  # characters; a command may list hundreds of seeds
OVERRIDES = re.compile(r"^overrides:\n(?:[- ].*\n?)*", re.M)
PLAIN = re.compile(r"overrides:\n(?:- [a-z]\w*(?:\.\w+)*=[\w./+-]*\n)*")  # words that YAML writes as they are
IN_NAME = ("seed", "task", "method", "budget", "store.", "tracking.", "threads", "hydra")  # or do not matter for an arm


@dataclass(frozen=True)
class RunStatus:
    """One run as its files show it.

    Attributes:
        store: the store's folder; None for a compact store, in which no run is resumed.
        state: one of STATES; a stale run says "running" but its heartbeat is old, so it was killed or hangs; an
            older one is done, in the schema of an older version.
        failure: nan, budget, never_acted, crash, refused or preempted; None unless the run stopped early.
        age: seconds since the last heartbeat.
        step, total: progress; None before the first logged step.
        seconds_per_step: of the last log line; None unless the run is running.
        overrides: the words the run was composed from; None if its config.yaml cannot be read.
        job: of a queued run: the SLURM job in which it waits, and why.
    """

    path: str
    store: str | None
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
    job: str | None = None


def read_store(root: Path, stale: float = STALE_SECONDS) -> list[RunStatus]:
    """Every run of a store, sorted by folder.

    Args:
        root: the store.
        stale: seconds without a heartbeat after which a running run counts as stale.

    Raises:
        UserError: `root` is not a folder.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder of runs; type python -m experiments status FOLDER")
    now = time.time()
    runs = opened(root)
    started = {path.parent for name in ("status.json", "result.json") for path in runs.glob(f"*/*/{name}")}
    store = str(root) if runs == root else None
    queued = queued_folders(root)
    runs_now = [read_run(folder, store, now, stale) for folder in sorted(started | set(queued))]
    return [_as_queued(run, queued.get(Path(run.path))) for run in runs_now]


def _as_queued(run: RunStatus, job: str | None) -> RunStatus:
    """The run with the state of its SLURM job, unless it is at work or done."""
    if job is None or run.state in ("running", "done"):
        return run
    return replace(run, state="queued", job=job, failure=None, error=None)


def read_run(folder: Path, store: str | None, now: float, stale: float = STALE_SECONDS) -> RunStatus:
    """One run, as `read_store` reads it at the time `now`."""
    status = RunFolder(folder).status()
    heartbeat = _number(status.get("heartbeat"))
    age = None if heartbeat is None else now - heartbeat
    state = str(status.get("state"))
    if (folder / "result.json").is_file():
        # the result is the marker, whatever the status says
        state = "done" if RunFolder(folder).older is None else "older"
    elif state == "running" and (age is None or abs(age) > stale):  # abs: the clock may have been set back
        state = "stale"
    elif state not in STATES or state == "done":
        state = "unreadable"
    name = RunName.parse(folder)
    stopped = state in ("failed", "preempted")
    step, total = _number(status.get("step")), _number(status.get("total"))
    return RunStatus(
        path=str(folder),
        store=store,
        task=folder.parent.name,
        arm=name.arm if name else folder.name,
        seed=name.seed if name else None,
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


def _number(value: Any) -> float | None:
    valid = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15  # NaN does not
    return value if valid else None


def _one_line(text: Any) -> str | None:
    """The start of the first line, without control characters."""
    return clean(next(iter(str(text or "").splitlines()), ""), 200) or None


def _speed(folder: Path) -> float | None:
    try:
        return _number(json.loads(read_tail(folder / "timing.jsonl", 500).split(b"\n")[-2])["seconds_per_step"])
    except DAMAGE:
        return None


def _overrides(path: Path) -> list[str] | None:
    """The block `overrides:` of config.yaml; parsing the whole file would take most of the time."""
    try:
        block = OVERRIDES.search(read_text(path))
        if block and PLAIN.fullmatch(block[0]):  # parsing takes most of the time of a large store
            return [line[2:] for line in block[0].splitlines()[1:]]
        words = parse_yaml(block[0])["overrides"] if block else None
    except DAMAGE:
        return None
    return [str(word) for word in words] if isinstance(words, list) else None


def overview(runs: Sequence[RunStatus]) -> str:
    """States in one line, arms with their repeats, running and stopped runs, and commands that resume them."""
    counts = Counter(run.state for run in runs)
    lines = [f"{counted(len(runs), 'run')}: " + (", ".join(f"{counts[s]} {s}" for s in STATES if counts[s]) or "none")]
    lines += [f"  {name}: {_repeats(alike)}" for name, alike in sorted(arms(runs).items())]
    active = [f"{run.path}  {_progress(run)}" for run in runs if run.state in ("running", "stale")]
    waiting = [f"{run.path}  {run.job}" for run in runs if run.state == "queued"]
    stopped = [f"{run.path}  {_why(run)}" for run in runs if run.state in ("failed", "preempted", "unreadable")]
    commands = [line for command, others in retry(runs) for line in (command, *_warning(others))]
    for title, entries in (
        ("running", active),
        ("in the queue", waiting),
        ("stopped", stopped),
        ("to resume", commands),
    ):
        if entries:
            lines += ["", f"{title}:", *(f"  {entry}" for entry in entries)]
    for store in dict.fromkeys(str(Path(run.path).parent.parent) for run in runs if run.state == "older"):
        lines += ["", f"runs of an older version count as not done; type python -m experiments migrate {store}"]
    return "\n".join(clean(line, LONGEST_LINE) for line in lines)


def _warning(others: Sequence[str]) -> list[str]:
    words = ", ".join(clean(word, 200) for word in others)
    return [f"  if the run is yours, add its words with paths and services: {words}"] if others else []


def arms(runs: Iterable[RunStatus]) -> dict[str, list[RunStatus]]:
    """Runs that differ only in their seed, by name; the name includes overrides if two arms would share it."""
    groups: dict[tuple[str, tuple[str, ...]], list[RunStatus]] = defaultdict(list)
    for run in runs:
        words = tuple(sorted(w for w in run.overrides or () if not w.lstrip("+~").startswith(IN_NAME)))
        groups[f"{run.task}/{run.arm}", words].append(run)
    alike: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for name, words in groups:
        alike[name].append(words)
    named = {}
    for (name, words), members in groups.items():
        common = set.intersection(*(set(other) for other in alike[name]))
        extra = [word for word in words if word not in common]
        named[f"{name} ({' '.join(extra)})" if extra else name] = members
    return named


def _repeats(alike: Sequence[RunStatus]) -> str:
    counts = Counter(run.state for run in alike)
    parts = []
    for state in STATES:
        kinds = Counter(run.failure for run in alike if run.state == state == "failed")
        failures = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items(), key=str))
        if counts[state]:
            parts.append(f"{counts[state]} {state}" + (f" ({failures})" if failures else ""))
    return f"{counted(len(alike), 'repeat')}, {', '.join(parts)}"


def _progress(run: RunStatus) -> str:
    step = "starting" if run.step is None else f"step {run.step}/{run.total}"
    speed = "" if run.seconds_per_step is None else f", {run.seconds_per_step:.3g} s/step"
    seen = "never" if run.age is None else f"{duration(run.age)} ago"
    return f"{step}{speed}, last seen {seen}" + (", STALE: killed or hanging" if run.state == "stale" else "")


def _why(run: RunStatus) -> str:
    if run.state == "unreadable":
        return "status.json is damaged; rerun its command"
    attempts = f", {run.attempts} attempts" if run.attempts > 1 else ""
    return f"{run.failure}{attempts}: {run.error or 'no message'}"


def retry(runs: Iterable[RunStatus]) -> list[tuple[str, list[str]]]:
    """Commands that resume the stopped runs and start no others; seeds of one arm share a command.

    Returns:
        Commands with the words of the runs that they leave out, see `experiments.store.commands`.
    """
    groups: dict[tuple[str, ...], list[RunStatus]] = defaultdict(list)
    for run in runs:
        if run.state in ("failed", "stale", "preempted", "unreadable") and run.overrides is not None:
            groups[tuple(w for w in run.overrides if not w.startswith(("seed=", "store.root=")))].append(run)
    commands = []
    for words, members in groups.items():
        arguments, others = plain_words(words)
        store = members[0].store
        if store not in (None, "runs"):
            arguments.append(f"store.root={store}" if re.fullmatch(r"[\w./ -]+", store) else f'store.root="{store}"')
        seeds = sorted({run.seed for run in members if run.seed is not None})
        arguments += [f"seed={','.join(map(str, seeds))}"] if seeds else []
        commands.append(("python run.py " + ("-m " if len(seeds) > 1 else "") + shlex.join(arguments), others))
    return commands


def add_to(commands: Any) -> None:
    """Adds `status` to the command line."""
    parser: argparse.ArgumentParser = commands.add_parser("status", help="list every run of a store by state")
    parser.add_argument("store", nargs="?", default="runs", metavar="STORE", help="run store (default: runs)")
    parser.add_argument("--json", action="store_true", help="print a list of objects, one per run")
    parser.add_argument("--watch", action="store_true", help="repeat every 5 seconds until Ctrl-C")
    parser.add_argument(
        "--stale", type=float, default=STALE_SECONDS, metavar="SECONDS",
        help="age of the last heartbeat from which a running run counts as stale (default: %(default)g)",
    )  # fmt: skip
    parser.set_defaults(command=show)


def show(args: argparse.Namespace) -> int:
    """Prints the runs of a store and returns the exit code."""
    while True:
        runs = read_store(Path(args.store), args.stale)
        text = json.dumps([asdict(run) for run in runs], indent=1) if args.json else overview(runs)
        print("\x1b[2J\x1b[H" + text if args.watch else text, flush=True)
        if not args.watch or reader_left():
            return 0
        time.sleep(5)
