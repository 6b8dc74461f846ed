"""Items of causal tasks: prompts with completions to train on, and prompts to read answers from.

Tokens that the loss sees are told by position, never by id: where the padding token is the end-of-sequence token, a
mask by id would hide the end of every completion, and a model would never learn to stop.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from elalora.errors import UserError
from experiments.config.task import OPTIONS, LossOn, TaskConfig, Truncation, rows_as
from experiments.data import token_cache
from experiments.data.content import content_hash
from experiments.data.prompts import Prompter
from experiments.data.text_items import IGNORED, MANY, SLICE, Padding, Ragged, tokenizer_hash
from experiments.runtime.cache import cache_dir
from experiments.runtime.display import tracked

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

FORMAT = 2  # raise when the cached file's layout changes


@dataclass(frozen=True)
class CausalItems:
    """Prompts with their completions, to be trained on or scored token by token.

    Attributes:
        tokens: ids of prompt, completion and stop token.
        starts: position of the first token that the loss sees, (n,) int64.
        truncated: number of prompts that were cut on the left; dropped: of rows that were left out as too long.
    """

    tokens: Ragged
    starts: Tensor
    idx: Tensor
    labels: Any
    truncated: int
    dropped: int
    padding: Padding
    references: list[list[str]] | None = None

    def __len__(self) -> int:
        return len(self.idx)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of every item, (n,) int64."""
        return self.tokens.lengths

    def weight(self, indices: Sequence[int]) -> float:
        """Number of tokens that the loss sees."""
        chosen = list(indices)
        return float((self.lengths[chosen] - self.starts.numpy()[chosen]).sum())

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """One batch, padded on the right to its longest item.

        Returns:
            input_ids, attention_mask and labels, (b, length) int64. A label is the id at its own position, as the
            models of transformers expect, and IGNORED in the prompt and at padding.
        """
        ids = self.tokens.padded(indices, self.padding.token)
        positions = torch.arange(ids.shape[1])
        ends = torch.from_numpy(self.lengths[list(indices)])[:, None]
        starts = self.starts[torch.as_tensor(indices)][:, None]
        seen = (positions >= starts) & (positions < ends)  # (b, length)
        return {
            "input_ids": ids,
            "attention_mask": (positions < ends).long(),
            "labels": ids.masked_fill(~seen, IGNORED),
        }


@dataclass(frozen=True)
class PromptItems:
    """Prompts whose answers are read: by the likelihood of options, or by generating.

    Attributes:
        tokens: ids of the prompts.
        options: ids of every item's options, item by item; None where answers are generated.
        counts: number of options of every item, (n,) int64.
        labels: (n,) int64 number of the right option where the task has options, else None.
        references: accepted answers of every item.
        characters: of every option's completion, item by item, int64.
    """

    tokens: Ragged
    idx: Tensor
    labels: Any
    truncated: int
    padding: Padding
    references: list[list[str]]
    options: Ragged | None = None
    counts: Tensor | None = None
    characters: Tensor | None = None
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.idx)

    @property
    def single(self) -> bool:
        """Whether every option is one token, so that one forward pass over the prompts scores all of them."""
        return self.options is not None and int(self.options.lengths.max()) == 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of every prompt, (n,) int64; with the longest option where options are read."""
        if self.options is None or self.single:
            return self.tokens.lengths
        return self.tokens.lengths + np.maximum.reduceat(self.options.lengths, self._firsts()[:-1])

    def weight(self, indices: Sequence[int]) -> float:
        """Number of items."""
        return float(len(indices))

    def option_ids(self, indices: Sequence[int]) -> list[list[Tensor]]:
        """Ids of every option of b items."""
        assert self.options is not None
        flat, offsets = self.options.flat, self.options.offsets.numpy()
        return [[flat[offsets[r] : offsets[r + 1]].long() for r in rows] for rows in self._option_rows(indices)]

    def option_characters(self, indices: Sequence[int]) -> list[Tensor]:
        """Characters of every option of b items."""
        assert self.characters is not None
        return [self.characters[rows.start : rows.stop] for rows in self._option_rows(indices)]

    def _option_rows(self, indices: Sequence[int]) -> list[range]:
        """Which of all options are those of b items."""
        firsts = self._firsts()
        return [range(int(firsts[i]), int(firsts[i + 1])) for i in indices]

    def _firsts(self) -> np.ndarray:
        """Number of every item's first option, and of all, (n + 1,)."""
        assert self.counts is not None
        return np.concatenate([[0], np.cumsum(self.counts.numpy())])

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Prompts padded on the left, where a model continues them; each with each option unless these are single.

        Returns:
            input_ids, attention_mask and position_ids, (b or b * options, length) int64. The positions matter to models
            that learnt theirs, which would count the padding.
        """
        starts = self.tokens.offsets.tolist()
        rows = [self.tokens.flat[starts[i] : starts[i + 1]].tolist() for i in indices]
        if self.options is not None and not self.single:
            choices = zip(rows, self.option_ids(indices), strict=True)
            rows = [[*row, *option.tolist()] for row, options in choices for option in options]
        joined = Ragged.of(rows, torch.int64)
        ids = joined.padded(range(len(rows)), self.padding.token, "left")
        lengths = torch.from_numpy(joined.lengths)[:, None]
        mask = (torch.arange(ids.shape[1]) >= ids.shape[1] - lengths).long()
        return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


def causal_items(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, task: TaskConfig, cache: str | None, training: bool
) -> CausalItems | PromptItems:
    """The items of one split, from the cache if they were made before.

    Args:
        dataset: columns idx, the task's text columns and label; references where labels are texts.
        tokenizer: of the model.
        task: templates, lengths, and how answers are read.
        cache: data.cache.
        training: whether the items are trained on; others are read as `task.answer` says.

    Raises:
        UserError: see `Prompter`; or an item is too long where none may be left out.
    """
    padding, prompter = Padding.of(tokenizer), Prompter(task, tokenizer)
    trained = training or task.answer == "tokens"
    file = cache_dir(cache) / "tokenised" / f"{_cache_key(dataset, tokenizer, task, training)}.safetensors"
    stored = token_cache.read(file)
    if stored is None:
        make = _completions if trained else _prompts
        tensors, counts = make(dataset, prompter, task, training)
        token_cache.write(file, tensors, {name: str(count) for name, count in counts.items()})
    else:
        tensors, counts = stored[0], {name: int(stored[1][name]) for name in ("truncated", "dropped")}
    tokens = Ragged(tensors["tokens"], tensors["offsets"])
    classes = rows_as(task).kind == "classification"
    labels = torch.tensor(dataset["label"][:], dtype=torch.int64) if classes and not trained else None
    if trained:
        starts = (
            tensors["starts"] if task.loss == LossOn.completion or not training else torch.ones_like(tensors["starts"])
        )
        return CausalItems(tokens, starts, tensors["idx"], labels, counts["truncated"], counts["dropped"], padding)
    options = Ragged(tensors["options"], tensors["option_offsets"]) if "options" in tensors else None
    references = [[text] for text in _labels(dataset, task)] if classes else [list(r) for r in dataset["references"][:]]
    return PromptItems(
        tokens, tensors["idx"], labels, counts["truncated"], padding, references, options,
        tensors.get("option_counts"), tensors.get("characters"),
    )  # fmt: skip


def _completions(
    dataset: Dataset, prompter: Prompter, task: TaskConfig, training: bool
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Prompts with completions; what is too long is cut on the prompt's left or left out, and counted."""
    parts: list[Ragged] = []
    starts, kept, cut = [], [], 0
    labels, idx = _labels(dataset, task), dataset["idx"][:]
    for first, rows in _slices(dataset, task):
        prompts = prompter.prompts(rows)
        wholes = prompter.wholes(rows, labels[first : first + len(rows)], prompts)
        fitted = []
        for number, (prompt, whole) in enumerate(zip(prompts, wholes, strict=True), start=first):
            over = len(whole) - task.max_length
            room = len(prompt) - _head(prompt, prompter) - over  # tokens of the prompt that are left
            if over > 0 and (task.chat or room < 1 or training and task.truncation == Truncation.drop):
                if not training:
                    _refuse_long(task, number, len(whole))
                continue
            shortened = _cut(prompt, over, prompter)
            cut += over > 0
            fitted.append([*shortened, *whole[len(prompt) :]])
            starts.append(len(shortened))
            kept.append(idx[number])
        parts.append(Ragged.of(fitted, torch.int32))
    if not kept:
        raise UserError(
            f"task {task.name}: no training row fits into task.max_length={task.max_length} tokens; type a larger one"
        )
    joined = Ragged.joined(parts)
    tensors = {"tokens": joined.flat, "offsets": joined.offsets, "starts": torch.tensor(starts, dtype=torch.int64)}
    tensors["idx"] = torch.tensor(kept, dtype=torch.int64)
    return tensors, {"truncated": cut, "dropped": len(idx) - len(kept)}


def _prompts(
    dataset: Dataset, prompter: Prompter, task: TaskConfig, training: bool
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Prompts, and options where an answer is one of them; every item stays, cut on the left where it is too long."""
    prompts: list[list[int]] = []
    options: list[list[int]] = []
    characters: list[int] = []
    names, cut = _options(dataset, task) if task.answer == "options" else [[]] * len(dataset), 0
    for first, rows in _slices(dataset, task):
        full = prompter.prompts(rows)
        pairs = [(number, name) for number in range(len(rows)) for name in names[first + number]]
        wholes = iter(
            prompter.wholes([rows[n] for n, _ in pairs], [name for _, name in pairs], [full[n] for n, _ in pairs])
        )
        for number, prompt in enumerate(full):
            ends = [next(wholes)[len(prompt) : -1] for _ in names[first + number]]  # without the stop token
            over = len(prompt) + max(map(len, ends), default=0) - task.max_length
            if over > 0 and (task.chat or len(prompt) - _head(prompt, prompter) - over < 1):
                _refuse_long(task, first + number, task.max_length + over)
            prompts.append(_cut(prompt, over, prompter))
            cut += over > 0
            options += ends
            characters += [prompter.characters(rows[number], name) for name in names[first + number]]
    tokens = Ragged.of(prompts, torch.int32)
    tensors = {"tokens": tokens.flat, "offsets": tokens.offsets, "idx": torch.tensor(dataset["idx"][:])}
    if options:
        ragged = Ragged.of(options, torch.int32)
        tensors |= {"options": ragged.flat, "option_offsets": ragged.offsets}
        tensors["characters"] = torch.tensor(characters, dtype=torch.int64)
        tensors["option_counts"] = torch.tensor([len(row) for row in names], dtype=torch.int64)
    return tensors, {"truncated": cut, "dropped": 0}


def _slices(dataset: Dataset, task: TaskConfig) -> Any:
    """Number of the first row, and the input columns of the rows, slice by slice."""
    columns, count = list(task.text), len(dataset)
    rows = dataset.select_columns(columns)
    starts = range(0, count, SLICE)
    for start in tracked(starts, f"tokenising {count:,} prompts") if count > MANY else starts:
        part = rows[start : start + SLICE]
        yield (
            start,
            [dict(zip(columns, values, strict=True)) for values in zip(*(part[c] for c in columns), strict=True)],
        )


def _labels(dataset: Dataset, task: TaskConfig) -> list[str]:
    """The text that {label} stands for in every row."""
    labels = dataset["label"][:]
    if task.options or task.options_column is not None:
        return [options[label] for options, label in zip(_options(dataset, task), labels, strict=True)]
    return list(labels)


def _options(dataset: Dataset, task: TaskConfig) -> list[list[str]]:
    """The texts of every row's options."""
    return [list(task.options)] * len(dataset) if task.options_column is None else dataset[OPTIONS][:]


def _head(prompt: Sequence[int], prompter: Prompter) -> int:
    """Tokens at a prompt's start that no cut removes: the begin-of-sequence token."""
    return int(bool(prompt) and prompt[0] == prompter.tokenizer.bos_token_id)


def _cut(prompt: list[int], over: int, prompter: Prompter) -> list[int]:
    head = _head(prompt, prompter)
    return prompt if over <= 0 else prompt[:head] + prompt[head + over :]


def _refuse_long(task: TaskConfig, number: int, length: int) -> None:
    raise UserError(
        f"task {task.name}: item {number + 1} of an evaluated split needs {length} tokens and cannot be cut; type "
        f"task.max_length={length} or more"
    )


def _cache_key(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, task: TaskConfig, training: bool) -> str:
    parts = [
        "causal", FORMAT, content_hash({"split": dataset}, rows_as(task)), tokenizer_hash(tokenizer),
        str(tokenizer.chat_template) if task.chat else None, task.prompt, task.prompt_without, task.completion,
        task.chat, task.system, list(task.text), list(task.options), task.max_length, task.truncation, task.answer,
        task.options_column, training,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
