"""Writes a trained adapter as a stock PEFT LoRA checkpoint.

Every matrix may have its own rank, so the ranks go into PEFT's rank_pattern. The scale, singular values and gates are
folded into B, so alpha equals the rank everywhere and PEFT's own factor is 1. Matrices of rank 0 are left out. Modules
that were trained whole (task head, pooler) go into modules_to_save.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from elalora.attach import Conv1DAsLinear
from elalora.errors import UserError
from elalora.method import Method

PREFIX = "base_model.model."


def export_peft(
    method: Method,
    model: nn.Module,
    folder: str | Path,
    keep: Sequence[str] = (),
    task_type: str | None = None,
    base: str | None = None,
) -> Path:
    """Saves adapter_config.json and adapter_model.safetensors.

    Args:
        method: attached to `model`; must be able to export LoRA.
        model: has the modules named in `keep`.
        folder: is created.
        keep: names of modules that were trained whole; they are saved as they are.
        task_type: PEFT's task, for example "SEQ_CLS"; None leaves it open.
        base: hub id or folder of the base model, which AutoPeftModel loads.

    Returns:
        The folder.

    Raises:
        UserError: the result is not a low-rank update, or every matrix has rank 0.
    """
    factors = {name: pair for name, pair in method.lora_factors().items() if pair[0].shape[0]}
    if not factors:
        raise UserError("every matrix has rank 0, so there is no adapter to export")
    tensors: dict[str, Tensor] = {}
    for name, (a, b) in factors.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = a
        tensors[f"{PREFIX}{name}.lora_B.weight"] = b
    saved = _whole_modules(model, keep)
    for name in saved:
        module = model.get_submodule(name)
        tensors |= {f"{PREFIX}{name}.{key}": value.detach() for key, value in module.state_dict().items()}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = _config({name: a.shape[0] for name, (a, _) in factors.items()}, saved, task_type, base)
    adapted = [getattr(model.get_submodule(name), "base", None) for name in factors]
    config["fan_in_fan_out"] = any(isinstance(base, Conv1DAsLinear) for base in adapted)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    tensors = {name: tensor.cpu().clone().contiguous() for name, tensor in tensors.items()}
    save_tensors(tensors, folder / "adapter_model.safetensors")
    return folder


def read_factors(folder: str | Path) -> dict[str, tuple[Tensor, Tensor]]:
    """A (r, d_in) and B (d_out, r) by matrix, from an adapter that `export_peft` wrote.

    Raises:
        UserError: the folder has no such adapter, or it cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(folder) / "adapter_model.safetensors"
    if not path.is_file():
        raise UserError(f"{folder} has no LoRA adapter to start from ({path.name} is missing)")
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}); ask its owner for a readable copy") from error
    end = ".lora_A.weight"
    names = [key.removeprefix(PREFIX).removesuffix(end) for key in tensors if key.endswith(end)]
    return {n: (tensors[f"{PREFIX}{n}.lora_A.weight"], tensors[f"{PREFIX}{n}.lora_B.weight"]) for n in names}


def export_trained(model: nn.Module, folder: str | Path) -> Path:
    """Saves every trained parameter by its name, for methods whose result is not a low-rank update."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {n: p.detach().cpu().clone().contiguous() for n, p in model.named_parameters() if p.requires_grad}
    save_tensors(tensors, folder / "trained.safetensors")
    return folder


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Writes a safetensors file that others may read as any other file; safetensors itself allows its owner only."""
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(mode)


def _whole_modules(model: nn.Module, keep: Sequence[str]) -> list[str]:
    """`keep`, checked against PEFT's rule, which saves every module whose name ends with one of these names."""
    for name in keep:
        also = [n for n, _ in model.named_modules() if n.endswith(name) and n not in keep]
        if also:
            raise UserError(f"PEFT would save '{also[0]}' together with '{name}', because both names end alike")
    return list(keep)


def _config(ranks: dict[str, int], saved: list[str], task_type: str | None, base: str | None) -> dict[str, Any]:
    top = max(ranks.values())
    return {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base,
        "r": top,
        "lora_alpha": top,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted(ranks),
        "modules_to_save": saved or None,
        "rank_pattern": {name: rank for name, rank in ranks.items() if rank != top},
        "alpha_pattern": {name: rank for name, rank in ranks.items() if rank != top},
    }
