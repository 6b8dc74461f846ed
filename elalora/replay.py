"""Evaluations that begin where a model was changed: what ran before the change gives again what it gave."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import nn

from elalora.names import layer_of


class Replay:
    """What the blocks of a model returned for one batch.

    A block is what has the number in a matrix's name, as `layer.3`, or the matrix itself where there is none. A change
    inside a block leaves what ended before that block began as it was, whatever the architecture. Holds the output of
    every block.

    Args:
        model: in evaluation, so that equal inputs give equal outputs.
        names: of the matrices that will be changed.
    """

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        self.blocks = {name: model.get_submodule(name) for name in dict.fromkeys(map(layer_of, names))}
        self.outputs: dict[str, Any] = {}
        self.before: dict[str, list[str]] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Within, one forward pass is recorded."""
        self.outputs, self.before = {}, {}
        shared: set[str] = set()  # called more than once: no output to give again
        with ExitStack() as hooks:
            for name, block in self.blocks.items():
                hooks.callback(block.register_forward_pre_hook(partial(self._begins, shared, name)).remove)
                hooks.callback(block.register_forward_hook(partial(self._ends, name)).remove)
            yield
        self.before = {name: [one for one in ended if one not in shared] for name, ended in self.before.items()}

    @contextmanager
    def from_block_of(self, matrix: str) -> Iterator[None]:
        """Within, a forward pass of the same batch computes from this matrix's block on."""
        with ExitStack() as replaced:
            for name in self.before.get(layer_of(matrix), []):
                replaced.enter_context(_giving(self.blocks[name], self.outputs[name]))
            yield

    def _begins(self, shared: set[str], name: str, *_: Any) -> None:
        if name in self.before:
            shared.add(name)
        self.before.setdefault(name, list(self.outputs))

    def _ends(self, name: str, _block: nn.Module, _inputs: Any, output: Any) -> None:
        self.outputs[name] = output


@contextmanager
def _giving(block: nn.Module, output: Any) -> Iterator[None]:
    """Within, the block returns copies of this output; whoever has replaced its forward gets that one back."""
    own = vars(block).get("forward")
    block.forward = lambda *_, **__: copy.deepcopy(output)
    try:
        yield
    finally:
        del block.forward
        if own is not None:
            block.forward = own
