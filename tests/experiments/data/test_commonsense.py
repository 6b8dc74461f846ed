"""Commonsense and instructions: which rows train, how eight test sets become one score, and what is refused."""

from __future__ import annotations

import json

import pytest
from datasets_on_disk import task_config
from hub_server import Repo, serving
from tiny_causal import tiny_tokenizer

from elalora.errors import UserError
from experiments.config.task import PART, DataConfig
from experiments.data import load_task
from experiments.data.commonsense import SETS
from experiments.data.digests import digests
from experiments.data.items import make_items
from experiments.training.causal_readout import Generated, Options, grouped
from experiments.training.parsers import PARSERS

ANSWERS = ["true", "solution2", "answer3", "ending4", "option1", "answer1", "answer5", "answer2"]
WORDS = dict(zip(SETS, ANSWERS, strict=True))


def row(answer: str, number: int) -> dict[str, str]:
    """A row in the schema of LLM-Adapters."""
    return {
        "instruction": f"Please choose the correct answer to the question: {number}?\n\nAnswer format: {answer}/...",
        "input": "", "output": f"the correct answer is {answer}", "answer": answer,
    }  # fmt: skip


def written(folder, **changes):
    base = folder / "commonsense"
    base.mkdir(exist_ok=True)
    train = [row(WORDS[name], i) for i in range(5) for name in SETS]
    (base / "commonsense_15k.json").write_text(json.dumps(train))
    for place, (name, word) in enumerate(WORDS.items(), start=1):
        (base / name).mkdir(exist_ok=True)
        rows = [row(changes.get(name, word), i) for i in range(place)]  # sets of different sizes
        (base / name / "test.json").write_text(json.dumps(rows))
    return DataConfig(root=str(folder))


def test_the_eight_test_sets_are_one_split_whose_items_know_their_set(tmp_path):
    task, data = task_config("commonsense_15k", verify=False), written(tmp_path)
    splits = load_task(task, data).splits
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 36, "validation": 4, "test": 36}
    assert [idx // PART for idx in splits["test"]["idx"][:]] == [p for p in range(1, 9) for _ in range(p)]
    assert task.options[splits["test"]["label"][:][0]] == "true"
    items = make_items(splits["train"], tiny_tokenizer(), task, str(tmp_path))
    text = tiny_tokenizer().decode(items.batch([0])["input_ids"][0][: items.lengths[0] - 1])
    assert text.endswith("### Response: the correct answer is " + task.options[splits["train"]["label"][:][0]])
    assert PARSERS[task.parser].parse(text.rpartition("Response:")[2], task.options) in task.options


def test_the_score_is_the_mean_over_sets_and_not_over_items(tmp_path):
    """The largest of the real sets has twenty times the items of the smallest, and would decide a mean over items."""
    task = task_config("commonsense_15k", verify=False)
    readout = Generated.__new__(Generated)
    readout.task, readout.metrics = task, list(task.metrics)
    rows = [(1 * PART, ["true"], "the correct answer is true", 100.0, True, "true")]
    rows += [(2 * PART + i, ["solution1"], "no", 0.0, False, None) for i in range(9)]
    found, _ = readout.score(rows)
    assert found == {"accuracy": 50.0, "parse_failures": 90.0, "accuracy_boolq": 100.0, "accuracy_piqa": 0.0}
    assert readout.constant(rows) == {"accuracy": 100.0}  # of each set its own commonest answer
    assert list(grouped([], rows)) == [""]
    assert readout.score([(5, ["true"], "true", 100.0, True, "true")])[0] == {"accuracy": 100.0, "parse_failures": 0.0}


LISTED = {
    "boolq": "with true or false, question: is answer1 option2?", "piqa": "Solution1: a\n\nSolution2: b",
    "social_i_qa": "Answer1: a Answer2: b Answer3: true", "hellaswag": "Ending1: a Ending2: b Ending3: c Ending4: d",
    "winogrande": "Option1: a Option2: b", "ARC-Easy": "Answer1: a Answer2: b Answer3: c",
    "ARC-Challenge": "Answer1: a Answer2: b Answer3: c Answer4: d Answer5: e", "openbookqa": "Answer1: a Answer2: b",
}  # fmt: skip


def test_options_of_a_row_are_those_of_its_set_which_its_instruction_names(tmp_path):
    data = written(tmp_path)
    by_words = load_task(task_config("commonsense_15k", verify=False), data)
    for name in ("commonsense_15k.json", *(f"{name}/test.json" for name in SETS)):
        rows = json.loads((tmp_path / "commonsense" / name).read_text())
        for one in rows:
            own = next(key for key, word in WORDS.items() if word == one["answer"])
            one["instruction"] = f"Please choose: {LISTED[own]}"
        (tmp_path / "commonsense" / name).write_text(json.dumps(rows))
    reading = {"answer": "options", "options_column": "instruction", "metrics": ["accuracy"]}
    task = task_config("commonsense_15k", verify=False, **reading)
    rows = load_task(task, data).splits["test"]
    found = {list(SETS)[idx // PART - 1]: options for idx, options in zip(rows["idx"], rows["options"], strict=True)}
    numbers = {"piqa": 2, "social_i_qa": 3, "hellaswag": 4, "winogrande": 2, "ARC-Easy": 3, "ARC-Challenge": 5}
    words = {name: WORDS[name].rstrip("12345") for name in SETS}
    assert found == {"boolq": ["true", "false"]} | {
        name: [f"{words[name]}{n}" for n in range(1, numbers.get(name, 2) + 1)] for name in SETS if name != "boolq"
    }
    old = by_words.splits["test"]["label"][:]
    chosen = [options[label] for options, label in zip(rows["options"], rows["label"], strict=True)]
    assert chosen == [task.options[label] for label in old]
    items = make_items(rows, tiny_tokenizer(), task, str(tmp_path), training=False)
    assert items.counts.tolist() == [len(options) for options in rows["options"]]


def test_the_score_by_options_is_the_mean_over_sets_too():
    readout = Options.__new__(Options)
    readout.task = task_config("commonsense_15k", answer="options", options_column="instruction", metrics=["accuracy"])
    readout.metrics = ["accuracy"]
    logprobs, tokens = [-1.0, -2.0], [1, 1]
    rows = [(1 * PART, 0, 0, 1.0, True, logprobs, tokens, tokens)]
    rows += [(2 * PART + i, 1, int(i == 0), 1.0, i == 0, logprobs, tokens, tokens) for i in range(4)]
    found, _ = readout.score(rows)
    assert found == {"accuracy": 62.5, "accuracy_boolq": 100.0, "accuracy_piqa": 25.0}
    assert readout.constant(rows) == {"accuracy": 100.0}


def test_an_instruction_that_does_not_name_its_answer_is_refused(tmp_path):
    data = written(tmp_path, boolq="false")
    reading = {"answer": "options", "options_column": "instruction", "metrics": ["accuracy"]}
    with pytest.raises(UserError, match=r"row 1 has the options \['true'\]; expected a list of at least two"):
        load_task(task_config("commonsense_15k", verify=False, **reading), data)


def test_what_is_missing_or_unknown_is_named(tmp_path):
    task = task_config("commonsense_15k", verify=False)
    data = written(tmp_path)
    before = digests(task, data.root)
    with pytest.raises(UserError, match=r"commonsense/commonsense_170k.json is missing .* LLM-Adapters"):
        load_task(task_config("commonsense_170k"), data)
    with pytest.raises(UserError, match=r"commonsense/boolq/test.json has 1 rows; the official split has 3270"):
        load_task(task_config("commonsense_15k"), data)
    data = written(tmp_path, piqa="solution3")
    assert digests(task, data.root) != before
    with pytest.raises(UserError, match=r"piqa/test.json: row 1 has the answer 'solution3'; allowed: true, false"):
        load_task(task, data)
    with pytest.raises(UserError, match="leave task.parts"):
        load_task(task_config("commonsense_15k", parts=["boolq"]), data)


def alpaca() -> list[dict[str, str]]:
    inputs = [str(i) if i % 2 else "" for i in range(60)]
    rows = [{"instruction": f"Add 1 to {i}.", "input": text, "output": str(i + 1)} for i, text in enumerate(inputs)]
    return [*rows, {"instruction": "Say nothing.", "input": "", "output": ""}]


def test_alpaca_comes_from_the_hub_at_a_commit_that_the_user_names(tmp_path, monkeypatch):
    files = {"alpaca_data_cleaned.json": json.dumps(alpaca()).encode()}
    with serving(Repo("yahma/alpaca-cleaned", {"c" * 40: files}, kind="datasets")) as hub:
        hub.use(monkeypatch, tmp_path)
        with pytest.raises(UserError, match=r"not pinned; put alpaca_.* type task.hub_revision=COMMIT"):
            load_task(task_config("alpaca_cleaned"), DataConfig())
        with pytest.raises(UserError, match="it has no commit a"):
            load_task(task_config("alpaca_cleaned", hub_revision="a" * 40), DataConfig())
        loaded = load_task(task_config("alpaca_cleaned", hub_revision="c" * 40), DataConfig())
    assert {name: len(rows) for name, rows in loaded.splits.items()} == {"train": 48, "validation": 6, "test": 6}
    (tmp_path / "alpaca").mkdir()
    (tmp_path / "alpaca" / "alpaca_data_cleaned.json").write_bytes(files["alpaca_data_cleaned.json"])
    local = load_task(task_config("alpaca_cleaned"), DataConfig(root=str(tmp_path)))
    assert local.fingerprint == loaded.fingerprint
    items = make_items(local.splits["train"], tiny_tokenizer(), task_config("alpaca_cleaned"), str(tmp_path))
    texts = [tiny_tokenizer().decode(items.batch([i])["input_ids"][0]) for i in range(len(items))]
    assert {"### Input:" in text for text in texts} == {True, False}
