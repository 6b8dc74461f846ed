"""IFEval: its rows, what is refused, and scores of made-up answers by a stand-in for the rules and the real ones."""

from __future__ import annotations

import importlib.util
import json
import sys
from types import ModuleType, SimpleNamespace

import nltk
import pytest
import torch
from datasets_on_disk import task_config
from tiny_causal import tiny_llama, tiny_tokenizer

from elalora.errors import UserError
from experiments.config.schema import ModelConfig
from experiments.config.task import DataConfig, ProtocolConfig, check_task
from experiments.data import ifeval, load_task
from experiments.data.digests import digests
from experiments.data.items import make_items
from experiments.data.protocols import apply_protocol, selects
from experiments.models.fit import fit
from experiments.training.followed import Followed
from experiments.training.readout import make_readout

PROMPTS = [
    {"key": 7, "prompt": "Write.", "instruction_id_list": ["words", "commas"], "kwargs": [{"least": 3}, {}]},
    {"key": 9, "prompt": "Write more.", "instruction_id_list": ["words"], "kwargs": [{"least": 5}]},
]
RULES = {"words": lambda text, least: len(text.split()) >= least, "commas": lambda text: "," not in text}


def process_results(doc, results):
    """As lm-evaluation-harness returns it; loosely, the first line may be left out."""
    [text], pairs = results, list(zip(doc["instruction_id_list"], doc["kwargs"], strict=True))
    strict = [RULES[name](text, **more) for name, more in pairs]
    loose = [any(RULES[name](t, **more) for t in (text, text.partition("\n")[2])) for name, more in pairs]
    found = {"inst_level_strict_acc": strict, "inst_level_loose_acc": loose}
    return found | {"prompt_level_strict_acc": all(strict), "prompt_level_loose_acc": all(loose)}


@pytest.fixture
def harness(monkeypatch):
    """A stand-in for lm-evaluation-harness with two rules."""
    names = ["lm_eval", "lm_eval.tasks", "lm_eval.tasks.ifeval", "lm_eval.tasks.ifeval.utils", "langdetect"]
    modules = {name: ModuleType(name) for name in names}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    utils = modules["lm_eval.tasks.ifeval.utils"]
    modules["lm_eval.tasks.ifeval"].utils = utils
    utils.process_results, utils.instructions_registry = process_results, SimpleNamespace(INSTRUCTION_DICT=RULES)
    modules["langdetect"].DetectorFactory = SimpleNamespace(seed=None)
    monkeypatch.setattr(nltk.data, "find", lambda name: name)
    ifeval.rules.cache_clear()
    yield modules
    ifeval.rules.cache_clear()


def written(folder, prompts=PROMPTS):
    alpaca = [{"instruction": f"Add 1 to {i}.", "input": "", "output": str(i + 1)} for i in range(60)]
    for name in ("alpaca", "ifeval"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "alpaca" / "alpaca_data_cleaned.json").write_text(json.dumps(alpaca))
    (folder / "ifeval" / ifeval.FILE).write_text("\n".join(map(json.dumps, prompts)))
    return DataConfig(root=str(folder))


def test_it_trains_on_the_rows_of_alpaca_and_selects_on_none_of_them(tmp_path, harness):
    task, data = task_config("ifeval", verify=False), written(tmp_path)
    loaded = load_task(task, data)
    assert loaded.splits["train"]["idx"][:] == load_task(task_config("alpaca_cleaned"), data).splits["train"]["idx"][:]
    assert loaded.splits["test"]["instruction"][:] == ["Write.", "Write more."]
    assert harness["langdetect"].DetectorFactory.seed == 0  # a text's language is the same in every process
    splits = apply_protocol(loaded, ProtocolConfig(), train_items=None, seed=0)
    assert (len(splits.train), splits.select, len(splits.report), splits.report_name) == (54, None, 2, "test")
    assert not selects("clean", "own", "ifeval") and selects("clean", "own", "files")
    with pytest.raises(UserError, match="protocol=tune .* tune with task=alpaca_cleaned"):
        apply_protocol(loaded, ProtocolConfig(name="tune"), train_items=None, seed=0)
    before = digests(task, data.root)
    written(tmp_path, PROMPTS[:1])
    assert digests(task, data.root)["test"] != before["test"]


def test_prompts_and_rules_are_scored_strictly_and_loosely(harness):
    readout = Followed.__new__(Followed)
    readout.task = task_config("ifeval")
    readout.metrics = [*readout.task.metrics, "parse_failures"]
    rules = [json.dumps(row) for row in PROMPTS]
    texts = ["Sure, gladly:\none two three", "one two three four five", None]
    rows = []
    for number, (text, rule) in enumerate(zip(texts, [rules[0], rules[1], rules[1]], strict=True)):
        right = readout._right(text, [rule])
        rows.append((number, [rule], text or "", 100.0 * right, right, text))
    found, _ = readout.score(rows)
    # rules followed: words yes and commas only loosely, words yes, words no
    assert found == pytest.approx({
        "accuracy": 100 / 3, "prompt_loose": 200 / 3, "instruction_strict": 50.0, "instruction_loose": 75.0,
        "parse_failures": 100 / 3,
    })  # fmt: skip
    assert readout.constant(rows) == {}


def test_a_generated_text_is_stored_with_its_rules_and_verdict(tmp_path, harness):
    task = task_config("ifeval", verify=False, generate_length=5, max_length=200)
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    fit(ModelConfig(name="tiny", path="tiny"), task, model, tokenizer)
    items = make_items(load_task(task, written(tmp_path)).splits["test"], tokenizer, task, str(tmp_path), False)
    readout = make_readout(task, tokenizer, model)
    with torch.inference_mode():
        rows = readout.read(model, items, [0, 1], items.batch([0, 1]))
    assert [json.loads(row[1][0])["prompt"] for row in rows] == ["Write.", "Write more."]
    for row in rows:
        rules = json.loads(row[1][0])
        pairs = zip(rules["instruction_id_list"], rules["kwargs"], strict=True)
        assert row[4] == all(RULES[name](row[2], **more) for name, more in pairs) and row[3] == 100.0 * row[4]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"instruction_id_list": ["words", "rhymes"]}, "row 1 has the rule 'rhymes'; allowed: commas, words"),
        ({"kwargs": [{}]}, "row 1 needs as many settings in kwargs as rules"),
        ({"instruction_id_list": [], "kwargs": []}, "row 1 needs as many settings"),
    ],
)
def test_rows_whose_rules_cannot_be_checked_are_named(tmp_path, harness, change, line):
    with pytest.raises(UserError, match=line):
        load_task(task_config("ifeval", verify=False), written(tmp_path, [PROMPTS[0] | change]))


def test_missing_prompts_rows_and_commits_are_named(tmp_path, harness):
    data = written(tmp_path)
    with pytest.raises(UserError, match=r"ifeval_input_data.jsonl has 2 rows; the official split has 541"):
        load_task(task_config("ifeval"), data)
    (tmp_path / "ifeval" / ifeval.FILE).unlink()
    with pytest.raises(UserError, match="put ifeval_input.* into FOLDER/ifeval/ .* task.test_hub_revision=COMMIT"):
        load_task(task_config("ifeval"), data)


def test_without_the_package_or_its_data_the_run_is_refused_in_one_line(tmp_path, harness, monkeypatch):
    task, data = task_config("ifeval", verify=False), written(tmp_path)

    def missing(name):
        raise LookupError("a page of text")

    monkeypatch.setattr(nltk.data, "find", missing)
    with pytest.raises(UserError, match="punkt_tab, which is missing: type python -m nltk.downloader punkt_tab") as one:
        load_task(task, data)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks.ifeval", None)
    with pytest.raises(UserError, match=r"type pip install 'lm-eval\[ifeval\]'") as two:
        load_task(task, data)
    assert "\n" not in f"{one.value}{two.value}"


@pytest.mark.parametrize(
    ("name", "settings", "line"),
    [
        ("ifeval", {"parser": "exact_v1"}, "are read with task.answer=generate and task.parser=ifeval_v1"),
        ("sums", {"parser": "ifeval_v1"}, "no other task has any"),
        ("ifeval", {"metrics": ["rougeL"]}, "task=ifeval has no rougeL; allowed: accuracy, prompt_loose"),
        ("sums", {"metrics": ["accuracy", "prompt_loose"]}, "prompt_loose is for task=ifeval"),
    ],
)
def test_rules_are_refused_where_prompts_have_none(name, settings, line):
    with pytest.raises(UserError, match=line):
        check_task(task_config(name, **settings))


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs lm-eval[ifeval], not in the lock")
def test_the_real_rules_judge_made_up_answers(monkeypatch):
    monkeypatch.setattr(nltk.data, "find", lambda name: name)  # no sentence is counted here
    ifeval.rules.cache_clear()
    names = ["punctuation:no_comma", "length_constraints:number_words", "change_case:english_lowercase"]
    settings = [{}, {"relation": "at least", "num_words": 6, "num_frequency": None}, {}]
    rules = json.dumps({"key": 1, "prompt": "Write.", "instruction_id_list": names, "kwargs": settings})
    good = "this is a plain answer in the english language"
    for text, strict, loose in (
        (good, [True, True, True], [True, True, True]),
        (f"Sure, here it is:\n{good}", [False, True, False], [True, True, True]),
        ("", [False] * 3, [False] * 3),
    ):
        assert ifeval.followed(rules, text) == {"strict": strict, "loose": loose}
    ifeval.rules.cache_clear()
