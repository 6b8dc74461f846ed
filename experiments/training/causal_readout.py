"""Reads answers from causal language models: by the likelihood of options, by generating, or token by token.

The number of tokens and characters of every option are stored beside its log-probability, so that each normalisation
can be computed from a stored run.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from experiments.config.task import CODE_PARSERS, LOSSES, PART, ROUGES, TaskConfig
from experiments.data.causal_items import CausalItems, PromptItems
from experiments.data.text_items import IGNORED
from experiments.training import metrics
from experiments.training.execution import passes, program_of, require_linux
from experiments.training.parsers import PARSERS
from experiments.training.rows import Row, check_finite, rows_of


class Causal:
    """What the three readings share."""

    zero_shot: ClassVar[bool] = True

    def __init__(self, task: TaskConfig, tokenizer: Any, bare: nn.Module) -> None:
        self.task, self.metrics, self.tokenizer = task, list(task.metrics), tokenizer
        self.generate: Any = bare.generate
        ends: Any = getattr(getattr(bare, "generation_config", None), "eos_token_id", None)
        self.ends = set(ends if isinstance(ends, list) else [ends])

    def constant(self, rows: Sequence[Row]) -> dict[str, float]:
        """None."""
        return {}

    def guessing(self, items: Any) -> float | None:
        """None: a loss over completions has no constant answer."""
        return None


class Options(Causal):
    """The likeliest option after the prompt; the score is its margin to the next in `task.option_score`.

    Columns of a row: class numbers of label and prediction, margin, and of every option the sum of its tokens'
    log-probabilities in nats, its tokens and its characters.
    """

    columns: ClassVar[dict[str, str]] = {
        "label": "int64", "prediction": "int64", "score": "double", "right": "bool",
        "logprobs": "list<double>", "tokens": "list<int64>", "characters": "list<int64>",
    }  # fmt: skip

    def read(self, model: nn.Module, items: PromptItems, indices: Sequence[int], batch: dict[str, Tensor]) -> list[Row]:
        """One forward pass over the prompts if every option is one token, else over every prompt with every option."""
        logprobs, tokens = (
            _single(model, items, indices, batch) if items.single else _each(model, items, indices, batch)
        )
        characters, labels = items.option_characters(indices), items.labels[torch.as_tensor(indices)]
        sizes = {"sum": list(map(torch.ones_like, tokens)), "token": tokens, "character": characters}
        scores = [sums / size for sums, size in zip(logprobs, sizes[self.task.option_score], strict=True)]
        top = nn.utils.rnn.pad_sequence(scores, batch_first=True, padding_value=-math.inf).topk(2, dim=1)
        prediction, margin = top.indices[:, 0], top.values[:, 0] - top.values[:, 1]
        stored = [[row.tolist() for row in column] for column in (logprobs, tokens, characters)]
        return rows_of(items, indices, labels, prediction, margin, prediction == labels, *stored)

    def score(self, rows: Sequence[Row]) -> tuple[dict[str, float], bool]:
        """Of classes, see `experiments.training.metrics.compute`; of losses, over the tokens of the right options."""
        names = [name for name in self.metrics if name not in LOSSES]
        found, collapsed = metrics.compute(names, [row[1] for row in rows], [row[2] for row in rows])
        loss = -math.fsum(row[5][row[1]] for row in rows) / sum(row[6][row[1]] for row in rows)
        each: dict[str, float] = {}
        if self.task.parts and "accuracy" in names:
            groups = grouped(self.task.parts, rows)
            shares = {name: 100 * fmean(row[1] == row[2] for row in group) for name, group in groups.items()}
            found["accuracy"] = fmean(shares.values())
            each = {f"accuracy_{name}": share for name, share in shares.items() if name}
        return {**found, **_losses(self.metrics, loss), **each}, collapsed

    def constant(self, rows: Sequence[Row]) -> dict[str, float]:
        """The commonest option, by its number, of each of `task.parts` its own."""
        names = [name for name in self.metrics if name not in LOSSES]
        groups = grouped(self.task.parts, rows).values()
        found = [metrics.majority_baseline("classification", names, [row[1] for row in group]) for group in groups]
        return {name: fmean(one[name] for one in found) for name in names}


class Generated(Causal):
    """The parsed answer of a greedy continuation; the score of an item is 100 where it is right, or its first ROUGE.

    Columns of a row: accepted answers, text, score, whether the parsed answer is right, and the answer that was parsed,
    null where none was found. Of code the accepted answers are the solution and what `program_of` takes; it is right if
    its tests pass, and null if it was not run.
    """

    columns: ClassVar[dict[str, str]] = {
        "label": "list<string>", "prediction": "string", "score": "double", "right": "bool", "parsed": "string",
    }  # fmt: skip

    def __init__(self, task: TaskConfig, tokenizer: Any, bare: nn.Module) -> None:
        super().__init__(task, tokenizer, bare)
        if task.execute:
            require_linux()

    @property
    def code(self) -> bool:
        """Whether answers are programs."""
        return self.task.parser in CODE_PARSERS

    def read(self, model: nn.Module, items: PromptItems, indices: Sequence[int], batch: dict[str, Tensor]) -> list[Row]:
        """label is the list of accepted answers, prediction the generated text up to the first stop."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        made = self.generate(**inputs, tokenizer=self.tokenizer if self.task.stop else None)
        texts = [self._text(row) for row in made[:, batch["input_ids"].shape[1] :].tolist()]
        references, parse = [items.references[i] for i in indices], PARSERS[self.task.parser].parse
        parsed = [parse(text, self.task.options) for text in texts]
        right = [self._right(answer, accepted) for answer, accepted in zip(parsed, references, strict=True)]
        scores = [100.0 * bool(hit) for hit in right]
        if self.metrics[0] in ROUGES:
            named = metrics.rouge(self._texts(references), texts, self.metrics[:1])
            scores = (100 * named[self.metrics[0]]).tolist()
        return rows_of(items, indices, references, texts, scores, right, parsed)

    def _right(self, answer: str | None, accepted: Sequence[str]) -> bool | None:
        if not self.code:
            equal = PARSERS[self.task.parser].equal
            return answer is not None and any(equal(answer, reference) for reference in accepted)
        if not self.task.execute:
            return None
        return answer is not None and passes(program_of(answer, accepted))

    def _texts(self, references: Sequence[list[str]]) -> list[list[str]]:
        """What ROUGE compares with: of code the solution, not its tests."""
        return [accepted[:1] if self.code else accepted for accepted in references]

    def _text(self, ids: list[int]) -> str:
        """The text before the first end token and the first stop text."""
        length = next((place for place, token in enumerate(ids) if token in self.ends), len(ids))
        text = str(self.tokenizer.decode(ids[:length], skip_special_tokens=True))
        cuts = [place for stop in self.task.stop if (place := text.find(stop)) >= 0]
        cut = text[: min(cuts, default=len(text))]
        return cut if self.code else cut.strip()  # blanks at the left of code say what it belongs to

    def score(self, rows: Sequence[Row]) -> tuple[dict[str, float], bool]:
        """Shares of right answers and of texts without one, and means of every ROUGE asked for, in points."""
        texts, names = [row[2] for row in rows], [name for name in self.metrics if name in ROUGES]
        rouges = metrics.rouge(self._texts([row[1] for row in rows]), texts, names)
        found = {name: 100 * float(rouges[name].mean()) for name in names}
        groups = grouped(self.task.parts, rows)
        shares = {name: 100 * sum(bool(row[4]) for row in group) / len(group) for name, group in groups.items()}
        found["accuracy"] = fmean(shares.values())
        found["parse_failures"] = 100 * sum(row[5] is None for row in rows) / len(rows)
        found |= self._more(rows)
        each = {f"accuracy_{name}": share for name, share in shares.items() if name}
        return {**{name: found[name] for name in self.metrics}, **each}, len(set(texts)) == 1

    def _more(self, rows: Sequence[Row]) -> dict[str, float]:
        """Further metrics of a subclass."""
        return {}

    def constant(self, rows: Sequence[Row]) -> dict[str, float]:
        """The commonest accepted answer, where answers are right or wrong."""
        if "accuracy" not in self.metrics or self.code:
            return {}
        equal = PARSERS[self.task.parser].equal

        def commonest(group: Sequence[Row]) -> float:
            common = Counter(sorted(row[1][0] for row in group)).most_common(1)[0][0]
            return sum(any(equal(common, reference) for reference in row[1]) for row in group) / len(group)

        return {"accuracy": 100 * fmean(map(commonest, grouped(self.task.parts, rows).values()))}


class Tokens(Causal):
    """The completion's tokens, each predicted from what stands before it; the score of an item is its mean loss.

    Columns of a row: tokens of the completion, those predicted right, mean loss in nats, and its sum.
    """

    columns: ClassVar[dict[str, str]] = {
        "label": "int64", "prediction": "int64", "score": "double", "loss": "double",
    }  # fmt: skip

    def read(self, model: nn.Module, items: CausalItems, indices: Sequence[int], batch: dict[str, Tensor]) -> list[Row]:
        """label is the number of tokens, prediction how many of them are the likeliest."""
        count, hits, loss = token_scores(model, batch)
        return rows_of(items, indices, count, hits, loss / count, loss)

    def score(self, rows: Sequence[Row]) -> tuple[dict[str, float], bool]:
        """Over all tokens of all items; never collapsed."""
        count = sum(row[1] for row in rows)
        found = {"token_accuracy": 100 * sum(row[2] for row in rows) / count}
        found |= _losses(LOSSES, math.fsum(row[4] for row in rows) / count)
        return {name: found[name] for name in self.metrics}, False


def grouped(parts: Sequence[str], rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by the test set that they belong to, in the order of `task.parts`; all under "" where there are no parts."""
    groups: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row[0] // PART) if parts else rows:
        place = row[0] // PART if parts else 0
        groups.setdefault(parts[place - 1] if place else "", []).append(row)
    return groups


CAUSAL: dict[str, Any] = {"options": Options, "generate": Generated, "tokens": Tokens}


def token_scores(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Scores the labelled tokens of a batch.

    Args:
        model: in evaluation mode.
        batch: input_ids, attention_mask and labels, (b, length); labels are IGNORED where nothing is scored.

    Returns:
        Of every item the number of labelled tokens, how many of them are the likeliest, and the sum of their losses in
        nats: (b,) int64, int64 and float64, on the CPU.
    """
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    labels = batch["labels"][:, 1:]
    logits = model(**inputs).logits[:, :-1]
    seen = labels != IGNORED  # (b, length - 1)
    chosen = _wide(logits[seen])  # (labelled, vocabulary)
    check_finite(chosen)
    losses = nn.functional.cross_entropy(chosen, labels[seen], reduction="none").cpu().double()
    hits = (chosen.argmax(-1) == labels[seen]).cpu()
    item = seen.nonzero()[:, 0].cpu()
    zeros = torch.zeros(len(labels), dtype=torch.int64)
    return (
        seen.sum(1).cpu(),
        zeros.index_add(0, item, hits.long()),
        zeros.double().index_add(0, item, losses),
    )


def _single(
    model: nn.Module, items: PromptItems, indices: Sequence[int], batch: dict[str, Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Of every item log-probabilities, float64, and numbers of tokens of its options, which are one token each."""
    logits = model(**batch, logits_to_keep=1).logits[:, -1]
    ids = [torch.cat(options) for options in items.option_ids(indices)]
    check_finite(logits)
    logprobs = torch.log_softmax(_wide(logits), -1).cpu().double()
    return [row[chosen] for row, chosen in zip(logprobs, ids, strict=True)], list(map(torch.ones_like, ids))


def _each(
    model: nn.Module, items: PromptItems, indices: Sequence[int], batch: dict[str, Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """The same of options of several tokens; the batch has a row for every option of every item."""
    choices = items.option_ids(indices)
    options = [option for those in choices for option in those]
    tokens = torch.tensor([len(option) for option in options])
    longest = int(tokens.max())
    logits = model(**batch, logits_to_keep=longest + 1).logits[:, -longest - 1 : -1]  # predict the last tokens
    check_finite(logits)
    logprobs = torch.log_softmax(_wide(logits), -1).cpu()
    sums = []
    for row, option in zip(logprobs, options, strict=True):
        sums.append(row[longest - len(option) :].gather(1, option[:, None]).double().sum())
    counts = list(map(len, choices))
    return list(torch.stack(sums).split(counts)), list(tokens.split(counts))


def _wide(values: Tensor) -> Tensor:
    """At least in single precision: a bfloat16 log-probability has three digits."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _losses(names: Sequence[str], loss: float) -> dict[str, float]:
    """The losses asked for, from a mean over tokens in nats."""
    found = {"token_loss": loss, "perplexity": math.exp(min(loss, 700.0))}
    return {name: found[name] for name in LOSSES if name in names}
