"""Runs in supervised worker processes: hydra/launcher=local, the default of every sweep, and inside a SLURM job.

What is unusual: the parent only hands out and watches. A worker does many runs one after another, so that imports are
paid once; when it dies (killed, out of memory), only the run it was at fails, and a new worker takes its place.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from elalora.errors import UserError
from experiments.config.schema import LauncherConfig
from experiments.runs.plan import Plan, in_order
from experiments.runtime.display import clock, stderr_console
from experiments.runtime.manifest import code_now, say_if_changed
from experiments.runtime.signals import SIGNALS, Preempted, obey_the_parent

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
GRACE = 60.0  # seconds that a worker which was told to stop has for its checkpoint


def run_plans(given: Sequence[Plan], config: LauncherConfig) -> int:
    """Does every run in `config.workers` processes, sources first; a failure does not stop the others.

    Returns:
        0 when every run is done, 1 when one failed, 2 when one could not start because of what was asked for.

    Raises:
        UserError: launcher.workers is out of range.
        Preempted: the sweep was told to stop; the workers have stopped, with a checkpoint each.
    """
    if config.workers < 1:
        raise UserError(f"launcher.workers={config.workers} must be at least 1")
    with _told_to_stop():
        return Sweep(in_order(given), config.workers).run()


@dataclass
class Worker:
    """One process and the run that it is at."""

    process: SpawnProcess
    pipe: Connection
    plan: Plan | None = None


@dataclass
class Sweep:
    """All runs of one command, or of one SLURM job, and how they stand.

    Attributes:
        plans: in order, sources first; count: workers at a time.
        skipped: ids done before; done: ids done now; failed: id to exit code and first line of the error.
    """

    plans: list[Plan]
    count: int
    skipped: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)
    failed: dict[str, tuple[int, str]] = field(default_factory=dict)
    workers: list[Worker] = field(default_factory=list)

    def run(self) -> int:
        """Does them; the exit code.

        Raises:
            Preempted: KeyboardInterrupt came, here or by a signal's handler; the workers have stopped.
        """
        self.skipped = {plan.id for plan in self.plans if plan.finished() is not None}
        self.waiting = [plan for plan in self.plans if plan.id not in self.skipped]
        self.total, self.began, self.code = len(self.waiting), time.monotonic(), code_now()
        self.console = stderr_console()
        for line in repeats(self.plans):
            print(line, flush=True)
        try:
            with self._shown():
                self._go()
        except KeyboardInterrupt as stop:
            raise Preempted("the sweep was told to stop; the same command goes on", str(stop)) from None
        finally:
            self._stop()
            self._summary()
        return max((code for code, _ in self.failed.values()), default=0)

    def _go(self) -> None:
        while self.waiting or any(worker.plan for worker in self.workers):
            self._hand_out()
            busy = {worker.pipe: worker for worker in self.workers if worker.plan}
            for pipe in wait(list(busy)) if busy else ():
                self._hear(busy[pipe])  # type: ignore[index]

    def _hand_out(self) -> None:
        left = {plan.id for plan in self.waiting} | {worker.plan.id for worker in self.workers if worker.plan}
        for plan in list(self.waiting):
            lost = next((source for source in plan.sources if source.id in self.failed), None)
            if lost is not None:
                self.waiting.remove(plan)
                self._failed(plan, 1, f"its source failed ({lost.setting}={lost.wanted})")
                left.discard(plan.id)
            elif not any(source.id in left for source in plan.sources) and (worker := self._free()) is not None:
                self.waiting.remove(plan)
                worker.plan = plan
                try:
                    worker.pipe.send(plan)
                except OSError:  # it died while idle; the broken pipe is heard like any other death
                    pass

    def _free(self) -> Worker | None:
        self.workers = [worker for worker in self.workers if worker.plan or worker.process.is_alive()]
        worker = next((worker for worker in self.workers if worker.plan is None), None)
        if worker is None and len(self.workers) < self.count:
            worker = _start(max(1, _cores() // self.count), self.code)
            self.workers.append(worker)
        return worker

    def _hear(self, worker: Worker) -> None:
        plan, worker.plan = worker.plan, None
        assert plan is not None
        try:
            code, line = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join()
            self.workers.remove(worker)
            exit_code = worker.process.exitcode or 0
            code, line = 1, f"killed by signal {-exit_code}" if exit_code < 0 else f"worker ended with {exit_code}"
            _mark(plan, line)
        if code:
            self._failed(plan, code, line)
        else:
            self.done.add(plan.id)
            self._note(f"done: {plan.label}  {line}")

    def _failed(self, plan: Plan, code: int, line: str) -> None:
        self.failed[plan.id] = (code, line)
        self._note(f"failed: {plan.label}: {line}")

    def _note(self, line: str) -> None:
        more = "" if self.console.is_terminal else f"  [{self._state()}]"
        self.console.print(line + more, markup=False, highlight=False, soft_wrap=True)

    def _state(self) -> str:
        over, running = len(self.done) + len(self.failed), sum(worker.plan is not None for worker in self.workers)
        left = clock((time.monotonic() - self.began) / over * (self.total - over)) if over else "-:--"
        return f"{len(self.done)}/{self.total} done, {running} running, {len(self.failed)} failed, {left} left"

    def _steps(self) -> str:
        """How far the runs under way are, as their own files say."""
        shown = []
        for worker in self.workers:
            if worker.plan is not None:
                status = worker.plan.folder.status()
                at = f" {status['step']}/{status['total']}" if {"step", "total"} <= set(status) else ""
                shown.append(f"{worker.plan.label}{at}")
        return "  ".join(shown)

    @contextmanager
    def _shown(self) -> Iterator[None]:
        if not self.console.is_terminal:
            yield
            return
        from rich.live import Live
        from rich.text import Text

        def line() -> Text:
            return Text(f"{self._state()}  {self._steps()}", no_wrap=True, overflow="ellipsis")

        with Live(get_renderable=line, console=self.console, transient=True, refresh_per_second=2):
            yield

    def _stop(self) -> None:
        for worker in self.workers:
            worker.pipe.close()
            if worker.plan is not None and worker.process.is_alive() and worker.process.pid:
                os.kill(worker.process.pid, signal.SIGINT)
        end = time.monotonic() + GRACE
        for worker in self.workers:
            worker.process.join(max(0.0, end - time.monotonic()))
            worker.process.kill()

    def _summary(self) -> None:
        from experiments.store.status import read_store, retry

        for plan in self.plans:
            if plan.id in self.failed:
                line = f"{plan.label} failed: {self.failed[plan.id][1]} (see {plan.folder.path})"
                print(f"elalora: {line}", file=sys.stderr)
        print(f"{len(self.done)} done, {len(self.failed)} failed, {len(self.skipped)} done before")
        paths = {str(plan.folder.path) for plan in self.plans if plan.id in self.failed}
        roots = {path.parents[1] for path in map(Path, paths) if path.exists()}
        for command in retry(run for root in sorted(roots) for run in read_store(root) if run.path in paths):
            print(f"again: {command}")


def repeats(plans: Sequence[Plan]) -> list[str]:
    """One line for each arm: runs that differ in their seed only."""
    counts: dict[str, int] = {}
    for plan in plans:
        arm, _, _ = plan.label.rpartition("-s")
        task, _, name = arm.partition("/")
        counts[f"{name} x {task}"] = counts.get(f"{name} x {task}", 0) + 1
    return [f"{arm}: {number} repeat{'' if number == 1 else 's'}" for arm, number in counts.items()]


def _mark(plan: Plan, line: str) -> None:
    """Writes into status.json what the dead worker could not."""
    if plan.folder.path.is_dir():
        now = {"state": "failed", "failure": "crash", "error": line, "heartbeat": time.time()}
        plan.folder.write("status.json", plan.folder.status() | now)


@contextmanager
def _told_to_stop() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


def _cores() -> int:
    """How many this process may use: a SLURM job's share of its node, which not every cluster enforces."""
    share = os.environ.get("SLURM_CPUS_ON_NODE")
    if share:
        return int(share)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(threads: int, code: Sequence[Any]) -> Worker:
    context = get_context("spawn")
    here, there = context.Pipe()
    before = dict(os.environ)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # inherited: a worker that starts cannot die of one
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))  # read when the worker imports torch
    try:
        process = context.Process(target=_work, args=(there, threads, code))
        process.start()
    finally:
        os.environ.clear()
        os.environ.update(before)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    there.close()
    return Worker(process, here)


def _work(pipe: Connection, threads: int, code: Sequence[Any]) -> None:
    """What a worker does until its parent closes the pipe; `code` is the sweep's, this process reads what is there."""
    os.setsid()  # ctrl-C reaches the parent only; a second signal would stop the run without a checkpoint
    obey_the_parent()
    say_if_changed(code, "the sweep was started")
    import torch

    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        while True:
            plan: Plan = pipe.recv()
            torch.set_num_threads(threads)  # a run before may have had its own `threads`
            with _logged(Path(plan.config.store.root) / ".logs" / f"{plan.folder.path.name}.log"):
                say_if_changed(code, "the sweep was started")  # modules are read from disk as they are needed
                answer = _do(plan)
            pipe.send(answer)
    except (EOFError, ConnectionError, KeyboardInterrupt):  # the parent closed the pipe, died, or said so
        return


def _do(plan: Plan) -> tuple[int, str]:
    from experiments.runs.run import RunFailed, headline, run

    try:
        return 0, headline(run(plan))
    except UserError as error:
        return 2, _first_line(error)
    except Preempted as error:
        return 1, f"stopped by a signal: {_first_line(error)}"
    except RunFailed as error:
        return 1, plan.folder.status().get("error") or _first_line(error)
    except Exception as error:  # noqa: BLE001 - whatever a run raises is that run's failure, not the worker's
        traceback.print_exc()
        return 1, f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: Any) -> str:
    return next(iter(str(error).splitlines()), "")


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Both output streams, those of libraries in C as well, go to the end of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
