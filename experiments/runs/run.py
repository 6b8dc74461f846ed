"""One run from its configuration to its result: skip what is done, else load, attach, train, read, store."""

from __future__ import annotations

import shutil
import sys
import traceback
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

from omegaconf import OmegaConf

from elalora.errors import UserError
from experiments.runs.plan import Plan, in_order
from experiments.runs.prepare import prepare
from experiments.runtime.distributed import (
    OtherProcessFailed,
    connect,
    gather,
    is_main,
    print_once,
    raised_everywhere,
    run_everywhere,
    run_on_main,
)
from experiments.runtime.signals import Preempted, Stop, listening
from experiments.store.folder import Busy


class RunFailed(RuntimeError):
    """A run that stopped with an error; its status.json holds the traceback.

    Attributes:
        shared: whether all processes of the run raised it together.
    """

    shared = True


def run_plans(given: list[Plan]) -> int:
    """Does every run, one after the other, sources first; a failure does not stop the others.

    Returns:
        0 when every run is done, 1 when one failed, 2 when one could not start because of what was asked for.
    """
    connect()
    plans = in_order(given)
    if run_on_main(lambda: [plan.id for plan in plans]) != [plan.id for plan in plans]:
        raise UserError("the processes see different stores: store.root must be one folder for all of them")
    problems: list[Exception] = []
    for number, plan in enumerate(plans, start=1):
        if len(plans) > 1:
            print_once(f"[{number}/{len(plans)}] {plan.label}")
        try:
            run(plan)
        except (UserError, RunFailed) as error:
            print_once(f"elalora: {error}", error=True)
            problems.append(error)
            if not raised_everywhere(error):
                print("elalora: this process failed alone, and no further run can start in it", file=sys.stderr)
                return 1
    if problems and len(plans) > 1:
        line = f"elalora: {len(plans) - len(problems)} of {len(plans)} runs are done; the same command does the rest"
        print_once(line, error=True)
    return max((2 if isinstance(problem, UserError) else 1 for problem in problems), default=0)


def run(plan: Plan) -> dict[str, Any]:
    """Does one run, or returns the stored result of a run that was done before.

    Raises:
        UserError: a mistake in what was asked for; nothing was written but, in a sweep, a status with the reason.
        RunFailed: the run stopped; what it wrote is kept, and the same command goes on from its checkpoint.
        Preempted: this process was asked to stop, and no further run is to be started in it.
    """
    before = run_on_main(lambda: _done_before(plan))
    if before is not None:
        return before
    try:
        with listening() as stop, ExitStack() as held:
            prepared = run_everywhere(lambda: prepare(plan))
            if asked := next(filter(None, gather(stop.signal)), None):
                raise Preempted(f"{asked} before the first step", stop.signal)
            # another command may have finished it since the first look
            result = run_on_main(lambda: _take(plan, held)) or _train(plan, stop, *prepared)
    except KeyboardInterrupt:
        raise
    except UserError as error:
        _note_refusal(plan, error)
        raise
    except Preempted as error:
        raise Preempted(f"{plan.label} stopped: {error}; the same command goes on", error.signal) from error
    except (Busy, OtherProcessFailed) as error:  # what another process failed at is told by that one
        raise _failed(str(error), error) from error
    except Exception as error:
        if not (is_main() and plan.folder.path.exists()):  # there is no status.json to keep the traceback
            traceback.print_exc()
        line = f"{plan.label} failed: {type(error).__name__}: {error} (see {plan.folder.path})"
        raise _failed(line, error) from error
    print_once(f"done: {plan.folder.path}  {headline(result)}")
    if stop.signal is not None:
        raise Preempted(f"{plan.label} is done, and {stop.signal} asked to stop", stop.signal)
    return result


def _note_refusal(plan: Plan, error: UserError) -> None:
    """Leaves the reason in the run's folder, for `status` and the tables: nobody watches a worker or a job.

    A run that was started alone writes nothing: its line is on the screen.
    """
    if plan.config.launcher.kind == "basic" or not is_main():
        return
    with suppress(Busy, UserError, OSError):  # the store itself may be what is wrong
        plan.folder.refuse(str(error), OmegaConf.to_yaml(plan.config, resolve=True))


def _failed(line: str, cause: Exception) -> RunFailed:
    error = RunFailed(line)
    error.shared = raised_everywhere(cause)
    return error


def _done_before(plan: Plan) -> dict[str, Any] | None:
    """The stored result of a run that was done before, which is told."""
    done = plan.finished()
    if done is None:
        return None
    _tidy(plan)
    result = done.result()
    print(f"done before (commit {(result.get('commit') or 'unknown')[:10]}): {done.path}  {headline(result)}")
    return result


def _take(plan: Plan, held: ExitStack) -> dict[str, Any] | None:
    """Holds the run's folder until `held` is left; its result where there is one already."""
    held.enter_context(plan.folder.working())
    return plan.folder.result() if plan.folder.done else None


def _tidy(plan: Plan) -> None:
    """Ends what a process that was killed right after writing its result left: status.json and the checkpoints."""
    folder = plan.folder
    if not folder.done or folder.status().get("state") == "done":
        return
    try:
        with folder.working():
            _drop_checkpoints(plan)
    except (Busy, UserError):  # somebody else's store, or its own process does it just now
        pass


def headline(result: dict[str, Any]) -> str:
    """The primary score of a result, for one line."""
    report = result["readings"]["last"]["report"]
    return f"{report['split']} {result['metric']} {report['metrics'][result['metric']]:.2f}"


def _train(plan: Plan, stop: Stop, *prepared: Any) -> dict[str, Any]:
    import torch

    from experiments.runtime.display import RunDisplay, silent_console
    from experiments.training.readout import make_readout
    from experiments.training.tracking import make_tracker
    from experiments.training.trainer import Trainer

    accelerator, data, processor, train, select, report, model, method = prepared
    config, folder = plan.config, plan.folder
    tracker = make_tracker(OmegaConf.to_object(config.tracking))
    total = method.total_steps
    if accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()  # of the run before this one in the process
    with RunDisplay(plan.label, total, None if is_main() else silent_console()) as display:
        readout = make_readout(OmegaConf.to_object(config.task), processor, model)
        made = partial(
            Trainer, config.trainer, readout, config.seed, method, model, train, select, report, folder, accelerator,
            display, tracker, config.store.checkpoint_every, plan.id, stop,
        )  # fmt: skip
        trainer = run_everywhere(made)
        start_ranks = method.ranks()
        trainer.resume()
        run_on_main(lambda: _write_facts(plan))
        tracker.start(folder.path, plan.id, plan.label, plan.identity, config.task.name)
        outcome = trainer.run()
        reading = trainer.evaluate(report, total)
        chosen = trainer.evaluate(select, total) if select is not None and select.name != report.name else None

    def stored() -> dict[str, Any]:
        from experiments.runs.result import assemble, export_adapter, store_predictions

        export_adapter(plan, method, model)
        result = assemble(plan, data, train, method, model, outcome, start_ranks, reading, chosen)
        store_predictions(folder.path, reading, OmegaConf.to_object(config.task))
        tracker.finish(result)
        folder.sync()
        folder.write("result.json", result)
        _drop_checkpoints(plan)
        return result

    return run_on_main(stored)


def _write_facts(plan: Plan) -> None:
    """config.yaml and manifest.json: what was asked for, and what it ran on."""
    from experiments.runtime.files import write_whole
    from experiments.runtime.manifest import manifest

    write_whole(plan.folder.path / "config.yaml", OmegaConf.to_yaml(plan.config, resolve=True))
    plan.folder.write("manifest.json", manifest())


def _drop_checkpoints(plan: Plan) -> None:
    if not plan.config.store.keep_checkpoint:
        shutil.rmtree(plan.folder.path / "checkpoint", ignore_errors=True)
