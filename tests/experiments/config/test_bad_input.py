"""A table of wrong inputs: each is one clear line and exit code 2, without a traceback, and nothing is written."""

from __future__ import annotations

import json
import shutil

import pytest
from tiny_runs import MOVES, QUICK

import run

OVERRIDES = [
    ["trainer.lr"], ["=3"], ["trainer.lr=[1,"], ["method.k={a"], ["trainer.lr=1=2", "x=("],
    ["trainerr.lr=1"], ["trainer.learning_rate=1"], ["~trainer.nothing"], ["seed='"],
]  # fmt: skip
CONFIGS = [
    ["method=elolora"], ["task=colla"], ["protocol=dirty"], ["trainer=slow"], ["model=gpt9"], ["tracking=mlflow"],
    ["trainer.batch_size=0"], ["trainer.batch_size=many"], ["trainer.max_steps=0"], ["trainer.lr=-1"],
    ["trainer.lr=nan"], ["trainer.precision=fp16"], ["trainer.schedule=zigzag"], ["trainer.micro_batch=0"],
    ["trainer.weight_decay=-1"], ["trainer.max_grad_norm=0"], ["trainer.warmup=30"], ["trainer.log_every=0"],
    ["method.k=0"], ["method.beta1=2"], ["method.unknown=1"], ["method.k=abc"], ["task.metrics=[beauty]"], ["seed=x"],
]  # fmt: skip
BUDGETS = [
    ["budget=r0"], ["budget=r65"], ["budget=4"], ["budget.rank=0"], ["budget.rank=-2"], ["budget.rank=two"],
    ["budget.rank=null"], ["budget=params"], ["budget=params", "budget.params=-5"], ["budget=r4", "budget.params=9"],
    ["budget=params", "budget.params=1"],
]  # fmt: skip
DATA = {
    "empty.csv": b"", "no_label.csv": b"text\nx\n", "no_rows.csv": b"text,label\n",
    "latin.csv": b"text,label\n\xff\xfe,0\n",
    "odd.csv": b'text,label\n"open,0\n', "third.csv": b"text,label\na,0\nb,1\nc,2\n",
    "half.jsonl": b'{"text": "a", "la',
    "list.jsonl": b"[1, 2]\n",
    "fake.parquet": b"PAR1 nothing PAR1", "thing.xyz": b"text,label\na,0\n",
}  # fmt: skip
SETTING = {"config.json": b"{", "model.safetensors": b"\x00" * 40, "tokenizer.json": b"[]"}


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """Calls the command, and holds what must be true of every refusal."""

    def call(*words):
        monkeypatch.setattr("sys.argv", ["run.py", f"store.root={tmp_path}/store", *words])
        code = run.main()
        out, err = capsys.readouterr()
        lines = [line for line in err.splitlines() if line.strip()]
        assert code == 2, (words, code, err)
        assert len(lines) == 1 and lines[0].startswith("elalora: ") and "Traceback" not in out + err, err
        assert len(lines[0]) > len("elalora: ") + 15, err
        assert not (tmp_path / "store").exists()
        return lines[0]

    return call


@pytest.mark.parametrize("words", OVERRIDES + CONFIGS + BUDGETS, ids=" ".join)
def test_a_wrong_word_is_one_line(words, refused, tiny_model_dir):
    refused(*QUICK, *MOVES, f"model.path={tiny_model_dir}", *words)


@pytest.mark.parametrize("name", DATA)
def test_a_wrong_data_file_is_one_line_with_its_name(name, refused, tiny_model_dir, tmp_path):
    (tmp_path / name).write_bytes(DATA[name])
    (tmp_path / "good.csv").write_text("text,label\n" + "a,0\nb,1\n" * 5)
    words = ["task=own", f"data.root={tmp_path}", f"task.files.train={name}", "task.files.test=good.csv"]
    assert name in refused(*QUICK, *MOVES, f"model.path={tiny_model_dir}", "data.train_items=null", *words)


@pytest.mark.parametrize("name", [*SETTING, "no config.json", "no model.safetensors", "no tokenizer.json", "pickle"])
def test_a_wrong_model_folder_is_one_line(name, refused, tiny_model_dir, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    if name in SETTING:
        (folder / name).write_bytes(SETTING[name])
    elif name == "pickle":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    else:
        (folder / name.removeprefix("no ")).unlink()
    (tmp_path / "good.csv").write_text("text,label\n" + "a,0\nb,1\n" * 5)
    words = ["task=own", f"data.root={tmp_path}", "task.files.train=good.csv", "task.files.test=good.csv"]
    refused(*QUICK, *MOVES, f"model.path={folder}", "data.train_items=null", *words)


RESULTS = {
    "an empty file": "", "half a file": '{"schema": 1, "id', "a list": "[]", "a number": "7", "no schema": "{}",
    "a newer schema": json.dumps({"schema": 99}), "an older schema": json.dumps({"schema": 0}),
}  # fmt: skip


@pytest.mark.parametrize("content", RESULTS.values(), ids=RESULTS)
@pytest.mark.parametrize("setting", ["init_from", "method.ranks_from"])
def test_a_wrong_result_of_another_run_is_one_line_and_stays(setting, content, refused, tiny_model_dir, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "result.json").write_text(content)
    method = ["method=svd_lora"] if setting == "method.ranks_from" else MOVES
    assert str(source) in refused(*QUICK, f"model.path={tiny_model_dir}", *method, f"{setting}={source}")
    assert (source / "result.json").read_text() == content
