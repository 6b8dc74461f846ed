"""Composing from a list of words: what a number set late comes to, and what the same command with other words is."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from tiny_runs import ROOT, config

from experiments.config.compose import compose_run, keep_command, same_command
from experiments.config.schema import register


@pytest.mark.parametrize("recipe", ["none", "matched"])
def test_a_seed_and_a_rate_set_late_give_what_hydra_gives(recipe):
    words = ["method=lora", "task=rte", f"recipe={recipe}", "seed=7", "trainer.lr=2e-3"]
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        theirs = OmegaConf.to_container(compose("config", words), resolve=True)
    ours = OmegaConf.to_container(compose_run(words), resolve=True)
    assert ours.pop("overrides") == words and theirs.pop("overrides") is None
    assert ours == theirs and type(ours["seed"]) is int and type(ours["trainer"]["lr"]) is float


def test_configurations_that_share_a_composition_do_not_share_values():
    one, two = config("seed=1"), config("seed=2")
    one.trainer.batch_size = 3
    assert (one.seed, two.seed, two.trainer.batch_size, config().trainer.batch_size) == (1, 2, 32, 32)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("elalora", ["task=rte", "seed=3", "trainer.lr=1e-3", "method=elalora"]),
        (
            "elalora variant=official",
            ["task=rte", "seed=3", "trainer.lr=1e-3", "method=elalora", "method.variant=official"],
        ),
        ("method=elalora trainer.lr=5e-4", ["task=rte", "seed=3", "method=elalora", "trainer.lr=5e-4"]),
        ("task=mnli", ["method=svd_lora", "seed=3", "trainer.lr=1e-3", "method.alpha=8", "task=mnli"]),
        ("seed=4", ["method=svd_lora", "task=rte", "trainer.lr=1e-3", "method.alpha=8", "seed=4"]),
    ],
)
def test_the_same_command_with_other_words(words, expected):
    run = config("method=svd_lora", "task=rte", "seed=3", "trainer.lr=1e-3", "method.alpha=8")
    assert list(same_command(run, words)) == expected


def test_run_py_keeps_its_words_and_the_users_own_config_folder(monkeypatch, tmp_path, capsys):
    import run

    (tmp_path / "task").mkdir()
    text = (ROOT / "conf" / "task" / "vader_movies.yaml").read_text().replace("name: vader_movies", "name: mine")
    (tmp_path / "task" / "mine.yaml").write_text(text)
    monkeypatch.chdir(ROOT)
    words = ["task=mine", "method=svd_lora", "method.ranks_from=elalora", f"store.root={tmp_path}/runs"]
    monkeypatch.setattr("sys.argv", ["run.py", "--config-dir", str(tmp_path), "--plan", *words])
    assert run.main() == 0
    assert keep_command(*run.composed[0]).overrides[:4] == words
    assert "after mine/elalora-r4 (method.ranks_from), MISSING, run it first: 1" in capsys.readouterr().out


def test_a_run_on_slurm_keeps_its_launcher_so_that_it_is_submitted_again(monkeypatch, tmp_path):
    import run

    monkeypatch.chdir(ROOT)
    words = ["method=lora", f"store.root={tmp_path}/runs", "hydra/launcher=slurm", "launcher.gpus=1"]
    monkeypatch.setattr("sys.argv", ["run.py", "--plan", *words])
    assert run.main() == 0
    kept = keep_command(*run.composed[0]).overrides
    assert sorted(kept) == sorted(words)
    assert compose_run(kept).launcher.gpus == 1  # every word can be typed again
