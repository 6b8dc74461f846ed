"""How texts are generated: by the task's settings alone, and never with what a checkpoint brings along.

transformers fills every setting that a caller leaves out from the checkpoint's `generation_config.json`, or from older
ones in `config.json`, so the same task would mean another search for another model. Only the special tokens are taken
from there; they belong to the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from elalora.errors import UserError
from experiments.config.task import TaskConfig

TOKENS = (
    "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id",
    "forced_eos_token_id", "bad_words_ids",
)  # fmt: skip
DECIDED = ("num_beams", "max_length", "max_new_tokens", "early_stopping", "no_repeat_ngram_size")  # always the task's
# what beam search does not read, or what changes no text
UNREAD = (
    "temperature", "top_k", "top_p", "typical_p", "use_cache", "cache_implementation", "transformers_version",
    "_from_model_config", "output_scores", "output_attentions", "output_hidden_states", "return_dict_in_generate",
)  # fmt: skip
LENGTHS = ("min_length", "min_new_tokens")


def decoding(task: TaskConfig, checkpoint: Any, name: str = "the checkpoint") -> Any:
    """The `GenerationConfig` of a task.

    Args:
        task: its beams, lengths and penalties.
        checkpoint: the `GenerationConfig` that the model came with.
        name: of the model, for messages.

    Raises:
        UserError: the checkpoint decodes with a setting that the task leaves open or cannot set.
    """
    from transformers import GenerationConfig

    theirs = {key: value for key, value in checkpoint.to_diff_dict().items() if value is not None}
    acting = {key: value for key, value in theirs.items() if value is True or value and value != 1}
    shortest = max(theirs.get("min_new_tokens", 0), theirs.get("min_length", 0) - 1)  # less the start token
    offered = {"min_generate_length": (shortest, 0), "length_penalty": (theirs.get("length_penalty", 1.0), 1.0)}
    _refuse_open(task, offered, name)
    known = (*TOKENS, *DECIDED, *UNREAD, *LENGTHS, "length_penalty")
    other = {key: value for key, value in acting.items() if key not in known}
    if other:
        raise UserError(
            f"{name} generates with {', '.join(f'{key}={value}' for key, value in other.items())}, which no task sets; "
            "copy the model to a folder and remove that from its generation_config.json (config.json in older ones)"
        )
    return GenerationConfig(
        **{key: theirs[key] for key in TOKENS if key in theirs},
        num_beams=task.beams,
        max_new_tokens=task.generate_length,
        min_new_tokens=task.min_generate_length,
        length_penalty=1.0 if task.length_penalty is None else task.length_penalty,
        no_repeat_ngram_size=task.no_repeat_ngram,
        early_stopping=task.early_stopping,
        do_sample=False,
        use_cache=True,
    )


def greedy(task: TaskConfig, checkpoint: Any, pad: int, stop: Sequence[int]) -> Any:
    """The `GenerationConfig` of a causal task: the likeliest token at each step, whatever the checkpoint brings along.

    Args:
        task: its generate_length and stop texts.
        checkpoint: the `GenerationConfig` that the model came with; of it, only the ids that end a text are kept.
        pad: id of the padding token.
        stop: ids that end a completion in training.
    """
    from transformers import GenerationConfig

    theirs = {key: value for key, value in checkpoint.to_diff_dict().items() if value is not None}
    ends = theirs.get("eos_token_id", [])
    ends = {*(ends if isinstance(ends, list) else [ends]), *stop}
    return GenerationConfig(
        pad_token_id=pad,
        eos_token_id=sorted(ends),
        max_new_tokens=task.generate_length,
        stop_strings=list(task.stop) or None,
        num_beams=1,
        do_sample=False,
        use_cache=True,
    )


def _refuse_open(task: TaskConfig, offered: dict[str, tuple[float, float]], name: str) -> None:
    """Refuses a checkpoint's value of a setting that the task leaves open."""
    open_ones = {
        key: value for key, (value, neutral) in offered.items() if value != neutral and getattr(task, key) is None
    }
    if open_ones:
        words = " ".join(f"task.{key}={value}" for key, value in open_ones.items())
        raise UserError(
            f"{name} was made to generate with {words}, which this task leaves open; type that, or other values "
            f"({' '.join(f'task.{key}={offered[key][1]}' for key in open_ones)} for none)"
        )
