"""Text items: token ids, made once and cached on disk, and padded batches.

The ids of a split are stored without padding in one safetensors file, which is memory-mapped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from elalora.errors import UserError
from experiments.config.task import TaskConfig
from experiments.data import token_cache
from experiments.data.content import content_hash
from experiments.runtime.cache import cache_dir
from experiments.runtime.digests import sha256_of
from experiments.runtime.display import tracked

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

FORMAT = 2  # raise when the cached file's layout changes
PAD_MULTIPLE = 8
SLICE = 1_000  # items tokenised at once: Python's integers take many times the space of the ids that are kept
MANY = 10_000  # items from which tokenising shows a progress bar
PLACES = ("name_or_path", "is_local", "local_files_only")  # settings of a tokenizer that say where it lies
IGNORED = -100  # label of a token that the loss ignores


@dataclass(frozen=True)
class Padding:
    """Ids that a tokenizer pads with, and the side."""

    token: int
    token_type: int
    side: str

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Padding:
        """The padding of a tokenizer; raises UserError if it has no padding token."""
        if tokenizer.pad_token_id is None:
            raise UserError(
                f"the tokenizer of {tokenizer.name_or_path} has no padding token; "
                "choose a model whose tokenizer has one"
            )
        return cls(tokenizer.pad_token_id, tokenizer.pad_token_type_id, tokenizer.padding_side)


@dataclass(frozen=True)
class Ragged:
    """Rows of unequal length, concatenated."""

    flat: Tensor  # (total,) of any integer type
    offsets: Tensor  # start of each row and end of the last, (n + 1,) int64

    @classmethod
    def of(cls, rows: list[list[int]], dtype: torch.dtype) -> Ragged:
        """Concatenates lists of unequal length."""
        lengths = torch.tensor([0, *map(len, rows)], dtype=torch.int64)
        flat = np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=int(lengths.sum()))
        return cls(torch.from_numpy(flat).to(dtype), lengths.cumsum(0))

    @classmethod
    def joined(cls, parts: Sequence[Ragged]) -> Ragged:
        """The rows of all parts."""
        starts = np.cumsum([0, *(len(part.flat) for part in parts)]).tolist()
        offsets = [part.offsets[1:] + start for part, start in zip(parts, starts, strict=False)]
        return cls(torch.cat([part.flat for part in parts]), torch.cat([torch.zeros(1, dtype=torch.int64), *offsets]))

    @property
    def lengths(self) -> np.ndarray:
        """Length of every row, (n,) int64."""
        return np.diff(self.offsets.numpy())

    def padded(self, indices: Sequence[int], fill: int, side: str = "right") -> Tensor:
        """(b, length) int64, padded to the longest row, rounded up to a multiple of 8."""
        spans = [(int(self.offsets[i]), int(self.offsets[i + 1])) for i in indices]
        longest = max(end - start for start, end in spans)
        length = -(-longest // PAD_MULTIPLE) * PAD_MULTIPLE
        rows = torch.full((len(spans), length), fill)
        for row, (start, end) in enumerate(spans):
            left = length - (end - start) if side == "left" else 0
            rows[row, left : left + end - start] = self.flat[start:end].long()
        return rows


@dataclass(frozen=True)
class TextItems:
    """Texts or pairs of texts with labels, or documents with summaries."""

    tokens: Ragged  # ids of the inputs
    idx: Tensor  # numbers of the items, (n,) int64
    labels: Tensor | Ragged  # (n,) int64 for classification, float32 for regression; token ids of the summaries
    truncated: int  # number of inputs truncated to the task's max_length
    truncated_targets: int  # number of summaries truncated to target_length
    cached: bool  # whether the ids were read from the cache
    padding: Padding
    token_type_ids: Ragged | None = None  # None if the tokenizer has none
    references: list[list[str]] | None = None  # all references of each item, for summaries

    def __len__(self) -> int:
        return len(self.idx)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of every input, (n,) int64."""
        return self.tokens.lengths

    def weight(self, indices: Sequence[int]) -> float:
        """Number of items, or of target tokens if the loss is a mean over tokens."""
        if isinstance(self.labels, Ragged):
            return float(self.labels.lengths[list(indices)].sum())
        return float(len(indices))

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """One batch, padded to its longest item.

        Args:
            indices: b positions in the split.

        Returns:
            input_ids and attention_mask (b, length) int64, token_type_ids likewise if the tokenizer has them, labels
            (b,), or (b, target length) with IGNORED at padding.
        """
        ids = self.tokens.padded(indices, self.padding.token, self.padding.side)
        ones = Ragged(torch.ones(1, dtype=torch.int8).expand(len(self.tokens.flat)), self.tokens.offsets)
        batch = {"input_ids": ids, "attention_mask": ones.padded(indices, 0, self.padding.side)}
        if self.token_type_ids is not None:
            batch["token_type_ids"] = self.token_type_ids.padded(indices, self.padding.token_type, self.padding.side)
        if isinstance(self.labels, Ragged):
            batch["labels"] = self.labels.padded(indices, IGNORED)
        else:
            batch["labels"] = self.labels[torch.as_tensor(indices)]
        return batch


def tokenise(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, task: TaskConfig, cache: str | None) -> TextItems:
    """Token ids of one split, from the cache if they were made before.

    The key covers the split's content, the tokenizer, the lengths and the text columns. A damaged file is detected by
    its checksum and replaced.

    Args:
        dataset: columns idx, label and the task's text columns; for summaries also references.
        tokenizer: any Hugging Face tokenizer with a padding token.
        task: determines text columns and maximum lengths.
        cache: data.cache; files go into its subfolder tokenised/.

    Raises:
        UserError: the tokenizer has no padding token, or the cache cannot be written.
    """
    padding = Padding.of(tokenizer)
    file = cache_dir(cache) / "tokenised" / f"{_cache_key(dataset, tokenizer, task)}.safetensors"
    stored = token_cache.read(file)
    if stored is None:
        tensors, cut = _encode(dataset, tokenizer, task)
        token_cache.write(file, tensors, {"truncated": str(cut[0]), "truncated_targets": str(cut[1])})
    else:
        tensors, cut = stored[0], (int(stored[1]["truncated"]), int(stored[1]["truncated_targets"]))
    summaries = task.kind == "summarization"
    types = tensors.get("token_type_ids")
    return TextItems(
        tokens=Ragged(tensors["tokens"], tensors["offsets"]),
        idx=tensors["idx"],
        labels=Ragged(tensors["labels"], tensors["label_offsets"]) if summaries else tensors["labels"],
        truncated=cut[0],
        truncated_targets=cut[1],
        cached=stored is not None,
        padding=padding,
        token_type_ids=None if types is None else Ragged(types, tensors["offsets"]),
        references=[list(r) for r in dataset["references"][:]] if summaries else None,
    )


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of everything that determines the ids: vocabulary, rules, special tokens and settings."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    # truncation and padding record the last call
    rules = {k: v for k, v in rules.items() if k not in ("truncation", "padding")}
    state = [
        type(tokenizer).__name__,
        rules,
        tokenizer.model_input_names,
        tokenizer.truncation_side,
        {k: str(v) for k, v in tokenizer.special_tokens_map.items()},
        {k: _setting(v) for k, v in tokenizer.init_kwargs.items() if k not in PLACES},
    ]
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _setting(value: Any) -> str:
    """A setting of a tokenizer as text, the path of a vocabulary as that file's digest."""
    path = value if isinstance(value, str) and os.path.isfile(value) else None
    return str(value) if path is None else sha256_of(Path(path))


def _cache_key(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, task: TaskConfig) -> str:
    parts = [
        FORMAT,
        content_hash({"split": dataset}, task),
        tokenizer_hash(tokenizer),
        task.max_length,
        task.target_length if task.kind == "summarization" else None,
        list(task.text),
        task.kind,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _encode(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, task: TaskConfig
) -> tuple[dict[str, Tensor], tuple[int, int]]:
    """Tensors by name, and the numbers of truncated inputs and targets."""
    as_inputs = partial(tokenizer.__call__, return_attention_mask=False)
    encoded, cut = _encode_rows(as_inputs, dataset, list(task.text), task.max_length, "items")
    tokens = encoded["input_ids"]
    idx = torch.tensor(dataset["idx"][:], dtype=torch.int64)
    tensors = {"tokens": tokens.flat, "offsets": tokens.offsets, "idx": idx}
    if "token_type_ids" in encoded:
        tensors["token_type_ids"] = encoded["token_type_ids"].flat.to(torch.uint8)
    if task.kind != "summarization":
        kind = torch.float32 if task.kind == "regression" else torch.int64
        tensors["labels"] = torch.tensor(dataset["label"][:], dtype=kind)
        return tensors, (cut, 0)

    def as_targets(summaries: list[str], **options: Any) -> Any:
        return tokenizer(text_target=summaries, **options)

    targets, cut_targets = _encode_rows(as_targets, dataset, ["label"], task.target_length, "summaries")
    labels = targets["input_ids"]
    return tensors | {"labels": labels.flat, "label_offsets": labels.offsets}, (cut, cut_targets)


def _encode_rows(
    encode: Callable[..., Any], dataset: Dataset, columns: list[str], limit: int, what: str
) -> tuple[dict[str, Ragged], int]:
    """Ids of every row of these columns by name, truncated to `limit`, and the number of truncated rows.

    Rows are independent, so they are encoded slice by slice, and of a slice only its ids stay, as integers of 32 bits.
    """
    parts: dict[str, list[Ragged]] = {}
    cut, count, rows = 0, len(dataset), dataset.select_columns(columns)
    starts = range(0, max(count, 1), SLICE)
    for start in tracked(starts, f"tokenising {count:,} {what}") if count > MANY else starts:
        texts = list(rows[start : start + SLICE].values())
        encoded = encode(*texts, truncation=True, max_length=limit)
        full = [i for i, row in enumerate(encoded["input_ids"]) if len(row) == limit]
        whole = encode(*([t[i] for i in full] for t in texts), verbose=False)["input_ids"] if full else []
        cut += sum(len(row) > limit for row in whole)
        for name in encoded:
            parts.setdefault(name, []).append(Ragged.of(encoded[name], torch.int32))
    return {name: Ragged.joined(part) for name, part in parts.items()}, cut
