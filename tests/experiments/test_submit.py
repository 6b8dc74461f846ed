"""A contribution holds its runs and a record made from them; sender and receiver run the same check."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny_runs import quick

from elalora.errors import UserError
from experiments.__main__ import main
from experiments.runs.plan import make_plan
from experiments.runs.run import run
from experiments.submit import RECORD, check, submit


@pytest.fixture(scope="module")
def store(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("submit") / "runs"
    for words in (["seed=0"], ["seed=1"], ["protocol=tune", "trainer.lr=1e-2"]):
        run(make_plan(quick(tiny_model_dir, root, "method=lora", "trainer.max_steps=6", *words)))
    return root


@pytest.fixture
def sent(store: Path, tmp_path: Path) -> Path:
    assert submit([str(store)], tmp_path / "sent") == []
    return tmp_path / "sent"


def test_the_record_has_seeds_data_budget_and_what_tuning_spent(sent: Path, store: Path):
    made = json.loads((sent / RECORD).read_text())
    [arm] = [arm for arm in made["arms"].values() if arm["protocol"] == "clean"]
    results = [json.loads(path.read_text()) for path in store.glob("*/*/result.json")]
    assert arm["seeds"] == [0, 1] and (arm["budget"], arm["steps"], arm["learning_rate"]) == ("r4", 6, 5e-3)
    assert arm["data"] in {result["data"]["fingerprint"] for result in results}
    assert made["tuning"] == [{"task": "vader_movies", "method": "lora", "runs": 1, "rates": [1e-2]}]
    assert not [path for path in sent.rglob("*") if "adapter" in path.name]


def test_the_receiver_s_check_finds_what_the_sender_changed(sent: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["submit", "--check", str(sent)]) == 0 and "2 arms, 3 runs, no problem" in capsys.readouterr().out
    made = json.loads((sent / RECORD).read_text())
    next(iter(made["arms"].values()))["seeds"].append(7)
    (sent / RECORD).write_text(json.dumps(made))
    (sent / "run_me.sh").write_text("")
    assert main(["submit", "--check", str(sent)]) == 1
    said = capsys.readouterr().out
    assert "run_me.sh does not belong to a contribution" in said and "is not the record of its runs" in said
    (sent / RECORD).unlink()
    assert any("cannot be compared" in line for line in check(sent))


def test_a_store_whose_files_do_not_fit_is_not_packed(store: Path, tmp_path: Path):
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    with next(copy.glob("*/*/metrics.jsonl")).open("a") as file:
        file.write('{"step": 6, "split": "test", "metric": "accuracy", "value": 99}\n')
    assert any("metrics.jsonl" in line for line in submit([str(copy)], tmp_path / "sent"))
    assert not (tmp_path / "sent").exists()


def test_data_that_was_not_compared_is_not_submitted(tiny_model_dir: Path, tmp_path: Path):
    words = ("method=head", "trainer.max_steps=2", "task.verify=false")
    run(make_plan(quick(tiny_model_dir, tmp_path / "runs", *words)))
    lines = submit([str(tmp_path / "runs")], tmp_path / "sent")
    assert any("was not compared with the official data" in line for line in lines)


def test_a_folder_with_content_is_left_alone(store: Path, sent: Path):
    with pytest.raises(UserError, match="has content; type --out"):
        submit([str(store)], sent)
