"""Runs in supervised worker processes: hydra/launcher=local, the default of every sweep, and inside a SLURM job.

The parent only hands out runs and watches. A worker does many runs, one after another, so imports are paid once. If it
dies (killed, out of memory), only its current run fails, and a new worker takes its place.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elalora.errors import UserError, first_line
from experiments.config.schema import LauncherConfig
from experiments.runs.plan import Plan, in_order
from experiments.runtime.display import clock, live_line, stderr_console
from experiments.runtime.manifest import code_now, loaded_code, warn_if_changed
from experiments.runtime.signals import SIGNALS, Preempted, interrupting, obey_the_parent
from experiments.runtime.text import counted

if TYPE_CHECKING:
    from rich.progress import Task

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
GRACE = 60.0  # seconds a stopping worker has for its checkpoint


def run_plans(plans: Sequence[Plan], config: LauncherConfig) -> int:
    """Does every run in `config.workers` processes, sources first; a failure does not stop the others.

    Returns:
        0 if every run is done, 1 if one failed, 2 if one could not start because of a user's mistake.

    Raises:
        UserError: launcher.workers is out of range.
        Preempted: the sweep was asked to stop; each worker has written a checkpoint and stopped.
    """
    if config.workers < 1:
        raise UserError(f"launcher.workers={config.workers} must be at least 1")
    with interrupting():
        return Sweep(in_order(plans), config.workers).run()


@dataclass
class Worker:
    """One process and its current run."""

    process: SpawnProcess
    pipe: Connection
    plan: Plan | None = None


@dataclass
class Sweep:
    """All runs of one command or of one SLURM job, and their state."""

    plans: list[Plan]  # sources first
    count: int  # of workers
    skipped: set[str] = field(default_factory=set)  # ids of runs that were done before
    done: set[str] = field(default_factory=set)  # ids of runs that this sweep did
    failed: dict[str, tuple[int, str]] = field(default_factory=dict)  # id -> exit code, first line of the error
    workers: list[Worker] = field(default_factory=list)

    def run(self) -> int:
        """Does the runs that are not done; returns the exit code.

        Raises:
            Preempted: after a KeyboardInterrupt; the workers have stopped.
        """
        self.skipped = {plan.id for plan in self.plans if plan.finished() is not None}
        self.waiting = [plan for plan in self.plans if plan.id not in self.skipped]
        self.total, self.began, self.code = len(self.waiting), time.monotonic(), code_now()
        self.console = stderr_console()
        for line in repeats(self.plans):
            print(line, flush=True)
        try:
            with self._live_line():
                self._work_off()
        except KeyboardInterrupt as stop:
            raise Preempted("the sweep was stopped; run the same command again to resume", str(stop)) from None
        finally:
            self._stop()
            self._summary()
        return max((code for code, _ in self.failed.values()), default=0)

    def _work_off(self) -> None:
        while self.waiting or any(worker.plan for worker in self.workers):
            self._hand_out()
            busy = {worker.pipe: worker for worker in self.workers if worker.plan}
            for pipe in wait(list(busy)) if busy else ():
                self._receive(busy[pipe])  # type: ignore[index]

    def _hand_out(self) -> None:
        open_ids = {plan.id for plan in self.waiting} | {worker.plan.id for worker in self.workers if worker.plan}
        for plan in list(self.waiting):
            lost = next((source for source in plan.sources if source.id in self.failed), None)
            if lost is not None:
                self.waiting.remove(plan)
                self._fail(plan, 1, f"the run it depends on failed ({lost.setting}={lost.value})")
                open_ids.discard(plan.id)
            elif not any(source.id in open_ids for source in plan.sources) and (worker := self._idle_worker()):
                self.waiting.remove(plan)
                worker.plan = plan
                with suppress(OSError):  # it died while idle; `_receive` handles it like any other death
                    worker.pipe.send(plan)

    def _idle_worker(self) -> Worker | None:
        """A worker without a run, started if there is room for one more."""
        self.workers = [worker for worker in self.workers if worker.plan or worker.process.is_alive()]
        worker = next((worker for worker in self.workers if worker.plan is None), None)
        if worker is None and len(self.workers) < self.count:
            worker = _start(max(1, _cores() // self.count), self.code)
            self.workers.append(worker)
        return worker

    def _receive(self, worker: Worker) -> None:
        """Takes a run's outcome from its worker, or notes that the worker died."""
        plan, worker.plan = worker.plan, None
        assert plan is not None
        try:
            code, line = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join()
            self.workers.remove(worker)
            exit_code = worker.process.exitcode or 0
            code, line = 1, f"killed by signal {-exit_code}" if exit_code < 0 else f"worker ended with {exit_code}"
            if plan.folder.path.is_dir():  # the dead worker could not write this status
                status = {"state": "failed", "failure": "crash", "error": line, "heartbeat": time.time()}
                plan.folder.write("status.json", plan.folder.status() | status)
        if code:
            self._fail(plan, code, line)
        else:
            self.done.add(plan.id)
            self._note(f"done: {plan.label}  {line}")

    def _fail(self, plan: Plan, code: int, line: str) -> None:
        self.failed[plan.id] = (code, line)
        self._note(f"failed: {plan.label}: {line}")

    def _note(self, line: str) -> None:
        state = "" if self.console.is_terminal else f"  [{self._state()}]"
        self.console.print(line + state, markup=False, highlight=False, soft_wrap=True)

    def _state(self) -> str:
        ended, running = len(self.done) + len(self.failed), sum(worker.plan is not None for worker in self.workers)
        left = clock((time.monotonic() - self.began) / ended * (self.total - ended)) if ended else "-:--"
        return f"{len(self.done)}/{self.total} done, {running} running, {len(self.failed)} failed, {left} left"

    def _steps(self) -> str:
        """The steps of the current runs, from their status files."""
        words = []
        for plan in [worker.plan for worker in self.workers if worker.plan]:
            status = plan.folder.status()
            at = f" {status['step']}/{status['total']}" if {"step", "total"} <= set(status) else ""
            words.append(plan.label + at)
        return "  ".join(words)

    def _live_line(self) -> AbstractContextManager[object]:
        if not self.console.is_terminal:
            return nullcontext()
        from rich.text import Text

        def line(task: Task) -> Text:
            task.completed = len(self.done) + len(self.failed)
            return Text(f"{self._state()}  {self._steps()}")

        return live_line(self.console, self.total, line)

    def _stop(self) -> None:
        for worker in self.workers:
            worker.pipe.close()
            if worker.plan is not None and worker.process.is_alive() and worker.process.pid:
                os.kill(worker.process.pid, signal.SIGINT)
        end = time.monotonic() + GRACE
        try:
            for worker in self.workers:
                worker.process.join(max(0.0, end - time.monotonic()))
        finally:  # also when a second signal asks to stop at once
            for worker in self.workers:
                worker.process.kill()

    def _summary(self) -> None:
        from experiments.store.status import read_store, retry

        failed = {plan.folder.path: plan for plan in self.plans if plan.id in self.failed}
        alike: dict[str, list[Path]] = {}
        for path, plan in failed.items():
            alike.setdefault(self.failed[plan.id][1], []).append(path)
        for line, paths in alike.items():
            more = f" and {counted(len(paths) - 1, 'more run')}" if len(paths) > 1 else ""
            print(f"elalora: {failed[paths[0]].label}{more} failed: {line} (see {paths[0]})", file=sys.stderr)
        print(f"{len(self.done)} done, {len(self.failed)} failed, {len(self.skipped)} done before")
        roots = {path.parents[1] for path in failed if path.exists()}
        runs = [run for root in sorted(roots) for run in read_store(root) if Path(run.path) in failed]
        for command, others in retry(runs):
            print(f"again: {shlex.join([*shlex.split(command), *others])}")


def repeats(plans: Sequence[Plan]) -> list[str]:
    """One line for each arm and task, whose runs differ in the seed only."""
    counts = Counter(f"{plan.name.arm} x {plan.task}" for plan in plans)
    return [f"{arm}: {counted(number, 'repeat')}" for arm, number in counts.items()]


def _cores() -> int:
    """Cores this process may use; in a SLURM job its share of the node, which not every cluster enforces."""
    if share := os.environ.get("SLURM_CPUS_ON_NODE"):
        return int(share)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(threads: int, code: Sequence[Any]) -> Worker:
    context = get_context("spawn")
    own_end, worker_end = context.Pipe()
    environment = dict(os.environ)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # inherited: no signal can kill a worker while it starts
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))  # read when the worker imports torch
    try:
        process = context.Process(target=_work, args=(worker_end, threads, code))
        process.start()
    finally:
        os.environ.clear()
        os.environ.update(environment)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    worker_end.close()
    return Worker(process, own_end)


def _work(pipe: Connection, threads: int, code: Sequence[Any]) -> None:
    """A worker's loop until its parent closes the pipe; `code` is the commit that the sweep was started from."""
    os.setsid()  # Ctrl-C must reach the parent only: a second signal would stop the run without a checkpoint
    obey_the_parent()
    loaded_code()
    warn_if_changed(code, "the sweep was started")
    import torch

    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        while True:
            plan: Plan = pipe.recv()
            torch.set_num_threads(threads)  # an earlier run may have set `threads`
            with _logged(Path(plan.config.store.root) / ".logs" / f"{plan.folder.path.name}.log"):
                warn_if_changed(code, "the sweep was started")  # some modules are imported only now
                outcome = _do(plan)
            pipe.send(outcome)
    except (EOFError, ConnectionError, KeyboardInterrupt):  # the parent closed the pipe, died, or sent SIGINT
        return


def _do(plan: Plan) -> tuple[int, str]:
    """Exit code, and the score or the error in one line."""
    from experiments.runs.run import RunFailed, headline, run

    try:
        return 0, headline(run(plan))
    except UserError as error:
        return 2, first_line(error)
    except Preempted as error:
        inner = error.__cause__ if isinstance(error.__cause__, Exception) else error  # without the run's name
        return 1, f"stopped by a signal: {first_line(inner)}"
    except RunFailed as error:
        return 1, plan.folder.status().get("error") or (error.reason.splitlines() or [first_line(error)])[0]
    except Exception as error:  # noqa: BLE001 - any error is this run's failure, not the worker's
        traceback.print_exc()
        return 1, f"{type(error).__name__}: {first_line(error)}"


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Appends both output streams to a file, including what C libraries write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
