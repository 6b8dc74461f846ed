"""From texts to padded batches: token ids cached on disk, and the order in which items come.

Token ids lie flat in one safetensors file per split, so they are memory-mapped and no item is
stored padded. The order of batches is a pure function of lengths, seed and epoch: nothing is kept
between epochs, so a resumed run sees the batches of an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from elalora.errors import UserError
from experiments.config_task import TaskConfig
from experiments.data.content import cache_dir, content_hash

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)
FORMAT = 1  # raise when the layout of the cached file changes
MEGA_BATCHES = 50  # batches among which items are sorted by length
PAD_MULTIPLE = 8


@dataclass(frozen=True)
class TokenisedSplit:
    """One split as token ids.

    Attributes:
        tokens: all items end to end, (total,) int32.
        offsets: where each item starts, and the end of the last, (n + 1,) int64.
        idx: the items' own numbers, (n,) int64.
        labels: (n,) int64 for classification, float32 for regression.
        truncated: how many items were longer than the task's max_length and were cut.
        cached: whether the ids were read from the cache.
        token_type_ids: (total,) uint8, or None where the tokenizer makes none.
    """

    tokens: torch.Tensor
    offsets: torch.Tensor
    idx: torch.Tensor
    labels: torch.Tensor
    truncated: int
    cached: bool
    token_type_ids: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of every item, (n,) int64."""
        return np.diff(self.offsets.numpy())


def tokenise(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, task: TaskConfig, cache: str | None
) -> TokenisedSplit:
    """Token ids of one split, from the cache where the same were made before.

    The key covers the split's content, the tokenizer, max_length and the text columns. A damaged file is noticed by
    its checksum and made again. Files are moved into place whole.

    Args:
        dataset: columns idx, label and the task's text columns.
        tokenizer: any Hugging Face tokenizer with a padding token.
        task: names the text columns and the longest sequence.
        cache: the folder that `cache_dir` takes (data.cache); files go into its subfolder tokenised/.

    Raises:
        UserError: the split is empty, the tokenizer has no padding token, or the cache cannot be written.
    """
    if len(dataset) == 0:
        raise UserError(f"task {task.name}: a split to tokenise is empty; give it more data")
    if tokenizer.pad_token_id is None:
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path} has no padding token; choose a model whose tokenizer has one"
        )
    file = cache_dir(cache) / "tokenised" / f"{_cache_key(dataset, tokenizer, task)}.safetensors"
    stored = _read(file)
    tensors, truncated = stored or _encode(dataset, tokenizer, task)
    if stored is None:
        _write(file, tensors, truncated)
    return TokenisedSplit(**tensors, truncated=truncated, cached=stored is not None)


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of everything that decides the ids: vocabulary, rules and special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    # These two record the last call, not the tokenizer.
    rules = {k: v for k, v in rules.items() if k not in ("truncation", "padding")}
    state = [
        type(tokenizer).__name__,
        rules,
        tokenizer.model_input_names,
        tokenizer.truncation_side,
        {k: str(v) for k, v in tokenizer.special_tokens_map.items()},
    ]
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _cache_key(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, task: TaskConfig) -> str:
    parts = [
        FORMAT,
        content_hash({"split": dataset}, task),
        tokenizer_hash(tokenizer),
        task.max_length,
        list(task.text),
        task.kind,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _encode(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, task: TaskConfig
) -> tuple[dict[str, torch.Tensor], int]:
    columns = dataset[:]
    texts = [columns[name] for name in task.text]
    encoded = tokenizer(*texts, truncation=True, max_length=task.max_length, return_attention_mask=False)
    ids: list[list[int]] = encoded["input_ids"]
    tensors = {
        "tokens": torch.tensor([t for item in ids for t in item], dtype=torch.int32),
        "offsets": torch.tensor([0, *map(len, ids)], dtype=torch.int64).cumsum(0),
        "idx": torch.tensor(columns["idx"], dtype=torch.int64),
        "labels": torch.tensor(
            columns["label"],
            dtype=torch.int64 if task.kind == "classification" else torch.float32,
        ),
    }
    if "token_type_ids" in encoded:
        types = [t for item in encoded["token_type_ids"] for t in item]
        tensors["token_type_ids"] = torch.tensor(types, dtype=torch.uint8)
    # Only an item that fills max_length can have been cut; the full length of those tells.
    full = [i for i, item in enumerate(ids) if len(item) == task.max_length]
    truncated = 0
    if full:
        whole = tokenizer(*([column[i] for i in full] for column in texts), verbose=False)
        truncated = sum(len(item) > task.max_length for item in whole["input_ids"])
    return tensors, truncated


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].numpy().data)
    return digest.hexdigest()


def _read(file: Path) -> tuple[dict[str, torch.Tensor], int] | None:
    """The cached tensors, memory-mapped, or None when there are none that can be trusted."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as stored:
            meta = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}
    except SafetensorError as error:
        log.warning("cached tokens %s cannot be read (%s): made again", file.name, error)
        return None
    if meta.get("sha256") != _checksum(tensors):
        log.warning("cached tokens %s do not match their checksum: made again", file.name)
        return None
    return tensors, int(meta["truncated"])


def _write(file: Path, tensors: dict[str, torch.Tensor], truncated: int) -> None:
    from safetensors.torch import save

    meta = {"sha256": _checksum(tensors), "truncated": str(truncated)}
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="write-", dir=file.parent) as folder:
        fresh = Path(folder, file.name)
        fresh.write_bytes(save(tensors, metadata=meta))
        os.replace(fresh, file)


def train_batches(lengths: Sequence[int] | np.ndarray, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The batches of one epoch: every item once, items of like length together.

    Items are shuffled, sorted by length within stretches of 50 batches, cut into batches, and the
    batches are shuffled. The one short batch is kept: an epoch has ceil(n / batch_size) batches.

    Args:
        lengths: tokens of every item, (n,).
        batch_size: items per batch, at least 1.
        seed: the run's seed for data order; arms with one seed see the same batches.
        epoch: counted from 0.
    """
    lengths = np.asarray(lengths)
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    mega = batch_size * MEGA_BATCHES
    batches: list[list[int]] = []
    for start in range(0, len(order), mega):
        stretch = order[start : start + mega]
        stretch = stretch[np.argsort(-lengths[stretch], kind="stable")]
        batches += _cut(stretch, batch_size)
    return [batches[i] for i in rng.permutation(len(batches))]


def eval_batches(lengths: Sequence[int] | np.ndarray, batch_size: int) -> list[list[int]]:
    """All items by falling length; `in_order` brings the outputs back into the items' order."""
    return _cut(np.argsort(-np.asarray(lengths), kind="stable"), batch_size)


def _cut(order: np.ndarray, batch_size: int) -> list[list[int]]:
    return [order[i : i + batch_size].tolist() for i in range(0, len(order), batch_size)]


def in_order(batches: Sequence[Sequence[int]], outputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Outputs of batches, (b, ...) each, as one tensor (n, ...) in the order of the items."""
    joined = torch.cat(list(outputs))
    result = torch.empty_like(joined)
    result[torch.tensor([i for batch in batches for i in batch])] = joined
    return result


def collate(
    split: TokenisedSplit, indices: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> dict[str, torch.Tensor]:
    """One batch, padded to its longest item, rounded up to a multiple of 8.

    Args:
        split: where the items are.
        indices: positions in the split, b of them.
        tokenizer: says which ids to pad with, and on which side.

    Returns:
        input_ids and attention_mask (b, length) int64, token_type_ids likewise where the tokenizer makes them,
        labels (b,).
    """
    spans = [(int(split.offsets[i]), int(split.offsets[i + 1])) for i in indices]
    longest = max(end - start for start, end in spans)
    shape = (len(spans), -(-longest // PAD_MULTIPLE) * PAD_MULTIPLE)  # (b, length)
    assert tokenizer.pad_token_id is not None  # `tokenise` refuses a tokenizer without one
    batch = {
        "input_ids": torch.full(shape, tokenizer.pad_token_id),
        "attention_mask": torch.zeros(shape, dtype=torch.int64),
    }
    if split.token_type_ids is not None:
        batch["token_type_ids"] = torch.full(shape, tokenizer.pad_token_type_id)
    for row, (start, end) in enumerate(spans):
        left = shape[1] - (end - start) if tokenizer.padding_side == "left" else 0
        place = slice(left, left + end - start)
        batch["input_ids"][row, place] = split.tokens[start:end].long()
        batch["attention_mask"][row, place] = 1
        if split.token_type_ids is not None:
            batch["token_type_ids"][row, place] = split.token_type_ids[start:end].long()
    batch["labels"] = split.labels[torch.as_tensor(indices)]
    return batch
