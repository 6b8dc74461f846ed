"""Turns pickled weights into safetensors, once, without running anything of the pickle.

Models of before 2023, DeBERTa-v3 among them, have their weights as pickles (`pytorch_model.bin`), and a pickle can run
any code. torch's weights-only unpickler builds tensors and plain containers and refuses the rest. What it returns is
checked and written as safetensors into the cache of this machine, in a folder named after the content of every file
that was read: another file, another folder.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from elalora.errors import UserError, first_line
from experiments.models.files import INDEX, PICKLE, PICKLE_INDEX, WEIGHTS, digests, files_in, weights_in
from experiments.models.kept import kept
from experiments.runtime.cache import cache_dir

# times the size of a file that its tensors may take: a tied embedding has one copy there and up to four here
GROWTH = 4


def as_safetensors(folder: Path, label: str) -> Path:
    """A folder with the same model in safetensors: the folder itself, or one in the cache if its weights are pickled.

    Args:
        folder: of a model.
        label: how messages name it.

    Raises:
        UserError: a pickle holds more than tensors, or cannot be read; or the cache cannot be written.
    """
    names = weights_in(folder)
    if not names or names[0] not in (PICKLE, PICKLE_INDEX):
        return folder
    key = hashlib.sha256(json.dumps(digests(folder), sort_keys=True).encode()).hexdigest()[:32]

    def make(part: Path) -> None:
        pickles = [name for name in names if name != PICKLE_INDEX]
        for name, file in files_in(folder).items():
            if name not in names:
                shutil.copyfile(file, part / name)
        for name in pickles:
            save_file(_tensors(folder / name, f"{label}: {name}"), part / _renamed(name), {"format": "pt"})
        if PICKLE_INDEX in names:
            _write_index(folder / PICKLE_INDEX, part / INDEX)
        size = sum((folder / name).stat().st_size for name in pickles) / 1e6
        print(f"elalora: {label}: {names[0]} ({size:,.0f} MB) is safetensors in {part.parent} now, once for all runs",
              file=sys.stderr, flush=True)  # fmt: skip

    cache = cache_dir(None)
    try:
        return kept(cache / "safetensors" / key, make)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{label}: its weights cannot be written as safetensors into {cache} ({first_line(error)}); make room, or "
            "set ELALORA_CACHE to another folder"
        ) from error


def _renamed(pickle: str) -> str:
    return WEIGHTS if pickle == PICKLE else f"{Path(pickle).stem}.safetensors"


def _write_index(source: Path, index: Path) -> None:
    """The index of the shards under their new names."""
    places = json.loads(source.read_text(encoding="utf-8"))["weight_map"]
    named = {"metadata": {}, "weight_map": {name: _renamed(shard) for name, shard in places.items()}}
    index.write_text(json.dumps(named, indent=1) + "\n", encoding="utf-8")


def _tensors(file: Path, label: str) -> dict[str, torch.Tensor]:
    """The tensors of a pickle by name, each with memory of its own: tied ones share it in the pickle."""
    zipped = zipfile.is_zipfile(file)
    try:
        if zipped:
            _refuse_compressed(file)
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # a stranger's pickle can make the unpickler raise anything
        raise UserError(f"{label} is refused: {_reason(error)}; {_REMEDY}") from error
    if not isinstance(found, dict) or not found:
        raise UserError(f"{label} is refused: it holds a {type(found).__name__}, not tensors by name; {_REMEDY}")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor) or not _plain(value):
            raise UserError(f"{label} is refused: {name} is not a plain tensor ({type(value).__name__}); {_REMEDY}")
    if sum(value.nbytes for value in found.values()) > GROWTH * file.stat().st_size:
        raise UserError(f"{label} is refused: its tensors take more than {GROWTH} times the file's size; {_REMEDY}")
    return {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in found.items()}


_REMEDY = "give a model with model.safetensors, which cannot run code"


def _plain(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized


def _refuse_compressed(file: Path) -> None:
    """Refuses an archive that torch did not write: it stores its entries as they are, so none can grow in memory."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("its archive is compressed")


def _reason(error: Exception) -> str:
    """What the unpickler found; its own text gives advice on how to run the file's code."""
    if named := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it names {named[1]}, which is not data"
    return "torch.save did not write it" if "weights_only" in str(error) else first_line(error).rstrip(".")
