"""Writes a finished run's adapter in the form that other programs take, and prints their commands.

    python -m experiments export RUN --out FOLDER
    python -m experiments export RUN --out FOLDER --form uniform
    python -m experiments export RUN --out FOLDER --form merged

The forms are `peft` (the run's own adapter: a rank for each matrix), `uniform` (the same update with one rank for all
matrices, for servers that know only one) and `merged` (base model and update in one model).
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elalora.errors import UserError
from elalora.export import PREFIX
from experiments.config.schema import Dtype, ModelConfig
from experiments.config.stored import from_store
from experiments.config.task import TaskConfig
from experiments.models.files import BUILT_IN
from experiments.runtime.files import new_folder
from experiments.runtime.text import clean
from experiments.store.folder import RunFolder
from experiments.store.foreign import read_yaml

if TYPE_CHECKING:
    from torch import Tensor

# what --max-lora-rank of vLLM takes (MaxLoRARanks in vllm/config/lora.py, 0.26 and later)
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FORMS = ("peft", "uniform", "merged")


@dataclass(frozen=True)
class Trained:
    """A finished run that exports LoRA.

    Attributes:
        adapter: folder of its adapter.
        model, task: its settings.
        config: content of adapter_config.json.
    """

    adapter: Path
    model: ModelConfig
    task: TaskConfig
    config: dict[str, Any]

    @classmethod
    def read(cls, run: Path) -> Trained:
        """The run in a folder.

        Raises:
            UserError: it is not finished, or its method does not end in a low-rank update.
        """
        if not (run / "result.json").is_file():
            raise UserError(f"{run} is not the folder of a finished run: it has no result.json")
        result, stored = RunFolder(run).result(), run / "config.yaml"
        if not (run / "adapter" / CONFIG).is_file():
            raise UserError(f"{run}: method={clean(str(result['method']))} does not end in a LoRA adapter")
        settings = read_yaml(stored)
        model, task = (from_store(kind, settings[name], stored) for kind, name in _PARTS)
        return cls(run / "adapter", model, task, json.loads((run / "adapter" / CONFIG).read_text(encoding="utf-8")))

    @property
    def base(self) -> str:
        """The base model for other programs: a hub id or a folder."""
        from experiments.models.load import base_of

        path = base_of(self.model.path)
        return str(Path(path).expanduser().resolve()) if Path(path).expanduser().is_dir() else path

    @property
    def revision(self) -> str | None:
        """The commit of a hub id."""
        return None if self.model.path in BUILT_IN or Path(self.base).is_dir() else self.model.revision

    @property
    def ranks(self) -> list[int]:
        """Every rank that a matrix has."""
        return [int(self.config["r"]), *(int(rank) for rank in (self.config.get("rank_pattern") or {}).values())]


_PARTS: tuple[tuple[Any, str], ...] = ((ModelConfig, "model"), (TaskConfig, "task"))


def export(run: Path, out: Path, form: str = "peft", rank: int | None = None, dtype: str = "float32") -> list[str]:
    """Writes one form of a run's adapter.

    Args:
        run: folder of a finished run.
        out: new folder.
        form: of `FORMS`.
        rank: of all matrices in the form `uniform`; None takes the smallest that vLLM allows.
        dtype: of the weights of the form `merged`, which are summed in float32.

    Returns:
        Lines that say what other programs need.

    Raises:
        UserError: the run has no such form, or the folder exists.
    """
    if out.exists():
        raise UserError(f"--out {out} exists; give a folder that does not")
    trained = Trained.read(run)
    with new_folder(out) as part:
        if form == "merged":
            _write_merged(trained, part, dtype)
        else:
            chosen = None if form == "peft" else _uniform_rank(max(trained.ranks), rank)
            _write_adapter(trained, part, chosen)
    return _lines(trained, out, form)


def _uniform_rank(largest: int, asked: int | None) -> int:
    if asked is None:
        asked = next((rank for rank in VLLM_RANKS if rank >= largest), largest)
    if asked < largest:
        raise UserError(f"--rank {asked} is below {largest}, the largest rank of this run; type {largest} or more")
    return asked


def _write_adapter(trained: Trained, folder: Path, rank: int | None) -> None:
    """The adapter with the base's name and commit; with `rank`, every matrix padded to it by zero directions."""
    config = trained.config | {"base_model_name_or_path": trained.base, "revision": trained.revision}
    if rank is None:
        shutil.copyfile(trained.adapter / WEIGHTS, folder / WEIGHTS)
    else:
        from elalora.export import save_tensors

        save_tensors(padded(_tensors(trained.adapter), rank), folder / WEIGHTS)
        # alpha equals the rank everywhere, so PEFT's factor stays 1
        config |= {"r": rank, "lora_alpha": rank, "rank_pattern": {}, "alpha_pattern": {}}
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def _tensors(adapter: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(adapter / WEIGHTS)


def padded(tensors: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """A PEFT adapter's tensors with every matrix at one rank.

    Args:
        tensors: A (r, d_in) and B (d_out, r) of every matrix, r at most `rank`, and other tensors, which stay.
        rank: of all matrices afterwards; the added rows and columns are 0, so no product changes.
    """
    from torch.nn.functional import pad

    out = {}
    for name, tensor in tensors.items():
        if name.endswith(".lora_A.weight"):
            tensor = pad(tensor, (0, 0, 0, rank - tensor.shape[0]))
        elif name.endswith(".lora_B.weight"):
            tensor = pad(tensor, (0, rank - tensor.shape[1]))
        out[name] = tensor.contiguous()
    return out


def _write_merged(trained: Trained, folder: Path, dtype: str) -> None:
    """The base model in float32 with the update added by PEFT, stored in `dtype`, with its tokenizer."""
    import torch
    from peft import PeftModel

    from experiments.models.load import load_model, load_processor

    model = trained.model
    model.dtype, model.quantization = Dtype.float32, None
    network = load_model(model, trained.task, seed=0).network
    merged: Any = PeftModel.from_pretrained(network, str(trained.adapter)).merge_and_unload()
    merged.to(getattr(torch, dtype)).save_pretrained(folder)
    processor = load_processor(model, trained.task)
    if hasattr(processor, "save_pretrained"):
        processor.save_pretrained(folder)


def _lines(trained: Trained, out: Path, form: str) -> list[str]:
    """What was written, and the commands of lm-evaluation-harness and vLLM for a causal language model."""
    place, uneven = str(out.resolve()), len(set(trained.ranks)) > 1
    lines = [f"{out}: {_what(form, trained, out)}"]
    if trained.config.get("task_type") != "CAUSAL_LM":
        return [*lines, "lm-evaluation-harness and vLLM take causal language models, which this is not"]
    pinned = f",revision={trained.revision}" if trained.revision else ""
    model_args = f"pretrained={place}" if form == "merged" else f"pretrained={trained.base}{pinned},peft={place}"
    lines += ["", "lm-evaluation-harness (replace gsm8k by your tasks):", _command(
        "lm_eval", "run", "--model", "hf", "--model_args", f"{model_args},dtype=float32", "--tasks", "gsm8k",
        "--batch_size", "8", "--output_path", f"{place}-lm_eval", "--log_samples", "--seed", "0",
    ), "", "vLLM:"]  # fmt: skip
    if form == "merged":
        return [*lines, _command("vllm", "serve", place)]
    if form == "peft" and uneven:
        return [*lines, "it takes one rank for all matrices; export with --form uniform or --form merged"]
    served = next((rank for rank in VLLM_RANKS if rank >= max(_ranks_in(out))), None)
    if served is None or trained.config.get("modules_to_save"):
        return [*lines, "it takes ranks up to 512 and no modules trained whole; export with --form merged"]
    revision = ["--revision", trained.revision] if trained.revision else []
    lines.append(_command(
        "vllm", "serve", trained.base, *revision, "--enable-lora", "--lora-modules", f"tuned={place}",
        "--max-lora-rank", str(served),
    ))  # fmt: skip
    return [*lines, f"--max-lora-rank is one of {', '.join(map(str, VLLM_RANKS))}"]


def _what(form: str, trained: Trained, out: Path) -> str:
    if form == "merged":
        return f"merged weights of {trained.model.name}"
    ranks = _ranks_in(out)
    return f"PEFT adapter of {trained.model.name}, " + (
        f"rank {ranks[0]}" if len(set(ranks)) == 1 else f"ranks {min(ranks)} to {max(ranks)}"
    )


def _ranks_in(folder: Path) -> list[int]:
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS, "pt") as file:
        names = [name for name in file.keys() if name.startswith(PREFIX) and name.endswith(".lora_A.weight")]
        return [file.get_slice(name).get_shape()[0] for name in names]


def _command(*words: str) -> str:
    return "    " + shlex.join(words)


def add_to(commands: Any) -> None:
    """Adds `export` to the command line."""
    parser = commands.add_parser("export", help="write a finished run's adapter for other programs")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="new folder")
    parser.add_argument("--form", choices=FORMS, default="peft", help="what to write (default: %(default)s)")
    parser.add_argument("--rank", type=int, metavar="R", help="of --form uniform (default: the least that vLLM takes)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of --form merged")
    parser.set_defaults(command=command)


def command(args: argparse.Namespace) -> int:
    """Writes the form and prints the lines; returns the exit code."""
    lines: Sequence[str] = export(args.run, args.out, args.form, args.rank, args.dtype)
    print("\n".join(lines))
    return 0
