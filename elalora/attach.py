"""Finds the linear layers to adapt and replaces them by adapters.

Layers are chosen by patterns of their names (`elalora.names`).

GPT-2 has Conv1D layers, which are linear layers with a transposed weight. They are adapted as linear layers, and
`detach` and `merge` restore Conv1D layers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from elalora.adapters import LowRankLinear
from elalora.errors import UserError
from elalora.merging import Rounding, RoundingSum, check_mergeable, float_type, folded, is_quantised, restore_layout
from elalora.names import matches
from elalora.targets import NAMES

# attributes of a transformers model that `elalora.export.save_as_adapter` and `elalora.hf` set on the instance
MARKS = ("save_pretrained", "_hf_peft_config_loaded")


def find_linears(model: nn.Module, patterns: Sequence[str], outside: Iterable[str] = ()) -> dict[str, nn.Linear]:
    """The linear layers whose names match, in the model's order.

    Args:
        model: any PyTorch model.
        patterns: see `elalora.names`.
        outside: names of submodules that are trained whole (the task head) and never adapted.

    Raises:
        UserError: the model has adapters already; there is no pattern; a pattern matches no linear layer (the message
            lists the candidates, and the module that it matched instead); a matched layer shares its weight with
            another module; or it belongs to an nn.MultiheadAttention, which reads the weight without calling the layer.
    """
    refuse_adapted(model)
    outside = tuple(outside)
    linears: dict[str, nn.Linear] = {}
    hits = dict.fromkeys(patterns, 0)
    wrong: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if _within(name, outside):
            continue
        for pattern in patterns:
            if not name or not matches(name, pattern):
                continue
            if isinstance(module, nn.Linear) or is_conv1d(module):
                linears[name] = module if isinstance(module, nn.Linear) else Conv1DAsLinear(module)
                hits[pattern] += 1
            else:
                wrong.setdefault(pattern, module)
    for pattern, count in hits.items():
        if not count:
            _refuse(model, pattern, wrong.get(pattern), outside)
    if not linears:
        raise UserError(f"model.targets is empty; candidates: {_candidates(model, outside)}; set model.targets=[...]")
    _refuse_tied(model, linears)
    _refuse_never_called(model, linears)
    return linears


def unadaptable(model: nn.Module, outside: Iterable[str] = ()) -> tuple[float, list[str]]:
    """Share of the parameters in matrices of modules that are neither linear layers nor embeddings, and their names.

    Experts of a mixture that are one three-dimensional parameter belong to it, and convolutions.

    Args:
        outside: names of submodules that are trained whole.
    """
    count, outside = 0, tuple(outside)
    names: dict[str, None] = {}  # a set that keeps the order
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding | LowRankLinear) or is_conv1d(module) or _within(name, outside):
            continue
        own = sum(p.numel() for p in module.parameters(recurse=False) if p.ndim > 1 and p.shape.numel() > max(p.shape))
        if own:
            count += own
            names[f"{_generic(name)} ({type(module).__name__})"] = None
    return count / max(1, sum(p.numel() for p in model.parameters())), list(names)


def _within(name: str, modules: Iterable[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _generic(name: str) -> str:
    """A module name with its numbers replaced by *."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)


def refuse_adapted(model: nn.Module) -> None:
    """Raises UserError if the model has adapters already, of PEFT or of this library."""
    for module in model.modules():
        if type(module).__module__.partition(".")[0] == "peft":
            raise UserError(
                "the model has PEFT adapters, which would be frozen and left out of the export: call "
                "model = model.merge_and_unload() first, or load the base model"
            )
        if isinstance(module, LowRankLinear):
            raise UserError("the model is adapted already: call elalora.attach.merge(model) or detach(model) first")


def refuse_tied_modules(model: nn.Module, keep: Sequence[str]) -> None:
    """Raises UserError if training the modules in `keep` would train a module outside `keep` as well (tied weights)."""
    owners = _owners(model)
    inside = tuple(f"{name}." for name in keep)
    for names in owners.values():
        kept = [name for name in names if name.startswith(inside)]
        others = [name for name in names if not name.startswith(inside)]
        if kept and others:
            ours, theirs = kept[0].rpartition(".")[0], others[0].rpartition(".")[0]
            raise UserError(
                f"'{ours}' shares its weight with '{theirs}' (tied), so training one would silently train the other: "
                f"remove it from keep, or name both: keep=['{ours}', '{theirs}']"
            )


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is the Conv1D of transformers, the linear layer of GPT-2; by name, to need torch only."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and hasattr(module, "nx")


class Conv1DAsLinear(nn.Linear):
    """A frozen linear layer with a transposed copy of a Conv1D's weight.

    Args:
        conv: weight (d_in, d_out) and bias (d_out,).
    """

    def __init__(self, conv: nn.Module) -> None:
        weight: Any = conv.weight
        super().__init__(weight.shape[0], weight.shape[1], device=weight.device, dtype=weight.dtype)
        self.kind: Callable[[int, int], nn.Module] = type(conv)
        self.weight = nn.Parameter(weight.detach().T.contiguous(), requires_grad=False)
        self.bias = nn.Parameter(conv.bias.detach().clone(), requires_grad=False)  # type: ignore[operator]

    @classmethod
    def back(cls, base: nn.Module, layer: nn.Module) -> nn.Module:
        """`layer` as a Conv1D if `base` was one, else unchanged."""
        if not isinstance(base, cls) or not isinstance(layer, nn.Linear):
            return layer
        conv: Any = base.kind(base.out_features, base.in_features)
        conv.weight = nn.Parameter(layer.weight.detach().T.contiguous())
        conv.bias = nn.Parameter(layer.bias.detach().clone())
        return conv


def _refuse(model: nn.Module, pattern: str, module: nn.Module | None, outside: tuple[str, ...]) -> None:
    matched = f"a {type(module).__name__}, but only nn.Linear layers can be adapted" if module else "no linear layer"
    raise UserError(
        f"target '{pattern}' matches {matched}; candidates: {_candidates(model, outside)}; "
        f"set model.targets=[...] to patterns, or to one named set ({', '.join(NAMES)})"
    )


def _candidates(model: nn.Module, outside: tuple[str, ...]) -> str:
    """The names of all linear layers, with numbers replaced by *."""
    kinds = {
        _generic(name)
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) or is_conv1d(module)) and not name.startswith(outside or ("\0",))
    }
    return ", ".join(sorted(kinds)) or "none, the model has no nn.Linear"


def _owners(model: nn.Module) -> dict[int, list[str]]:
    """All names of every parameter, by its identity."""
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    return owners


def _refuse_tied(model: nn.Module, linears: Mapping[str, nn.Linear]) -> None:
    owners = _owners(model)
    for name, module in linears.items():
        shared = [o for o in owners.get(id(module.weight), []) if o != f"{name}.weight"]
        if shared:
            raise UserError(
                f"'{name}' shares its weight with '{shared[0]}' (tied), so adapting one would silently change the "
                "other: remove it from model.targets"
            )


def _refuse_never_called(model: nn.Module, names: Iterable[str]) -> None:
    for name in names:
        if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.MultiheadAttention):
            raise UserError(
                f"'{name}' belongs to an nn.MultiheadAttention, which reads its weight without calling it, so an "
                "adapter there would have no effect: remove it from model.targets"
            )


def attach(
    model: nn.Module, linears: Mapping[str, nn.Linear], make: Callable[[str, nn.Linear], LowRankLinear]
) -> dict[str, LowRankLinear]:
    """Replaces each layer by `make(name, layer)`, in place; returns the adapters by module name."""
    adapters = {}
    for name, linear in linears.items():
        adapters[name] = make(name, linear)
        put(model, name, adapters[name])
    for module in model.modules():
        # the fast path of torch's own encoder in evaluation reads weights without calling layers: it is disabled
        if isinstance(module, nn.TransformerEncoderLayer):
            if any(isinstance(m, LowRankLinear) for m in module.modules()):
                module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # used by the fast path only
    return adapters


def detach(model: nn.Module) -> nn.Module:
    """Restores every frozen layer, so that the model computes what it did before `attach`.

    The fast path of torch's own encoder stays disabled, and running statistics stay as training left them.
    """
    for name, adapter in adapters_in(model).items():
        put(model, name, Conv1DAsLinear.back(adapter.base, adapter.base))
    _unmark(model)
    return model


def merge(model: nn.Module) -> Rounding:
    """Replaces every adapter by a layer whose weight includes the update, in place.

    A layer of bitsandbytes becomes an nn.Linear, and a model that transformers loaded quantised is dequantised whole,
    so that `model.save_pretrained` writes a model that loads again.

    Returns:
        What rounding to the type of the weights lost of the updates; printed as well if it is above 0.1 %.

    Raises:
        UserError: a layer computes something else than x W^T + b; the model is then unchanged.
    """
    adapters = adapters_in(model)
    restore_layout(model)
    frozen = [p for name, p in model.named_parameters() if not name.startswith(tuple(f"{n}." for n in adapters))]
    kind, rounding = float_type(frozen), RoundingSum()
    for name, adapter in adapters.items():
        check_mergeable(name, adapter.base, adapter.delta())
    for name, adapter in adapters.items():
        layer = folded(adapter.base, adapter.delta(), kind, rounding)
        put(model, name, Conv1DAsLinear.back(adapter.base, layer))
    quantiser: Any = getattr(model, "hf_quantizer", None)
    if quantiser is not None and any(is_quantised(a.base) for a in adapters.values()):
        if any(is_quantised(module) for module in model.modules()):
            quantiser.dequantize(model, dtype=kind)
        else:
            quantiser.remove_quantization_config(model)
    _unmark(model)
    lost = rounding.total()
    if lost.error > 1e-3:
        print(
            f"merge: rounding dropped {lost.vanished:.1%} of the update's entries and changed the update by "
            f"{lost.error:.1%} (norm); to keep it exactly, export the adapter (elalora.export.export_peft) or load the "
            "model in float32"
        )
    return lost


def adapters_in(model: nn.Module) -> dict[str, LowRankLinear]:
    """The adapters by module name, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LowRankLinear)}


def _unmark(model: nn.Module) -> None:
    for name in MARKS:
        model.__dict__.pop(name, None)


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Sets the submodule of a dotted name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
