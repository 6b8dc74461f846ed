"""Several processes that do one run together, as torchrun and accelerate launch start them.

What is unusual: the first process alone reads and writes the store. What it finds and decides is handed to the others,
and so is an error, so that all of them always take the same way. An error in one process alone cannot be told while
the others wait for its numbers: that process leaves, and the launcher ends the rest.
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
    """Another process of this run failed and told so."""


def world_size() -> int:
    """How many processes do a run together."""
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
        atexit.register(_leave)


def on_cpu() -> bool:
    """Whether accelerate must be told that the processes work on the CPU; alone it would take each for the only one."""
    import torch

    return world_size() > 1 and not torch.cuda.is_available()


def exit_process(code: int) -> NoReturn:
    """Ends this process; where there are several, without the interpreter's own end.

    That takes the interpreter away from threads of torch that still want it, and now and then one of them aborts the
    process after all work is done.
    """
    if world_size() > 1:
        atexit._run_exitfuncs()  # what the interpreter would still do
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _leave() -> None:
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def run_on_main(action: Callable[[], Value]) -> Value:
    """What `action` gives in the first process, in every process; it runs nowhere else.

    Raises:
        Exception: what it raised there; UserError and others as themselves in the first process, in the others
            UserError or Together.
    """
    if world_size() == 1:
        return action()
    from torch import distributed

    value, error = None, None
    if is_main():
        value, error = _tried(action)
    box = [(value, _told(error))]
    distributed.broadcast_object_list(box, src=0)
    _raise(error, [box[0][1]])
    return box[0][0]  # type: ignore[return-value]


def run_everywhere(action: Callable[[], Value]) -> Value:
    """What `action` gives in this process; where it fails in one process, it fails in all.

    Raises:
        Exception: what it raised here; what it raised in another process, as UserError or Together.
    """
    if world_size() == 1:
        return action()
    value, error = _tried(action)
    _raise(error, gather(_told(error)))
    return value  # type: ignore[return-value]


def gather(value: Value) -> list[Value]:
    """The value of every process, in their order."""
    if world_size() == 1:
        return [value]
    from torch import distributed

    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def averaged(grads: Sequence[Tensor], loss: Tensor, wish: bool) -> tuple[Tensor, Tensor]:
    """Means over the processes, in one message.

    Args:
        grads: replaced by their means, in place; as many and as large in every process.
        loss: (); wish: whether this process was asked to stop.

    Returns:
        The mean loss (), and a tensor (1,) above 0 where a process was asked to stop.
    """
    import torch
    from torch import distributed

    asked = torch.full((1,), float(wish), device=loss.device)
    message = torch.cat([*(grad.reshape(-1) for grad in grads), loss.reshape(1), asked])
    distributed.all_reduce(message)
    message /= world_size()
    *means, mean_loss, wished = message.split([*(grad.numel() for grad in grads), 1, 1])
    for grad, mean in zip(grads, means, strict=True):
        grad.copy_(mean.view_as(grad))
    return mean_loss[0].clone(), wished


def print_once(line: str, error: bool = False) -> None:
    """Prints a line once for all processes."""
    if is_main():
        print(line, file=sys.stderr if error else sys.stdout)


def is_shared(error: BaseException) -> bool:
    """Whether all processes raised together, so that they can go on together."""
    return world_size() == 1 or getattr(error, "shared", False) or hasattr(error, "failure")


def _tried(action: Callable[[], Value]) -> tuple[Value | None, Exception | None]:
    try:
        return action(), None
    except Exception as error:  # noqa: BLE001 - whatever it is, the other processes must hear of it
        return None, error


def _told(error: Exception | None) -> tuple[bool, str] | None:
    if error is None:
        return None
    user = isinstance(error, UserError)
    return user, str(error) if user else f"{type(error).__name__}: {error}"


def _raise(own: Exception | None, told: list[Any]) -> None:
    heard = [entry for entry in told if entry is not None]
    if not heard:
        return
    user, line = heard[0]
    raised = own if own is not None else UserError(line) if user else OtherProcessFailed(line)
    raised.shared = True  # type: ignore[attr-defined]
    raise raised
