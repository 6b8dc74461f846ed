"""GSM8K after MetaMathQA: which rows train, which answers count, and what is refused."""

from __future__ import annotations

import json

import pytest
from datasets_on_disk import task_config
from hub_content import shards
from hub_server import Repo, serving
from tiny_causal import tiny_tokenizer

from elalora.errors import UserError
from experiments.config.task import DataConfig
from experiments.data import load_task
from experiments.data.digests import digests
from experiments.data.items import make_items
from experiments.data.math_words import TESTS
from experiments.training.parsers import PARSERS


def written(folder, last="9 - 2 = <<9-2=7>>7\n#### 1,007"):
    (folder / "math").mkdir(exist_ok=True)
    (folder / "math" / "MetaMathQA-395K.json").write_text(json.dumps(metamath()))
    tests = [{"question": "How many?", "answer": "#### 18"}, {"question": "And now?", "answer": last}]
    (folder / "math" / "gsm8k_test.jsonl").write_text("\n".join(map(json.dumps, tests)))
    return DataConfig(root=str(folder))


def metamath():
    rows = [
        {"query": f"What is {i} + 1?", "response": f"{i + 1}.\nThe answer is: {i + 1}", "type": "GSM_AnsAug"}
        for i in range(40)
    ]
    rows += [{"query": "Simplify.", "response": "So.\nThe answer is: \\\\frac{1}{2}", "type": "MATH_AnsAug"}] * 10
    return rows


def test_solutions_train_and_numbers_are_the_accepted_answers(tmp_path):
    task = task_config("gsm8k", verify=False)
    splits = load_task(task, written(tmp_path)).splits
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 46, "validation": 4, "test": 2}
    assert splits["test"]["references"][:] == [["18"], ["1007"]]
    assert not set(splits["train"]["idx"][:]) & set(splits["validation"]["idx"][:])
    equal = PARSERS[task.parser].equal
    for label, accepted in zip(splits["validation"]["label"][:], splits["validation"]["references"][:], strict=True):
        assert equal(PARSERS[task.parser].parse(label, []), accepted[0])
    items = make_items(splits["train"], tiny_tokenizer(), task, str(tmp_path))
    text = tiny_tokenizer().decode(items.batch([0])["input_ids"][0][: items.lengths[0]])
    assert text.startswith("Question: What is ") and " Think step by step.\nAnswer: " in text


def test_missing_files_other_counts_and_answers_without_a_number_are_refused(tmp_path):
    (tmp_path / "math").mkdir()
    with pytest.raises(UserError, match=r"put MetaMathQA-395K.json or train.parquet into FOLDER/math/"):
        load_task(task_config("gsm8k"), DataConfig(root=str(tmp_path)))
    data = written(tmp_path)
    with pytest.raises(UserError, match="math/MetaMathQA has 50 rows; the official split has 395000"):
        load_task(task_config("gsm8k"), data)
    before = digests(task_config("gsm8k"), data.root)
    data = written(tmp_path, last="no number")
    assert digests(task_config("gsm8k"), data.root) != before
    with pytest.raises(UserError, match="math/gsm8k_test: row 2 has no number behind ####"):
        load_task(task_config("gsm8k", verify=False), data)


SOLVED = ["Thus $\\boxed{\\frac{1}{2}}$.", "It is $\\boxed{7}$."]


def repos():
    """MetaMathQA as the one JSON file of its repository, GSM8K and MATH as parquet files of their configurations."""
    train, gsm8k = task_config("gsm8k"), {"question": ["How many?"], "answer": ["2+2\n#### 4"]}
    problems = {
        "problem": ["Halve 1.", "3 + 4?"],
        "level": ["Level 1"] * 2,
        "type": ["Algebra"] * 2,
        "solution": SOLVED,
    }
    files = {"MetaMathQA-395K.json": json.dumps(metamath()).encode()}
    math = {}
    for name in TESTS["math"].hub_names:
        math |= shards(name, "test", problems)
    return [
        Repo("meta-math/MetaMathQA", {train.hub_revision: files}, kind="datasets"),
        Repo("openai/gsm8k", {train.test_hub_revision: shards("main", "test", gsm8k)}, kind="datasets"),
        Repo("EleutherAI/hendrycks_math", {"b" * 40: math}, kind="datasets"),
    ]


def test_both_test_sets_come_from_the_hub_with_their_own_commits(tmp_path, monkeypatch):
    with serving(*repos()) as hub:
        hub.use(monkeypatch, tmp_path)
        loaded = load_task(task_config("gsm8k", verify=False), DataConfig())
        assert loaded.splits["test"]["references"][:] == [["4"]] and len(loaded.splits["train"]) == 46
        assert task_config("gsm8k").test_hub_revision in loaded.source
        with pytest.raises(UserError, match="hendrycks_math on the hub is not pinned; .* type task.test_hub_revision="):
            load_task(task_config("math", verify=False), DataConfig())
        math = task_config("math", verify=False, test_hub_revision="b" * 40)
        splits = load_task(math, DataConfig()).splits
    assert len(splits["test"]) == 14 and splits["test"]["references"][:2] == [[r"\frac{1}{2}"], ["7"]]
    equal, parse = PARSERS["math_v1"].equal, PARSERS["math_v1"].parse
    for label, accepted in zip(splits["validation"]["label"][:], splits["validation"]["references"][:], strict=True):
        assert equal(parse(label, []), accepted[0])
