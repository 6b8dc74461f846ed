"""The gradient of whole updates dL/d(dW), as if each dW = scale B diag(E) A were one dense parameter.

It is the sum over tokens of the output's gradient times the input. The gradients of A, B and E do not determine it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from elalora.adapters import LowRankLinear
from elalora.processes import average


class UpdateGradients:
    """Collects dL/d(dW) of every adapter in each backward pass, at the cost of the gradient of a dense matrix.

    Args:
        adapters: by name.
    """

    def __init__(self, adapters: Mapping[str, LowRankLinear]) -> None:
        self.adapters = dict(adapters)
        self._sums: dict[str, Tensor] = {}
        self._handles = [
            adapter.register_forward_hook(self._hook(name, adapter.A.dtype)) for name, adapter in adapters.items()
        ]

    def _hook(self, name: str, kind: torch.dtype) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def add(x: Tensor, grad: Tensor) -> None:
            now = grad.reshape(-1, grad.shape[-1]).T.to(kind) @ x.reshape(-1, x.shape[-1]).to(kind)  # (d_out, d_in)
            self._sums[name] = now.add_(self._sums[name]) if name in self._sums else now

        def see(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
            if out.requires_grad:
                x = given[0].detach()
                out.register_hook(lambda grad: add(x, grad))

        return see

    def clear(self) -> None:
        """Drops what was collected so far."""
        self._sums.clear()

    def take(self, name: str) -> Tensor:
        """The sum since the last call or `clear`, (d_out, d_in), averaged over processes."""
        adapter = self.adapters[name]
        shape = (adapter.out_features, adapter.in_features)
        return average(self._sums.pop(name) if name in self._sums else adapter.A.new_zeros(shape))

    def stop(self) -> None:
        """Ends collecting for good."""
        for handle in self._handles:
            handle.remove()
        self.clear()
