"""What methods need to know of several processes that train one model together."""

from __future__ import annotations

from torch import Tensor
from torch import distributed as dist


def distributed() -> bool:
    """Whether this is one of several processes."""
    return dist.is_available() and dist.is_initialized()


def average(tensor: Tensor) -> Tensor:
    """The mean over all processes, in place; the tensor itself in a single one."""
    if distributed():
        dist.all_reduce(tensor)
        tensor.div_(dist.get_world_size())
    return tensor
