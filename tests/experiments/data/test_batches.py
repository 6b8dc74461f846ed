"""Token ids, their cache, and the order and padding of batches, against the tokenizer itself."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from elalora.errors import UserError
from experiments.config.task import TaskConfig
from experiments.data import text_items as texts
from experiments.data.batches import eval_batches, train_batches
from experiments.data.content import make_split
from experiments.data.items import make_items
from experiments.data.text_items import TextItems, tokenise
from experiments.models.files import embedded_minilm

ONE = TaskConfig(name="one", source="vader", subset="movies", text=["text"], max_length=8)
TWO = TaskConfig(name="two", source="glue", subset="stsb", kind="regression", text=["a", "b"], max_length=16)
TEXTS = ["Good.", "A film that nobody needed, least of all its makers, who knew better.", "", "not bad at all"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(embedded_minilm())


def rows(texts: list[str] = TEXTS) -> Any:
    return make_split(ONE, {"idx": range(7, 7 + len(texts)), "text": texts, "label": [0, 1] * (len(texts) // 2)})


def pairs() -> Any:
    return make_split(TWO, {"idx": [0, 1, 2, 3], "a": TEXTS, "b": TEXTS[::-1], "label": [0.5, 4.8, 0.0, 5.0]})


def cached_file(cache: Path) -> Path:
    (file,) = (cache / "tokenised").iterdir()
    return file


def same(a: TextItems, b: TextItems) -> bool:
    assert a.token_type_ids is not None and b.token_type_ids is not None
    pairs = [(a.tokens.flat, b.tokens.flat), (a.tokens.offsets, b.tokens.offsets), (a.idx, b.idx)]
    pairs += [(a.labels, b.labels), (a.token_type_ids.flat, b.token_type_ids.flat)]
    return all(torch.equal(x, y) for x, y in pairs) and a.truncated == b.truncated


@pytest.mark.parametrize(("dataset", "task"), [(rows(), ONE), (pairs(), TWO)])
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_batch_is_what_the_tokenizer_would_pad(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: Any, task: TaskConfig, side: str
) -> None:
    monkeypatch.setattr(tokenizer, "padding_side", side)
    split = tokenise(dataset, tokenizer, task, str(tmp_path))
    for indices in ([0, 2], [3, 1, 0]):
        expected = tokenizer(
            *([dataset[name][i] for i in indices] for name in task.text),
            truncation=True,
            max_length=task.max_length,
            padding=True,
            pad_to_multiple_of=8,
            return_tensors="pt",
        )
        batch = split.batch(indices)
        for name in ("input_ids", "attention_mask", "token_type_ids"):
            assert torch.equal(batch[name], expected[name])
        labels = torch.tensor([dataset["label"][i] for i in indices])
        assert torch.equal(batch["labels"], labels) and batch["labels"].dtype == labels.dtype


def test_what_padding_adds_is_masked_and_changes_no_output(tokenizer: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(embedded_minilm()).eval()
    split = tokenise(rows(), tokenizer, ONE, str(tmp_path))
    padded, length = split.batch([0]), split.lengths[0]
    assert padded["input_ids"].shape[1] > length
    cut = {name: tensor[:, :length] for name, tensor in padded.items() if name != "labels"}
    with torch.no_grad():
        torch.testing.assert_close(model(**padded).logits, model(**cut).logits)


def test_a_large_split_is_tokenised_in_slices_under_a_bar_and_comes_out_the_same(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tokenise(pairs(), tokenizer, TWO, str(tmp_path / "whole"))
    monkeypatch.setattr(texts, "SLICE", 3)
    monkeypatch.setattr(texts, "MANY", 3)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert same(tokenise(pairs(), tokenizer, TWO, str(tmp_path / "slices")), whole)
    assert f"tokenising {len(pairs())} items" in capsys.readouterr().err


def test_tokenising_holds_the_python_numbers_of_one_slice_only(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Integers of Python take many times the space of the ids that are kept."""
    most, alive = 0, 0

    class Encoded(dict):  # type: ignore[type-arg]
        def __init__(self, encoding: Any) -> None:
            nonlocal most, alive
            super().__init__(encoding)
            alive += len(self["input_ids"])
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= len(self["input_ids"])

    original = type(tokenizer).__call__
    monkeypatch.setattr(type(tokenizer), "__call__", lambda *given, **named: Encoded(original(*given, **named)))
    monkeypatch.setattr(texts, "SLICE", 10)
    columns = {name: values * 20 for name, values in pairs()[:].items()}
    columns["idx"] = list(range(len(columns["idx"])))
    split = tokenise(make_split(TWO, columns), tokenizer, TWO, str(tmp_path))
    assert len(split) == 80 and most <= 2 * 10


def test_a_small_split_and_a_log_file_get_no_bar(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(texts, "MANY", 3)
    tokenise(pairs(), tokenizer, TWO, str(tmp_path / "log"))
    monkeypatch.setattr(texts, "MANY", len(pairs()))
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    tokenise(pairs(), tokenizer, TWO, str(tmp_path / "small"))
    assert capsys.readouterr().err == ""


def test_cut_items_are_counted_and_items_that_just_fit_are_not(tokenizer: Any, tmp_path: Path) -> None:
    # [CLS], six words of one piece each, [SEP]: eight tokens fit, nine do not.
    dataset = rows(["one two three four five six", "one two three four five six seven"])
    split = tokenise(dataset, tokenizer, ONE, str(tmp_path))
    assert split.truncated == 1
    assert split.lengths.tolist() == [8, 8]


def test_a_split_keeps_its_numbers_and_lengths(tokenizer: Any, tmp_path: Path) -> None:
    split = tokenise(rows(), tokenizer, ONE, str(tmp_path))
    assert len(split) == 4 and split.idx.tolist() == [7, 8, 9, 10]
    assert split.lengths.tolist() == [4, 8, 2, 6]


def test_the_second_call_reads_the_cache_and_gives_the_same(tokenizer: Any, tmp_path: Path) -> None:
    first = tokenise(pairs(), tokenizer, TWO, str(tmp_path))
    second = tokenise(pairs(), tokenizer, TWO, str(tmp_path))
    assert not first.cached and second.cached
    assert same(first, second)


def test_another_content_length_or_tokenizer_misses_the_cache(tokenizer: Any, tmp_path: Path) -> None:
    tokenise(rows(), tokenizer, ONE, str(tmp_path))
    other = copy.deepcopy(tokenizer)
    assert tokenise(rows(), other, ONE, str(tmp_path)).cached
    other.add_tokens(["nobody"])
    assert not tokenise(rows(), other, ONE, str(tmp_path)).cached
    assert not tokenise(rows(), tokenizer, replace(ONE, max_length=9), str(tmp_path)).cached
    assert not tokenise(rows([*TEXTS[:3], "not bad at al"]), tokenizer, ONE, str(tmp_path)).cached
    assert tokenise(rows(), tokenizer, ONE, str(tmp_path)).cached


@pytest.mark.parametrize("damage", ["cut", "garbage", "value", "no metadata"])
def test_a_damaged_cache_file_is_noticed_and_made_again(
    tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    first = tokenise(rows(), tokenizer, ONE, str(tmp_path))
    file = cached_file(tmp_path)
    raw = file.read_bytes()
    if damage == "cut":
        file.write_bytes(raw[:-5])
    elif damage == "garbage":
        file.write_bytes(b"no safetensors file")
    elif damage == "value":
        file.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    else:
        save_file(load_file(file), file)
    again = tokenise(rows(), tokenizer, ONE, str(tmp_path))
    assert not again.cached and "made again" in capsys.readouterr().err
    assert same(first, again)
    assert tokenise(rows(), tokenizer, ONE, str(tmp_path)).cached


def test_a_tokenizer_without_padding_and_an_empty_split_are_refused(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="task one: a split is empty"):
        make_items(rows([]), tokenizer, ONE, str(tmp_path))
    other = copy.deepcopy(tokenizer)
    other.pad_token = None
    with pytest.raises(UserError, match="has no padding token"):
        tokenise(rows(), other, ONE, str(tmp_path))


lengths_of = st.lists(st.integers(2, 128), min_size=1, max_size=300)


@settings(max_examples=60, deadline=None)
@given(lengths_of, st.integers(1, 40), st.integers(0, 2**32), st.integers(0, 50), st.booleans())
def test_an_epoch_has_every_item_once_in_the_fewest_batches(
    lengths: list[int], batch_size: int, seed: int, epoch: int, by_length: bool
) -> None:
    batches = train_batches(lengths, batch_size, seed, epoch, by_length)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert len(batches) == math.ceil(len(lengths) / batch_size)
    assert sum(len(batch) < batch_size for batch in batches) <= 1
    assert batches == train_batches(np.array(lengths), batch_size, seed, epoch, by_length)


@pytest.mark.parametrize("by_length", [True, False])
def test_epochs_and_seeds_differ_and_batches_are_not_in_order_of_length(by_length: bool) -> None:
    lengths = np.random.default_rng(0).integers(2, 128, 2000)
    first = train_batches(lengths, 32, 0, 0, by_length)
    others = [train_batches(lengths, 32, seed, epoch, by_length) for seed, epoch in ((0, 1), (1, 0))]
    assert first != others[0] != others[1] != first
    means = [lengths[batch].mean() for batch in first]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.5


def test_grouping_by_length_saves_most_of_the_padding() -> None:
    lengths = np.random.default_rng(0).integers(2, 128, 4000)
    padded = sum(lengths[batch].max() * len(batch) for batch in train_batches(lengths, 32, 0, 0, True))
    shuffled = np.random.default_rng(1).permutation(lengths)
    unsorted = sum(shuffled[i : i + 32].max() * len(shuffled[i : i + 32]) for i in range(0, 4000, 32))
    assert padded - lengths.sum() < 0.1 * (unsorted - lengths.sum())


def test_random_batches_do_not_look_at_lengths() -> None:
    lengths = np.random.default_rng(0).integers(2, 128, 4000)
    batches = train_batches(lengths, 32, 0, 0, False)
    assert batches == train_batches(np.zeros(4000), 32, 0, 0, False)
    spread = np.mean([lengths[batch].std() for batch in batches])
    assert spread > 0.95 * lengths.std()  # of 32 items drawn at random; 0.15 of it where they are sorted


@settings(max_examples=60, deadline=None)
@given(lengths_of, st.integers(1, 40))
def test_evaluation_goes_from_long_to_short_and_has_every_item_once(lengths: list[int], batch_size: int) -> None:
    batches = eval_batches(lengths, batch_size)
    flat = [lengths[i] for batch in batches for i in batch]
    assert flat == sorted(lengths, reverse=True)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
