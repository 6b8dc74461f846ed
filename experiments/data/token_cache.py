"""Token ids on disk: one safetensors file for each split, memory-mapped, with a checksum of its own."""

from __future__ import annotations

import hashlib
from pathlib import Path

from torch import Tensor

from experiments.runtime.distributed import print_once
from experiments.runtime.files import replacing


def read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """The cached tensors and what was stored beside them, or None if the file is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as stored:
            meta = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}
    except SafetensorError as error:
        print_once(f"elalora: cached tokens {file.name} cannot be read ({error}); made again", error=True)
        return None
    if meta.get("sha256") != _checksum(tensors):
        print_once(f"elalora: cached tokens {file.name} do not match their checksum; made again", error=True)
        return None
    return tensors, meta


def write(file: Path, tensors: dict[str, Tensor], meta: dict[str, str]) -> None:
    """Writes tensors with a checksum and further texts, whole or not at all."""
    from safetensors.torch import save

    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as part:
        part.write_bytes(save(tensors, metadata={**meta, "sha256": _checksum(tensors)}))


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].numpy().data)
    return digest.hexdigest()
