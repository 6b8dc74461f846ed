"""Runs a plan from its configuration to its result: skip if done, else prepare, train, evaluate and store."""

from __future__ import annotations

import json
import shutil
import sys
import traceback
from contextlib import ExitStack, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from elalora.errors import UserError
from experiments.config.task import NOT_RUN
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
from experiments.runtime.files import write_whole
from experiments.runtime.signals import Preempted, Stop, listening
from experiments.store.finished import DID_NOT_LEARN
from experiments.store.lock import Busy, Lost
from experiments.training.stability import UNSTABLE

if TYPE_CHECKING:
    from experiments.training.progress import Prepared


class RunFailed(RuntimeError):
    """A run that stopped with an error; its status.json has the traceback.

    Attributes:
        shared: whether all processes of the run raised it together.
        reason: the error without the run's name and folder, for lines that have both.
    """

    shared = True
    reason = ""


def run_plans(plans: list[Plan]) -> int:
    """Runs every plan, one after the other, sources first; a failure does not stop the others.

    Returns:
        0 when every run is done, 1 when one failed, 2 when one was refused because of the user's settings.
    """
    connect()
    plans = in_order(plans)
    if run_on_main(lambda: [plan.id for plan in plans]) != [plan.id for plan in plans]:
        raise UserError("the processes see different stores: set store.root to one folder that all of them share")
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
                print("elalora: one process of the distributed run failed; stopping this process", file=sys.stderr)
                return 1
    if problems and len(plans) > 1:
        done = f"{len(plans) - len(problems)} of {len(plans)} runs are done"
        line = f"elalora: {done}; run the same command again for the rest"
        print_once(line, error=True)
    return max((2 if isinstance(problem, UserError) else 1 for problem in problems), default=0)


def run(plan: Plan) -> dict[str, Any]:
    """Returns the result of a run, which is trained unless it is stored.

    Raises:
        UserError: a mistake in the settings; nothing was written except, in a sweep, a status with the reason.
        RunFailed: the run stopped; its files are kept, and the same command resumes from its checkpoint.
        Preempted: this process was asked to stop; start no further run in it.
    """
    stored = run_on_main(lambda: _stored(plan))
    if stored is not None:
        return stored
    try:
        with listening() as stop, ExitStack() as held:
            prepared = run_everywhere(lambda: _loaded(plan, stop))
            if asked := next(filter(None, gather(stop.signal)), None):
                raise Preempted(f"{asked} before the first step", stop.signal)
            assert prepared is not None
            # another command may have finished it in the meantime
            result = run_on_main(lambda: _hold(plan, held)) or _train(plan, prepared, stop)
    except KeyboardInterrupt:
        raise
    except UserError as error:
        _write_refusal(plan, error)
        raise
    except Preempted as error:
        line = f"{plan.label} was stopped: {error}; run the same command again to resume"
        raise Preempted(line, error.signal) from error
    except (Busy, Lost, OtherProcessFailed) as error:  # the other process reports its own error
        raise _failed(str(error), str(error), error) from error
    except Exception as error:
        if not (is_main() and plan.folder.path.exists()):  # no status.json will keep the traceback
            traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
        raise _failed(f"{plan.label} failed: {reason} (see {plan.folder.path})", reason, error) from error
    print_once(f"done: {plan.folder.path}  {headline(result)}")
    if NOT_RUN in result["flags"]:
        print_once(f"pass@1 of its generated code: python -m experiments pass_at_1 {plan.folder.path} --execute")
    if DID_NOT_LEARN in result["flags"]:
        print_once(
            f"elalora: {plan.label} did not learn: its training loss ended at that of a constant answer. Train "
            f"longer, or change trainer.lr={plan.config.trainer.lr:g} (in short runs 1e-3 suits LoRA, 3e-3 methods "
            "with singular values)",
            error=True,
        )
    elif UNSTABLE in result["flags"]:
        print_once(
            f"elalora: {plan.label} was unstable: for more than a tenth of its steps its training loss lay above that "
            f"of a constant answer. Lower trainer.lr={plan.config.trainer.lr:g}, or lengthen trainer.warmup",
            error=True,
        )
    if stop.signal is not None:
        raise Preempted(f"{plan.label} is done, and {stop.signal} asked to stop", stop.signal)
    return result


def _loaded(plan: Plan, stop: Stop) -> Prepared | None:
    """Everything a run needs before its first step; None if a signal ended the loading."""
    prepared = None
    with stop.at_once():
        prepared = prepare(plan)
    return prepared


def _write_refusal(plan: Plan, error: UserError) -> None:
    """Writes the reason to status.json, for `status` and the tables: nobody watches a worker or a job.

    A run that was started alone writes nothing, because the user reads the message on the screen.
    """
    if plan.config.launcher.kind == "basic" or not is_main():
        return
    with suppress(Busy, UserError, OSError):  # the store itself may be what is wrong
        plan.folder.refuse(str(error), OmegaConf.to_yaml(plan.config, resolve=True))


def _failed(line: str, reason: str, cause: Exception) -> RunFailed:
    error = RunFailed(line)
    error.reason = reason
    error.shared = raised_everywhere(cause)
    return error


def _stored(plan: Plan) -> dict[str, Any] | None:
    """The result of a run that was done before, with a line that says so."""
    done = plan.finished()
    if done is None:
        return None
    _tidy(plan)
    result = done.result()
    print(f"done before (commit {(result.get('commit') or 'unknown')[:10]}): {done.path}  {headline(result)}")
    return result


def _hold(plan: Plan, held: ExitStack) -> dict[str, Any] | None:
    """Locks the run's folder until `held` is left; returns the result if there is one already."""
    held.enter_context(plan.folder.working())
    return plan.folder.result() if plan.folder.done else None


def _tidy(plan: Plan) -> None:
    """Cleans up after a process that was killed right after writing its result: status.json and checkpoints."""
    folder = plan.folder
    if not folder.done or folder.status().get("state") == "done":
        return
    try:
        with folder.working():
            _drop_checkpoints(plan)
    except (Busy, UserError):  # a read-only store, or another process is cleaning up
        pass


def headline(result: dict[str, Any]) -> str:
    """The primary score of a result and its training items, for one line."""
    report, data = result["readings"]["last"]["report"], result["data"]
    score = f"{report['split']} {result['metric']} {report['metrics'][result['metric']]:.2f}"
    if "available_items" not in data:  # written before results had it
        return score
    return f"{score}, {data['train_items']:,} of {data['available_items']:,} training items"


def _train(plan: Plan, prepared: Prepared, stop: Stop) -> dict[str, Any]:
    import torch

    from experiments.runtime.display import RunDisplay, silent_console
    from experiments.training.recorder import Recorder
    from experiments.training.resume import Checkpoints
    from experiments.training.tracking import make_tracker
    from experiments.training.trainer import Trainer

    config, folder = plan.config, plan.folder
    tracker = make_tracker(OmegaConf.to_object(config.tracking))
    checkpoints = Checkpoints(folder, plan.id, config.store.checkpoint_every)
    if prepared.accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()  # of the run before this one in the process
    splits, console = prepared.splits, None if is_main() else silent_console()
    items = f"{len(splits.train.data):,} of {splits.available:,} training items"
    with RunDisplay(plan.label, prepared.method.total_steps, console, items) as display:
        recorder = Recorder(folder, display, tracker)
        trainer = run_everywhere(lambda: Trainer(prepared, config.trainer, config.seed, recorder, checkpoints, stop))
        trainer.resume()
        run_on_main(lambda: _write_facts(plan, prepared.read, trainer.state.step))
        tracker.start(folder.path, plan.id, plan.label, plan.identity, config.task.name)
        trainer.run()
        trainer.evaluator.read_last()

    def store() -> dict[str, Any]:
        from experiments.runs.result import assemble, export_adapter, store_predictions

        export_adapter(plan, prepared)
        result = assemble(plan, prepared, trainer.state)
        store_predictions(plan, prepared, trainer.state)
        tracker.finish(result)
        result["files"] = {name: asdict(total) for name, total in folder.sync().items()}
        folder.write("result.json", result)
        _drop_checkpoints(plan)
        return result

    return run_on_main(store)


def _write_facts(plan: Plan, read: dict[str, Any], step: int) -> None:
    """Writes config.yaml and manifest.json: the settings; model files, machine and versions from this step on."""
    from experiments.runtime.manifest import manifest

    path, before = plan.folder.path / "manifest.json", None
    with suppress(OSError, ValueError):
        before = json.loads(path.read_text(encoding="utf-8"))
    write_whole(plan.folder.path / "config.yaml", OmegaConf.to_yaml(plan.config, resolve=True))
    plan.folder.write("manifest.json", manifest(step, before if isinstance(before, dict) else None) | {"model": read})


def _drop_checkpoints(plan: Plan) -> None:
    if not plan.config.store.keep_checkpoint:
        shutil.rmtree(plan.folder.path / "checkpoint", ignore_errors=True)
