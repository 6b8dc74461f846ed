"""Prompts and completions as token ids: what the loss sees, what is cut, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from datasets_on_disk import task_config
from tiny_causal import causal_task, reviews, tiny_tokenizer

from elalora.errors import UserError
from experiments.config.task import DataConfig, check_task
from experiments.data import load_task
from experiments.data.items import make_items
from experiments.data.prompts import Prompter
from experiments.data.text_items import IGNORED


def labelled(items, tokenizer, index=0):
    """The text of the tokens that the loss sees."""
    labels = items.batch([index])["labels"][0]
    return tokenizer.decode(labels[labels != IGNORED])


def test_the_loss_sees_the_completion_and_its_end_even_where_padding_is_the_end_token(tmp_path):
    tokenizer = tiny_tokenizer(pad="<|im_end|>")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    items = make_items(reviews(), tokenizer, causal_task(), str(tmp_path))
    batch = items.batch([0, 1, 2])
    assert labelled(items, tokenizer) == " positive<|im_end|>"
    ends = (batch["labels"] == tokenizer.eos_token_id).sum(1)
    assert ends.tolist() == [1, 1, 1]  # one end, none at the padding behind it
    assert batch["attention_mask"].sum(1).tolist() == items.lengths.tolist()  # the end is not masked out
    assert items.weight([0, 1, 2]) == int((batch["labels"] != IGNORED).sum())


def test_a_loss_on_all_tokens_counts_what_is_predicted(tmp_path):
    items = make_items(reviews(), tiny_tokenizer(), causal_task(loss="all"), str(tmp_path))
    batch = items.batch([0, 1, 2])
    predicted = int((batch["labels"][:, 1:] != IGNORED).sum())
    assert items.weight([0, 1, 2]) == predicted == items.lengths.sum() - 3


def test_ids_are_those_of_the_whole_text_encoded_once(tmp_path):
    tokenizer = tiny_tokenizer()
    items = make_items(reviews(), tokenizer, causal_task(), str(tmp_path))
    whole = tokenizer("Review: a good film\nSentiment: positive")["input_ids"]
    assert items.batch([0])["input_ids"][0, : len(whole) + 1].tolist() == [*whole, tokenizer.eos_token_id]
    apart = tokenizer("Review: a good film\nSentiment:")["input_ids"]
    assert whole[: len(apart)] == apart


def test_a_prompt_that_merges_with_its_completion_is_refused_in_one_line(tmp_path):
    """Masked by length, the loss would start inside or behind a token of the completion."""
    tokenizer = tiny_tokenizer()
    task = causal_task(prompt="Review: {text}\nSent", completion="iment: {label}")
    with pytest.raises(UserError, match="begin task.completion with a space") as error:
        make_items(reviews(), tokenizer, task, str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bos", [False, True])
def test_the_begin_token_is_there_once_and_survives_a_cut(tmp_path, bos):
    tokenizer = tiny_tokenizer(bos=bos)
    items = make_items(reviews(), tokenizer, causal_task(max_length=9), str(tmp_path))
    assert items.truncated > 0 and items.lengths.max() <= 9
    ids = items.batch([2])["input_ids"][0]
    assert int((ids == tokenizer.bos_token_id).sum()) == bos and (ids[0] == tokenizer.bos_token_id) == bos
    assert labelled(items, tokenizer, 2) == " negative<|im_end|>"


def test_too_long_rows_lose_the_left_of_their_prompt_or_are_left_out_and_both_are_counted(tmp_path):
    tokenizer = tiny_tokenizer()
    whole = make_items(reviews(), tokenizer, causal_task(), str(tmp_path))
    limit = int(sorted(whole.lengths)[1])
    cut = make_items(reviews(), tokenizer, causal_task(max_length=limit), str(tmp_path))
    assert (len(cut), cut.truncated, cut.dropped) == (3, 1, 0)
    assert tokenizer.decode(cut.batch([2])["input_ids"][0][cut.batch([2])["attention_mask"][0] > 0]).endswith(
        "dull\nSentiment: negative<|im_end|>"
    )
    dropped = make_items(reviews(), tokenizer, causal_task(max_length=limit, truncation="drop"), str(tmp_path))
    assert (len(dropped), dropped.truncated, dropped.dropped) == (2, 0, 1) and dropped.idx.tolist() == [10, 11]
    again = make_items(reviews(), tokenizer, causal_task(max_length=limit, truncation="drop"), str(tmp_path))
    assert (len(again), again.truncated, again.dropped) == (2, 0, 1)
    read = make_items(reviews(), tokenizer, causal_task(max_length=limit, truncation="drop"), str(tmp_path), False)
    assert len(read) == 3  # every item of a split that is scored stays


def test_a_completion_that_does_not_fit_is_never_cut(tmp_path):
    tokenizer, task = tiny_tokenizer(), causal_task(max_length=4, completion=" {label} {text} {text}")
    with pytest.raises(UserError, match="no training row fits into task.max_length=4"):
        make_items(reviews(), tokenizer, task, str(tmp_path))
    with pytest.raises(UserError, match=r"item 1 of an evaluated split .* type task.max_length="):
        make_items(reviews(), tokenizer, task, str(tmp_path), training=False)


def test_a_chat_ends_at_the_stop_token_of_its_template_and_begins_with_no_second_begin_token(tmp_path):
    tokenizer = tiny_tokenizer(bos=True)
    items = make_items(reviews(), tokenizer, causal_task(chat=True, completion="{label}"), str(tmp_path))
    batch = items.batch([0])
    text = tokenizer.decode(batch["input_ids"][0][batch["attention_mask"][0] > 0])
    assert text == (
        "<|im_start|>user\nReview: a good film\nSentiment:<|im_end|>\n<|im_start|>assistant\npositive<|im_end|>"
    )
    assert labelled(items, tokenizer) == "positive<|im_end|>"  # without the template's line break behind it


def test_a_chat_template_that_rewrites_earlier_turns_is_refused(tmp_path):
    """Templates of thinking models do; a mask of assistant tokens would silently be all zeros."""
    rewriting = "{% for m in messages %}{{ 'old ' if not loop.last }}{{ m['content'] }}<|im_end|>{% endfor %}"
    with pytest.raises(UserError, match="chat template encodes a prompt in another way .* type task.chat=false"):
        make_items(reviews(), tiny_tokenizer(chat=rewriting), causal_task(chat=True), str(tmp_path))
    with pytest.raises(UserError, match="has no chat template; type task.chat=false"):
        Prompter(causal_task(chat=True), tiny_tokenizer(chat=None))
    with pytest.raises(UserError, match="without a special token"):
        Prompter(causal_task(chat=True), tiny_tokenizer(chat="{% for m in messages %}{{ m['content'] }}{% endfor %}"))


def test_prompts_are_padded_on_the_left_with_positions_that_do_not_count_padding(tmp_path):
    tokenizer = tiny_tokenizer()
    items = make_items(reviews(), tokenizer, causal_task(), str(tmp_path), training=False)
    batch = items.batch([1, 2])
    if not items.single:
        assert len(batch["input_ids"]) == 4  # each with both options
    assert batch["attention_mask"][:, -1].all() and (batch["attention_mask"].diff() >= 0).all()
    first = batch["attention_mask"].argmax(1)
    assert all(batch["position_ids"][row, place] == 0 for row, place in enumerate(first))
    assert torch.equal(batch["position_ids"][:, -1] + 1, batch["attention_mask"].sum(1))


def test_the_template_for_a_blank_input_serves_rows_without_one(tmp_path):
    task = causal_task(prompt="Review: {text} Sentiment:", prompt_without="Sentiment:")
    items = make_items(reviews(texts=("bad", " ", "so slow")), tiny_tokenizer(), task, str(tmp_path))
    text = tiny_tokenizer().decode(items.batch([1])["input_ids"][0][: items.lengths[1]])
    assert text == "Sentiment: negative<|im_end|>"


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"prompt": "Review: {text} "}, "must end in a character that is not white space"),
        ({"prompt": "Review: {review}"}, r"task.prompt names {review}; allowed: text"),
        ({"prompt": "Review: {text.__class__}"}, "is not a column"),
        ({"prompt": "Review: {text"}, "write {column}"),
        ({"completion": " good"}, r"needs {label}"),
        ({"options": ["yes"]}, "at least two different options"),
        ({"options": ["yes", "yes"]}, "at least two different options"),
        ({"parser": "mine"}, "task.parser=mine is unknown; allowed: exact_v1"),
        ({"metrics": ["token_loss"]}, "begins with token_loss"),
        ({"metrics": ["rouge1"]}, "task.answer=options has no rouge1"),
        ({"system": "Be brief."}, "type task.chat=true"),
        ({"stop": [""]}, "a stop text is empty"),
        ({"num_labels": 2}, "kind causal needs 1"),
        ({"options_column": "choices"}, r"gives every row its own options; remove task.options=\['negative'"),
        (
            {"options_column": "choices", "options": [], "metrics": ["mcc"]},
            "takes accuracy, token_loss, perplexity,",
        ),
        ({"options_column": "choices", "answer": "tokens"}, "is read with task.answer=options only"),
        ({"options_column": "text", "source": "glue"}, "is for own files .* and commonsense, not for task=reviews"),
        ({"options_column": "c", "source": "commonsense"}, "stand in its column text; type that"),
        ({"options_column": "c", "options": [], "text": ["options"], "prompt": "{options}"}, "cannot be named options"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_before_anything_is_loaded(settings, line):
    with pytest.raises(UserError, match=line) as error:
        check_task(causal_task(**settings))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["movies", "amazon", "nyt", "tweets"])
def test_a_prompt_task_has_the_rows_of_its_classification_and_its_options_are_the_classes(name):
    twin = "vader_movies" if name == "movies" else f"vader_{name}_binary"
    task = task_config(f"vader_{name}_prompt")
    data, other = load_task(task, DataConfig()), load_task(task_config(twin), DataConfig())
    assert data.fingerprint == other.fingerprint and list(task.options) == ["negative", "positive"]
    assert data.splits["test"]["label"][:] == other.splits["test"]["label"][:]


def test_the_options_of_glue_prompts_follow_its_label_ids(shared):
    """GLUE: 1 is positive, acceptable and equivalent, but 0 is entailment."""
    yes = {"sst2": "positive", "cola": "yes", "mrpc": "yes", "rte": "no"}
    for name, option in yes.items():
        assert task_config(f"{name}_prompt").options[1] == option
    root = DataConfig(root=str(shared / "data"))
    data = load_task(task_config("rte_prompt"), root)
    assert data.fingerprint == load_task(task_config("rte"), root).fingerprint


@pytest.mark.parametrize("form", ["array", "lines"])
def test_own_alpaca_rows_are_read_from_an_array_or_lines_with_and_without_an_input(tmp_path, form):
    rows = [
        {"instruction": "Add.", "input": "1 2", "output": "3"}, {"instruction": "Say hi.", "input": "", "output": "hi"}
    ]  # fmt: skip
    text = json.dumps(rows) if form == "array" else "\n".join(map(json.dumps, rows))
    for name in ("train", "validation", "test"):
        (tmp_path / f"{name}.json").write_text(text)
    task = task_config(
        "own_prompts", text=["instruction", "input"], label="output", prompt="{instruction}\n{input}\nResponse:",
        prompt_without="{instruction}\nResponse:",
        files={name: str(tmp_path / f"{name}.json") for name in ("train", "validation", "test")},
    )  # fmt: skip
    data = load_task(task, DataConfig())
    tokenizer = tiny_tokenizer()
    items = make_items(data.splits["train"], tokenizer, task, str(tmp_path))
    batch = items.batch([0, 1])
    pairs = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    texts = [tokenizer.decode(ids[mask > 0]) for ids, mask in pairs]
    assert texts == ["Add.\n1 2\nResponse: 3<|im_end|>", "Say hi.\nResponse: hi<|im_end|>"]


def questions(folder, *rows, options="choices"):
    lines = [{"question": "Which?", "choices": ["a", "b"], "right": 0}, *rows]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    files = {name: str(folder / "rows.jsonl") for name in ("train", "validation", "test")}
    task = task_config(
        "own_prompts", files=files, text=["question"], label="right", prompt="{question}", answer="options",
        options_column=options, metrics=["accuracy"],
    )  # fmt: skip
    return load_task(task, DataConfig())


def test_own_rows_have_options_of_their_own_and_labels_that_are_their_texts_or_numbers(tmp_path):
    four = ["1", "2", "3", "4"]
    data = questions(
        tmp_path, {"question": "2 + 1?", "choices": four, "right": "3"}, {"question": "?", "choices": four, "right": 3},
        {"question": "?", "choices": ["x", "y", "z"], "right": 2},
    )  # fmt: skip
    assert data.splits["test"]["label"][:] == [0, 2, 2, 2]  # a label that spells an option means that option
    tokenizer = tiny_tokenizer()
    items = make_items(data.splits["test"], tokenizer, data.config, str(tmp_path), training=False)
    assert items.counts.tolist() == [2, 4, 4, 3] and items.references == [["a"], ["3"], ["3"], ["z"]]
    assert [tokenizer.decode(ids) for ids in items.option_ids([3])[0]] == [" x", " y", " z"]
    trained = make_items(data.splits["train"], tokenizer, data.config, str(tmp_path))
    assert tokenizer.decode(trained.batch([1])["input_ids"][0][: trained.lengths[1]]) == "2 + 1? 3<|im_end|>"
    other = questions(tmp_path, {"question": "2 + 1?", "choices": [*four[:3], "5"], "right": "3"})
    assert data.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"right": "c"}, r"row 2 has label 'c'; expected one of its options \(a, b\) or its number, 0 to 1"),
        ({"right": 2}, "row 2 has label 2; expected one of its options"),
        ({"choices": ["a"]}, r"row 2 has the options \['a'\]; expected a list of at least two different texts"),
        ({"choices": ["a", "a"]}, "at least two different texts"),
        ({"choices": ["a", " "]}, "at least two different texts"),
        ({"choices": "a b"}, "row 2 has the options 'a b'; expected a list"),
        ({"choices": "['a', 'b']"}, "row 2 has the text of a list as options; several need JSON or parquet"),
    ],
    ids=str,
)
def test_rows_whose_options_or_label_do_not_fit_are_named(tmp_path, changes, line):
    with pytest.raises(UserError, match=line) as error:
        questions(tmp_path, {"question": "Which?", "choices": ["a", "b"], "right": "b"} | changes)
    assert "\n" not in str(error.value)


def test_a_missing_column_of_options_is_named(tmp_path):
    with pytest.raises(UserError, match="no column 'answers' among"):
        questions(tmp_path, options="answers")


def conversations(folder, turns):
    (folder / "chat.jsonl").write_text(json.dumps({"messages": turns}))
    files = {name: str(folder / "chat.jsonl") for name in ("train", "validation", "test")}
    chat = {"chat": True, "prompt": "{messages}", "completion": "{label}", "text": ["messages"], "label": "messages"}
    return load_task(task_config("own_prompts", files=files, **chat), DataConfig())


def test_own_chat_messages_become_a_prompt_and_its_completion(tmp_path):
    turns = [{"role": "user", "content": "3 + 4?"}, {"role": "assistant", "content": "7"}]
    data = conversations(tmp_path, turns)
    items = make_items(data.splits["train"], tiny_tokenizer(), data.config, str(tmp_path))
    text = tiny_tokenizer().decode(items.batch([0])["input_ids"][0][: items.lengths[0]])
    assert text == "<|im_start|>user\n3 + 4?<|im_end|>\n<|im_start|>assistant\n7<|im_end|>"
    with pytest.raises(UserError, match="row 1 has in messages the turns system, user, assistant; expected"):
        conversations(tmp_path, [{"role": "system", "content": "Be brief."}, *turns])
    with pytest.raises(UserError, match="the turns of no list"):
        conversations(tmp_path, "3 + 4?")
