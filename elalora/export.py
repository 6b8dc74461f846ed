"""Writes a trained adapter as a stock PEFT LoRA checkpoint.

Every matrix may have its own rank, so the ranks go into PEFT's rank_pattern. The scale, singular values and gates are
folded into B, so alpha equals the rank everywhere and PEFT's own factor is 1. Matrices of rank 0 are left out. Modules
that were trained whole (task head, pooler) go into modules_to_save.

PEFT matches names from their end: `lin` also means `sub.lin`. Where that would reach another module, patterns are
anchored, and a frozen module that ends like a trained one is saved with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from elalora.attach import Conv1DAsLinear
from elalora.errors import UserError
from elalora.method import Method

PREFIX = "base_model.model."


def export_peft(
    method: Method,
    model: nn.Module,
    folder: str | Path,
    keep: Sequence[str] | None = None,
    task_type: str | None = None,
    base: str | None = None,
) -> Path:
    """Saves adapter_config.json and adapter_model.safetensors.

    Args:
        method: attached to `model`; must be able to export LoRA.
        model: has the modules named in `keep`.
        folder: is created.
        keep: names of modules to save as they are; None means all that the method trained whole, and every batch norm
            with running statistics, which change in training even where its weights are frozen.
        task_type: PEFT's task, for example "SEQ_CLS"; None derives it from the name of the model's class.
        base: hub id or folder of the base model, which AutoPeftModel loads; None means where the model was loaded from.

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
    if keep is None:
        keep = with_running_norms(model, method.whole + method.trained_modules())
    saved = modules_to_save(model, keep, factors)
    for name in saved:
        module = model.get_submodule(name)
        tensors |= {f"{PREFIX}{name}.{key}": value.detach() for key, value in module.state_dict().items()}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = _config(model, {name: a.shape[0] for name, (a, _) in factors.items()}, saved)
    config["task_type"] = task_type or task_type_of(model)
    config["base_model_name_or_path"] = base or getattr(model, "name_or_path", None) or None
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
    """Saves every trained parameter and running statistic by its name, where the result is not a low-rank update."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    changed: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name in running_norms(model):
        changed |= {f"{name}.{key}": buffer for key, buffer in model.get_submodule(name).named_buffers()}
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in changed.items()}
    save_tensors(tensors, folder / "trained.safetensors")
    return folder


def with_running_norms(model: nn.Module, whole: Sequence[str]) -> list[str]:
    """All modules outside the adapters that training changes: those trained whole and `running_norms`."""
    return [*whole, *(name for name in running_norms(model) if not _inside(name, whole))]


def running_norms(model: nn.Module) -> list[str]:
    """Names of the normalisation layers that keep running statistics, such as nn.BatchNorm1d."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, _NormBase) and module.running_mean is not None
    ]


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Writes a safetensors file that others may read as any other file; safetensors itself allows its owner only."""
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(mode)


def save_as_adapter(method: Method, model: nn.Module) -> None:
    """Makes `model.save_pretrained` write an adapter, until the model is merged or detached.

    The model's names now contain `.base`, so `from_pretrained` would load its plain form with random weights, silently.
    Models without `save_pretrained` stay as they are.
    """
    if hasattr(model, "save_pretrained"):
        model.save_pretrained = partial(_save_pretrained, method, model)  # type: ignore[assignment]


def _save_pretrained(
    method: Method, model: nn.Module, save_directory: str | Path, is_main_process: bool = True, **options: Any
) -> None:
    """`PreTrainedModel.save_pretrained` of an adapted model; options about sharding and formats have no effect."""
    if options.get("push_to_hub"):
        raise UserError("push_to_hub=True has no effect on an adapted model: call model.push_to_hub(repo_id) instead")
    if not is_main_process:
        return
    if method.capabilities.exports_lora and any(method.ranks().values()):
        export_peft(method, model, save_directory)
    else:
        export_trained(model, save_directory)


# ending of the class name in transformers -> task type in PEFT
TASKS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
}


def task_type_of(model: nn.Module) -> str | None:
    """PEFT's task type for a model of transformers; None if its class name does not say."""
    seq2seq = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    task = next((task for end, task in TASKS.items() if type(model).__name__.endswith(end)), None)
    return None if task == "SEQ_2_SEQ_LM" and not seq2seq else task


def modules_to_save(model: nn.Module, keep: Sequence[str], adapted: Iterable[str]) -> list[str]:
    """`keep` and all modules that PEFT saves with them, because their names end alike.

    Raises:
        UserError: such a module holds an adapted matrix, which PEFT would not adapt.
    """
    names = [name for name, _ in model.named_modules() if name]
    saved = [*keep, *(n for n in names if n not in keep and any(n.endswith(k) for k in keep) and not _inside(n, keep))]
    for matrix in adapted:
        if _inside(matrix, saved):
            raise UserError(
                f"PEFT would save the module around '{matrix}' whole, because its name ends like one of "
                f"keep={list(keep)}, and not adapt the matrix: leave the matrix out of the targets, or rename a module"
            )
    return saved


def _inside(name: str, modules: Collection[str]) -> bool:
    """Whether a module is one of these or lies in one."""
    parts = name.split(".")
    return any(".".join(parts[: i + 1]) in modules for i in range(len(parts)))


def _config(model: nn.Module, ranks: Mapping[str, int], saved: list[str]) -> dict[str, Any]:
    top = max(ranks.values())
    others = [name for name, _ in model.named_modules() if name and not _inside(name, ranks)]

    def reaches(name: str, modules: Iterable[str]) -> bool:
        return any(other.endswith(f".{name}") for other in modules)

    targets: list[str] | str = sorted(ranks)
    if any(reaches(name, others) for name in ranks):
        targets = "|".join(re.escape(name) for name in sorted(ranks))  # as one string, PEFT takes it as a regex
    pattern = {(f"^{n}" if reaches(n, ranks) else n): rank for n, rank in ranks.items() if rank != top}
    return {
        "peft_type": "LORA",
        "r": top,
        "lora_alpha": top,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": targets,
        "modules_to_save": saved or None,
        "rank_pattern": pattern,
        "alpha_pattern": dict(pattern),
    }
