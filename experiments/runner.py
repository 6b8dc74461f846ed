"""One run from its configuration to its result: skip what is done, else load, attach, train, read, store."""

from __future__ import annotations

import shutil
import sys
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

from omegaconf import DictConfig, OmegaConf

from elalora.errors import UserError
from experiments.plan import Plan, in_order, make_plan, stream
from experiments.processes import Together, agreed, count, cpu, first, gathered, is_shared, join, say, together
from experiments.signals import Preempted, Stop, listening
from experiments.store import Busy


class RunFailed(RuntimeError):
    """A run that stopped with an error; its status.json holds the traceback.

    Attributes:
        shared: whether all processes of the run raised it together.
    """

    shared = True


def run_all(configs: list[DictConfig]) -> int:
    """Plans every run and does them; see `run_plans`.

    Raises:
        UserError: a configuration is wrong; nothing has been started.
    """
    plans = [make_plan(config) for config in configs]
    return launcher_of(configs[0])(plans)


def launcher_of(config: DictConfig) -> Callable[[list[Plan]], int]:
    """What does plans, by the configuration's `launcher`: a function from plans to an exit code.

    torchrun's processes do the runs themselves, one after the other.
    """
    if config.launcher.kind == "basic" or config.launcher.kind == "local" and count() > 1:
        return run_plans
    from experiments.launch import local, slurm

    launcher = slurm if config.launcher.kind == "slurm" else local
    return partial(launcher.run_plans, config=OmegaConf.to_object(config.launcher))


def run_plans(given: list[Plan]) -> int:
    """Does every run, one after the other, sources first; a failure does not stop the others.

    Returns:
        0 when every run is done, 1 when one failed, 2 when one could not start because of what was asked for.
    """
    join()
    plans = in_order(given)
    if agreed(lambda: [plan.id for plan in plans]) != [plan.id for plan in plans]:
        raise UserError("the processes see different stores: store.root must be one folder for all of them")
    problems: list[Exception] = []
    for number, plan in enumerate(plans, start=1):
        if len(plans) > 1:
            say(f"[{number}/{len(plans)}] {plan.label}")
        try:
            run(plan)
        except (UserError, RunFailed) as error:
            say(f"elalora: {error}", error=True)
            problems.append(error)
            if not is_shared(error):
                print("elalora: this process failed alone, and no further run can start in it", file=sys.stderr)
                return 1
    if problems and len(plans) > 1:
        line = f"elalora: {len(plans) - len(problems)} of {len(plans)} runs are done; the same command does the rest"
        say(line, error=True)
    return max((2 if isinstance(problem, UserError) else 1 for problem in problems), default=0)


def run(plan: Plan) -> dict[str, Any]:
    """Does one run, or returns the stored result of a run that was done before.

    Raises:
        UserError: a mistake in what was asked for; nothing was written but, in a sweep, a status with the reason.
        RunFailed: the run stopped; what it wrote is kept, and the same command goes on from its checkpoint.
        Preempted: this process was asked to stop, and no further run is to be started in it.
    """
    before = agreed(lambda: _done_before(plan))
    if before is not None:
        return before
    try:
        with listening() as stop, ExitStack() as held:
            prepared = together(lambda: prepare(plan))
            if asked := next(filter(None, gathered(stop.signal)), None):
                raise Preempted(f"{asked} before the first step", stop.signal)
            # another command may have finished it since the first look
            result = agreed(lambda: _take(plan, held)) or _train(plan, stop, *prepared)
    except KeyboardInterrupt:
        raise
    except UserError as error:
        _note_refusal(plan, error)
        raise
    except Preempted as error:
        raise Preempted(f"{plan.label} stopped: {error}; the same command goes on", error.signal) from error
    except (Busy, Together) as error:  # what another process failed at is told by that one
        raise _failed(str(error), error) from error
    except Exception as error:
        if not (first() and plan.folder.path.exists()):  # there is no status.json to keep the traceback
            traceback.print_exc()
        line = f"{plan.label} failed: {type(error).__name__}: {error} (see {plan.folder.path})"
        raise _failed(line, error) from error
    say(f"done: {plan.folder.path}  {headline(result)}")
    if stop.signal is not None:
        raise Preempted(f"{plan.label} is done, and {stop.signal} asked to stop", stop.signal)
    return result


def _note_refusal(plan: Plan, error: UserError) -> None:
    """Leaves the reason in the run's folder, for `status` and the tables: nobody watches a worker or a job.

    A run that was started alone writes nothing: its line is on the screen.
    """
    if plan.config.launcher.kind == "basic" or not first():
        return
    with suppress(Busy, UserError, OSError):  # the store itself may be what is wrong
        plan.folder.refuse(str(error), OmegaConf.to_yaml(plan.config, resolve=True))


def _failed(line: str, cause: Exception) -> RunFailed:
    error = RunFailed(line)
    error.shared = is_shared(cause)
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


def prepare(plan: Plan) -> tuple[Any, ...]:
    """Loads data, tokenizer and model and attaches the method: every user's mistake shows here, before a write."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    from elalora.targets import matrices_in, patterns_in
    from experiments.cpu import use_cpu
    from experiments.kept import data_of, processor_of, splits_of
    from experiments.models import check_fit, load_model
    from experiments.trainer import run_length

    config = plan.config
    use_cpu(config.threads)
    AcceleratorState._reset_state(True)  # the state is a singleton, and precision may differ between runs
    accelerator = Accelerator(mixed_precision="bf16" if config.trainer.precision == "bf16" else "no", cpu=cpu())
    task, seed = OmegaConf.to_object(config.task), config.seed
    data, processor = data_of(plan), processor_of(plan)
    model, head = load_model(config.model, task, stream(seed, "head"))
    check_fit(config.model, task, model, processor)
    train, select, report = splits_of(plan)
    model = model.to(accelerator.device)
    method = plan.method(plan.method_config, plan.budget)
    _take_pattern(plan, method)
    total = run_length(config.trainer, len(train.data))
    targets = list(config.model.targets)
    expected = config.model.matrices or matrices_in(model, targets)
    model = method.attach(model, patterns_in(model, targets), total, keep=head, seed=stream(seed, "adapter"))
    _check_matrices(expected, method)
    _start(plan, method)
    return accelerator, data, processor, train, select, report, model, method


def _check_matrices(expected: int | None, method: Any) -> None:
    found = len(method.ranks())
    if method.capabilities.ranked and expected and found != expected:
        raise UserError(
            f"model.targets match {found} matrices, {expected} are expected; "
            f"type model.matrices={found} if that is meant"
        )


def _take_pattern(plan: Plan, method: Any) -> None:
    """Hands the transplant its rank pattern, from the run that `method.ranks_from` names."""
    source = plan.source("method.ranks_from")
    if source is not None:
        final = source.finished().result()["ranks"]["final"]
        method.pattern = {name: int(rank) for name, rank in final.items()}


def _start(plan: Plan, method: Any) -> None:
    """Starts the adapter from the update of the run that `init_from` names."""
    source = plan.source("init_from")
    if source is not None:
        from elalora.export import read_factors

        method.start_from(read_factors(source.finished().path / "adapter"))


def _train(plan: Plan, stop: Stop, *prepared: Any) -> dict[str, Any]:
    import torch

    from experiments.display import RunDisplay, silent_console
    from experiments.readout import make_readout
    from experiments.tracking import make_tracker
    from experiments.trainer import Trainer

    accelerator, data, processor, train, select, report, model, method = prepared
    config, folder = plan.config, plan.folder
    tracker = make_tracker(OmegaConf.to_object(config.tracking))
    total = method.total_steps
    if accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()  # of the run before this one in the process
    with RunDisplay(plan.label, total, None if first() else silent_console()) as display:
        readout = make_readout(OmegaConf.to_object(config.task), processor, model)
        made = partial(
            Trainer, config.trainer, readout, config.seed, method, model, train, select, report, folder, accelerator,
            display, tracker, config.store.checkpoint_every, plan.id, stop,
        )  # fmt: skip
        trainer = together(made)
        start_ranks = method.ranks()
        trainer.resume()
        agreed(lambda: _write_facts(plan))
        tracker.start(folder.path, plan.id, plan.label, plan.identity, config.task.name)
        outcome = trainer.run()
        reading = trainer.evaluate(report, total)
        chosen = trainer.evaluate(select, total) if select is not None and select.name != report.name else None

    def stored() -> dict[str, Any]:
        from experiments.results import assemble, export_adapter, store_predictions

        export_adapter(plan, method, model)
        result = assemble(plan, data, train, method, model, outcome, start_ranks, reading, chosen)
        store_predictions(folder.path, reading, OmegaConf.to_object(config.task))
        tracker.finish(result)
        folder.sync()
        folder.write("result.json", result)
        _drop_checkpoints(plan)
        return result

    return agreed(stored)


def _write_facts(plan: Plan) -> None:
    """config.yaml and manifest.json: what was asked for, and what it ran on."""
    from experiments.manifest import manifest
    from experiments.store import write_whole

    write_whole(plan.folder.path / "config.yaml", OmegaConf.to_yaml(plan.config, resolve=True))
    plan.folder.write("manifest.json", manifest())


def _drop_checkpoints(plan: Plan) -> None:
    if not plan.config.store.keep_checkpoint:
        shutil.rmtree(plan.folder.path / "checkpoint", ignore_errors=True)
