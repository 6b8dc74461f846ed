"""GSM8K after MetaMathQA: which rows train, which answers count, and what is refused."""

from __future__ import annotations

import json

import pytest
from datasets_on_disk import task_config
from tiny_causal import tiny_tokenizer

from elalora.errors import UserError
from experiments.config.task import DataConfig
from experiments.data import load_task
from experiments.data.digests import digests
from experiments.data.items import make_items
from experiments.training.parsers import PARSERS


def written(folder, last="9 - 2 = <<9-2=7>>7\n#### 1,007"):
    (folder / "math").mkdir(exist_ok=True)
    rows = [
        {"query": f"What is {i} + 1?", "response": f"{i + 1}.\nThe answer is: {i + 1}", "type": "GSM_AnsAug"}
        for i in range(40)
    ]
    rows += [{"query": "Simplify.", "response": "So.\nThe answer is: \\\\frac{1}{2}", "type": "MATH_AnsAug"}] * 10
    (folder / "math" / "MetaMathQA-395K.json").write_text(json.dumps(rows))
    tests = [{"question": "How many?", "answer": "#### 18"}, {"question": "And now?", "answer": last}]
    (folder / "math" / "gsm8k_test.jsonl").write_text("\n".join(map(json.dumps, tests)))
    return DataConfig(root=str(folder))


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
    with pytest.raises(UserError, match=r"put MetaMathQA-395K.json or train.parquet into FOLDER/math/"):
        load_task(task_config("gsm8k"), DataConfig())
    data = written(tmp_path)
    with pytest.raises(UserError, match="math/MetaMathQA has 50 rows; the official split has 395000"):
        load_task(task_config("gsm8k"), data)
    before = digests(task_config("gsm8k"), data.root)
    data = written(tmp_path, last="no number")
    assert digests(task_config("gsm8k"), data.root) != before
    with pytest.raises(UserError, match="math/gsm8k_test: row 2 has no number behind ####"):
        load_task(task_config("gsm8k", verify=False), data)
