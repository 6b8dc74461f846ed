"""Several processes that do one run together, started by torchrun or accelerate launch.

Only the main process reads and writes the store. What it finds and decides is sent to the others, and errors are
exchanged, so that every rank takes the same branch. An error on one rank while the others wait for its gradients cannot
be exchanged: that process exits, and the launcher ends the rest.

Objects go through torch.distributed. accelerate's gather_object and broadcast_object_list depend on a global state that
every run resets, and without it they silently stay in one process.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from elalora.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

Value = TypeVar("Value")


class OtherProcessFailed(RuntimeError):
    """Raised here because another rank failed."""


def world_size() -> int:
    """Number of processes that do a run together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process is the one that owns the files."""
    return world_size() == 1 or os.environ.get("RANK", "0") == "0"


def connect() -> None:
    """Connects the processes, once."""
    if world_size() == 1:
        return
    from accelerate import PartialState
    from torch import distributed

    if not distributed.is_initialized():
        PartialState(cpu=on_cpu())
        atexit.register(distributed.destroy_process_group)


def on_cpu() -> bool:
    """The `cpu` argument for accelerate, which otherwise takes each of several CPU processes for the only one."""
    import torch

    return world_size() > 1 and not torch.cuda.is_available()


def refuse_sharding() -> None:
    """Raises UserError if accelerate was started to split the model over processes; here each holds all of it.

    Nothing would fail: the plugin is ignored, and a model that needs it would run out of memory instead.
    """
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() in ("true", "1", "yes", "on"):
            raise UserError(
                f"accelerate was started with {name}, which splits a model over processes; runs here hold the whole "
                "model in each: launch without it, and let model.dtype=bfloat16, model.quantization=nf4 or "
                "trainer.gradient_checkpointing=true save memory"
            )


def exit_process(code: int) -> NoReturn:
    """Ends this process; as one of several, without finalising the interpreter.

    Finalising takes the interpreter away from running threads of torch, and sometimes one of them then aborts the
    process after all work is done.
    """
    if world_size() > 1:
        atexit._run_exitfuncs()  # os._exit skips them
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run_on_main(action: Callable[[], Value]) -> Value:
    """Runs `action` in the main process only and returns its value in every process.

    Raises:
        Exception: what `action` raised; in the other processes as UserError or OtherProcessFailed.
    """
    if world_size() == 1:
        return action()
    from torch import distributed

    value, error = _attempt(action) if is_main() else (None, None)
    message = [value, _described(error)]
    distributed.broadcast_object_list(message, src=0)
    _raise_first(error, message[1:])
    return message[0]  # type: ignore[return-value]


def run_everywhere(action: Callable[[], Value]) -> Value:
    """Runs `action` in every process and returns this process's value; if it fails in one, it fails in all.

    Raises:
        Exception: what `action` raised here; what it raised in another process, as UserError or OtherProcessFailed.
    """
    if world_size() == 1:
        return action()
    value, error = _attempt(action)
    _raise_first(error, gather(_described(error)))
    return value  # type: ignore[return-value]


def gather(value: Value) -> list[Value]:
    """The value of every process, in the order of their ranks."""
    if world_size() == 1:
        return [value]
    from torch import distributed

    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def average_gradients(grads: Sequence[Tensor], loss: Tensor, stop_requested: bool) -> tuple[Tensor, Tensor]:
    """Averages gradients and loss over the processes, in one message.

    Args:
        grads: overwritten by their means; same number and shapes in every process.
        loss: ().
        stop_requested: whether this process was asked to stop.

    Returns:
        The mean loss (), and a tensor (1,) above 0 if any process was asked to stop.
    """
    import torch
    from torch import distributed

    stop = torch.full((1,), float(stop_requested), device=loss.device)
    message = torch.cat([*(grad.reshape(-1) for grad in grads), loss.reshape(1), stop])
    distributed.all_reduce(message)
    message /= world_size()
    *means, mean_loss, any_stop = message.split([*(grad.numel() for grad in grads), 1, 1])
    for grad, mean in zip(grads, means, strict=True):
        grad.copy_(mean.view_as(grad))
    return mean_loss[0].clone(), any_stop


def print_once(line: str, error: bool = False) -> None:
    """Prints a line in the main process only."""
    if is_main():
        print(line, file=sys.stderr if error else sys.stdout)


def raised_everywhere(error: BaseException) -> bool:
    """Whether all processes raised this error together, so that they can start another run together."""
    return world_size() == 1 or getattr(error, "shared", False) or hasattr(error, "failure")


def _attempt(action: Callable[[], Value]) -> tuple[Value | None, Exception | None]:
    try:
        return action(), None
    except Exception as error:  # noqa: BLE001 - every error must reach the other processes
        return None, error


def _described(error: Exception | None) -> tuple[bool, str] | None:
    """Whether an error is the user's, and its text; a plain pair, because not every error can be pickled."""
    if error is None:
        return None
    user = isinstance(error, UserError)
    return user, str(error) if user else f"{type(error).__name__}: {error}"


def _raise_first(own: Exception | None, described: list[Any]) -> None:
    """Raises this process's error, or else the first one of the others, if there is any."""
    errors = [entry for entry in described if entry is not None]
    if not errors:
        return
    user, line = errors[0]
    raised = own if own is not None else UserError(line) if user else OtherProcessFailed(line)
    raised.shared = True  # type: ignore[attr-defined]
    raise raised
