"""State of a method beside ranks and parameters that is saved and restored with it.

A method lists its trackers in `after_attach`; `LowRankMethod` saves the tensors of each under "<prefix>.<name>".
`elalora.importance.Importance` is one, and `NamedTensors` keeps any other tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor


class Tracker(Protocol):
    """Tensors that are saved with the method under a prefix."""

    prefix: str

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors by name."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state_dict` returned; the ranks of the adapters are restored before."""
        ...


class NamedTensors(dict[str, Tensor]):
    """A dictionary of tensors that is saved with the method; empty at the start.

    Args:
        prefix: of the names in the saved state.
        shapes: shape of every tensor, once there are any.
    """

    def __init__(self, prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.prefix, self.shapes = prefix, dict(shapes)

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return dict(self)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores copies of the tensors.

        Raises:
            ValueError: names or shapes are not those of the adapted matrices.
        """
        if state and {name: tuple(tensor.shape) for name, tensor in state.items()} != self.shapes:
            raise ValueError(f"the saved tensors '{self.prefix}.*' do not fit the adapted matrices")
        self.clear()
        self.update({name: tensor.clone() for name, tensor in state.items()})
