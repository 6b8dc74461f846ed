"""`python -m experiments check`: a line for each model and task, with what a study needs, and nothing is trained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_content import deberta_v3, glue_repo, model_repo
from hub_server import Hub, Repo, serving

from experiments.__main__ import main
from experiments.check import plans_of
from experiments.runs.prepare import data_of, processor_of, splits_of

FREE = ["task.verify=false", "task.fingerprint=null", "data.train_items=null"]
DEBERTA = model_repo("deberta_v3_base")


@pytest.fixture(scope="module")
def glue() -> Repo:
    return glue_repo()


@pytest.fixture
def hub(glue: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for cached in (data_of, processor_of, splits_of):
        cached.cache_clear()
    with serving(DEBERTA, glue) as hub:
        hub.use(monkeypatch, tmp_path)
        monkeypatch.chdir(tmp_path)
        yield hub


def lines(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_a_line_says_what_a_pair_has_and_nothing_is_trained(hub: Hub, tmp_path: Path, capsys):
    assert main(["check", "model=deberta_v3_base", "task=rte,cola", *FREE]) == 0
    head, cola, rte = lines(capsys)
    assert head[:5] == ["model", "task", "commit", "weights", "matrices"]
    assert cola == "deberta_v3_base cola 8ccc9b6f pickled 72 22 / 2 / 24 nothing".split()
    assert rte[:5] == ["deberta_v3_base", "rte", "8ccc9b6f", "pickled", "72"]
    assert not (tmp_path / "runs").exists()


def test_everything_that_was_checked_is_there_without_a_network(hub: Hub, monkeypatch, capsys):
    words = ["check", "model=deberta_v3_base", "task=rte", *FREE]
    assert main(words) == 0
    data_of.cache_clear(), processor_of.cache_clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(words) == 0


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["task=rte", "data.train_items=null"], "glue/rte train has 24 rows"),
        (["task=rte", *FREE, "model.revision=" + "a" * 40], "it has no commit aaaa"),
        (["task=xsum", *FREE], "model=deberta_v3_base does not fit task=xsum"),
        (["task=rte", *FREE, "task.max_length=0"], "task.max_length"),
    ],
)
def test_what_cannot_be_trained_is_one_line_and_the_exit_code_1(hub: Hub, words, line, capsys):
    code = main(["check", "model=deberta_v3_base", *words])
    out, err = capsys.readouterr()
    assert (code == 1 and "FAILS: " in out and line in out) or (code == 2 and line in err)


def test_a_model_of_another_size_is_seen_before_a_night_on_a_cluster(glue: Repo, tmp_path: Path, monkeypatch, capsys):
    [commit] = DEBERTA.commits
    with serving(Repo(DEBERTA.id, {commit: deberta_v3(5)}), glue) as hub:
        hub.use(monkeypatch, tmp_path)
        assert main(["check", "model=deberta_v3_base", "task=rte", *FREE]) == 1
    assert "model.targets match 30 matrices, 72 are expected" in capsys.readouterr().out


def test_a_mistake_in_the_words_is_one_line_and_the_exit_code_2(capsys):
    for word, line in (("taskk=rte", "did you mean task?"), ("task=", ""), ("model=[", "")):
        assert main(["check", word]) == 2
        err = capsys.readouterr().err
        assert err.startswith("elalora: ") and len(err.splitlines()) == 1 and line in err


@pytest.mark.slow
def test_a_study_is_checked_by_its_models_and_tasks_and_not_by_its_runs():
    plans = plans_of(["+study=reproduce_check"])
    pairs = [(plan.config.model.name, plan.config.task.name) for plan in plans]
    assert set(pairs) == {("deberta_v3_base", task) for task in ("rte", "cola", "sst2")} and len(pairs) <= 6
    assert len(plans_of(["task=rte,cola", "model=minilm,bert_base"])) == 4


def test_your_own_data_and_the_model_of_the_set_up_need_no_hub(tiny_model_dir: Path, tmp_path: Path, capsys):
    (tmp_path / "train.csv").write_text("text,label\n" + "good film,1\nbad film,0\n" * 20)
    files = [f"task.files.{split}={tmp_path}/train.csv" for split in ("train", "test")]
    words = ["task=own", "task.name=mine", *files, "model=local", f"model.path={tiny_model_dir}"]
    assert main(["check", *words]) == 0
    assert lines(capsys)[1] == ["local", "mine", "-", "safetensors", "12", *"36 / 4 / 40 nothing".split()]
