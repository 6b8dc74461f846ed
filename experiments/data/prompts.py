"""Prompts and completions of a causal task as token ids.

A completion's ids are those that follow the prompt's ids when both are encoded as one text: encoded alone, a completion
may get other ids. Where the prompt's ids are not the beginning of the whole's, nothing says which tokens to train on,
and the row is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from elalora.errors import UserError, first_line
from experiments.config.task import TaskConfig
from experiments.config.templates import filled

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = Mapping[str, str]  # the input columns of one item


class Prompter:
    """Encodes the prompts and completions of a task.

    Args:
        task: its templates.
        tokenizer: of the model; its chat template is used where the task is a chat.

    Attributes:
        stop: id of the token that ends a completion: what the chat template puts behind an assistant's turn, else the
            tokenizer's end-of-sequence token.

    Raises:
        UserError: the tokenizer has no end-of-sequence token, or no chat template that ends turns with a special token.
    """

    def __init__(self, task: TaskConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        self.task, self.tokenizer = task, tokenizer
        self.stop = self._stop_of_chat() if task.chat else tokenizer.eos_token_id
        if self.stop is None:
            raise UserError(
                f"the tokenizer of {tokenizer.name_or_path} has no end-of-sequence token, so a completion could not end"
            )

    def prompts(self, rows: Sequence[Row]) -> list[list[int]]:
        """Ids of every prompt, with the tokens that the tokenizer or the chat template puts before it."""
        if not self.task.chat:
            return self._ids([self._prompt(row) for row in rows])
        return self._ids([self._chat(row, None) for row in rows])

    def wholes(self, rows: Sequence[Row], labels: Sequence[str], prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Ids of every prompt with its completion and the stop token.

        Args:
            rows: the input columns of n items.
            labels: what {label} stands for in each.
            prompts: their ids, from `prompts`.

        Raises:
            UserError: a prompt's ids are not the beginning of the whole's, or a completion has no token.
        """
        completions = [self._completion(row, label) for row, label in zip(rows, labels, strict=True)]
        pairs = zip(rows, completions, strict=True)
        if self.task.chat:
            wholes = [self._ended(ids) for ids in self._ids([self._chat(row, text) for row, text in pairs])]
        else:
            wholes = self._ids([self._prompt(row) + text for row, text in pairs])
            wholes = [ids if ids and ids[-1] == self.stop else [*ids, self.stop] for ids in wholes]
        for prompt, whole, completion in zip(prompts, wholes, completions, strict=True):
            if whole[: len(prompt)] != list(prompt):
                self._refuse_boundary(completion)
            if len(whole) < len(prompt) + 2:
                raise UserError(f"task {self.task.name}: the completion {completion!r} has no token")
        return wholes

    def characters(self, row: Row, label: str) -> int:
        """Length of a completion in characters, without the white space around it."""
        return len(self._completion(row, label).strip())

    def _completion(self, row: Row, label: str) -> str:
        return filled(self.task.completion, {**row, "label": label})

    def _prompt(self, row: Row) -> str:
        blank = self.task.prompt_without is not None and not row[self.task.text[-1]].strip()
        return filled(self.task.prompt_without if blank else self.task.prompt, row)  # type: ignore[arg-type]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        """A chat template writes the special tokens itself, so the tokenizer must not add them again."""
        if not texts:
            return []
        encoded = self.tokenizer(
            texts, add_special_tokens=not self.task.chat, return_attention_mask=False, verbose=False
        )
        return list(encoded["input_ids"])

    def _chat(self, row: Row, completion: str | None) -> str:
        turns = [] if self.task.system is None else [{"role": "system", "content": self.task.system}]
        turns.append({"role": "user", "content": self._prompt(row)})
        if completion is not None:
            turns.append({"role": "assistant", "content": completion})
        return self._rendered(turns, completion is None)

    def _rendered(self, turns: list[dict[str, str]], asks: bool) -> str:
        from jinja2 import TemplateError

        if not self.tokenizer.chat_template:
            raise UserError(
                f"task.chat=true, but the tokenizer of {self.tokenizer.name_or_path} has no chat template; type "
                "task.chat=false"
            )
        try:
            text: Any = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=asks)
        except TemplateError as error:
            raise UserError(f"task.chat=true: the chat template refuses the turns ({first_line(error)})") from error
        return str(text)

    def _stop_of_chat(self) -> int:
        """The last special token of an ended conversation."""
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        ids = self._ids([self._rendered(turns, False)])[0]
        special = set(self.tokenizer.all_special_ids)
        after = ids[len(self._ids([self._rendered(turns[:1], True)])[0]) :]
        found = [token for token in after if token in special]
        if not found:
            raise UserError(
                f"task.chat=true: the chat template of {self.tokenizer.name_or_path} ends an assistant's turn without "
                "a special token, so generation could not stop; type task.chat=false"
            )
        return found[-1]

    def _ended(self, ids: list[int]) -> list[int]:
        """The ids up to the last stop token: what a template writes behind it belongs to the next turn."""
        return ids[: len(ids) - ids[::-1].index(self.stop)] if self.stop in ids else [*ids, self.stop]

    def _refuse_boundary(self, completion: str) -> None:
        where = "the tokenizer's chat template" if self.task.chat else "the tokenizer"
        advice = "type task.chat=false" if self.task.chat else "begin task.completion with a space or a line break"
        raise UserError(
            f"task {self.task.name}: {where} encodes a prompt in another way before the completion {completion!r}, so "
            f"the completion's tokens are not known; {advice}"
        )
