"""A fixed general text, on which a causal model's loss before and after training shows what it forgot.

As in PEFT's method comparison: the first 100 texts, cut on the right to 768 tokens, every token with the same weight.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from elalora.errors import UserError
from experiments.config.compose import compose_run
from experiments.config.task import DataConfig
from experiments.data import load_task
from experiments.data.causal_items import CausalItems
from experiments.data.content import inputs
from experiments.data.text_items import Padding, Ragged
from experiments.runtime.digests import sha256_of
from experiments.runtime.places import CONF

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXTS = 100
LENGTH = 768  # tokens


def identity_of(value: str) -> str:
    """What a run's identity has in place of `forgetting`: the digest of a file, or the name of a task.

    Raises:
        UserError: it is neither.
    """
    path = Path(value).expanduser()
    if path.is_file():
        return f"sha256:{sha256_of(path)}"
    if not re.fullmatch(r"[a-z0-9_]+", value) or not (CONF / "task" / f"{value}.yaml").is_file():
        raise UserError(
            f"forgetting={value} is neither a text file nor a task; type the path of a file with a blank line between "
            "texts, or a task such as vader_nyt"
        )
    return value


def general_items(
    value: str, data: DataConfig, tokenizer: PreTrainedTokenizerBase, longest: int | None = None
) -> CausalItems:
    """The texts of `forgetting`, every token of which is scored but the first.

    Args:
        value: path of a UTF-8 file with a blank line between texts, or a task whose last split is taken.
        data: where tasks are looked for.
        tokenizer: of the model.
        longest: the most tokens that the model takes; None if there is no limit.

    Raises:
        UserError: there is no text, or the file cannot be read.
    """
    length = min(LENGTH, longest or LENGTH)
    texts = [text for text in _texts(value, data) if text.strip()][:TEXTS]
    rows = [ids[:length] for ids in tokenizer(texts, verbose=False)["input_ids"]] if texts else []
    rows = [ids for ids in rows if len(ids) > 1]
    if not rows:
        raise UserError(f"forgetting={value} has no text of two tokens or more")
    tokens = Ragged.of(rows, torch.int32)
    starts = torch.ones(len(rows), dtype=torch.int64)
    return CausalItems(tokens, starts, torch.arange(len(rows)), None, 0, 0, Padding.of(tokenizer))


def _texts(value: str, data: DataConfig) -> list[str]:
    path = Path(value).expanduser()
    if path.is_file():
        try:
            return re.split(r"\n[^\S\n]*\n", path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"forgetting={value} is not a text in UTF-8: {error}") from error
    from omegaconf import OmegaConf

    task = OmegaConf.to_object(compose_run((f"task={value}",)).task)
    if task.kind == "image":
        raise UserError(f"forgetting={value} is a task of images; type a text file, or a task such as vader_nyt")
    loaded = load_task(task, data)
    rows = list(loaded.splits.values())[-1]
    columns = [rows[name][:TEXTS] for name in inputs(task)]
    return ["\n".join(parts) for parts in zip(*columns, strict=True)]
