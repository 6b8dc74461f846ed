"""The command in a process of its own: a mistake of each class is exit code 2 and one line, and leaves no trace."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import MOVES, QUICK, ROOT

OWN = ["task=own", "data.root=data", "task.files.train=rows.csv", "task.files.test=rows.csv"]
MISTAKES = {
    "an override that is none": (["trainer.lr=[1,"], "'trainer.lr=[1,' cannot be read as an override"),
    "a flag that is none": (["--lr", "1e-3"], "'--lr' is not a flag; settings have no dashes: type trainer.lr=1e-3"),
    "a setting without its group": (["lr=1e-3"], "unknown setting 'lr'; type trainer.lr=1e-3"),
    "a text with an equals sign": (["data.cache=a=b"], """type 'data.cache="a=b"'"""),
    "an interpolation to nothing": (["seed=${x}"], "'seed=${x}': Interpolation key 'x' not found"),
    "a method that is none": (["method=elolora"], "method=elolora is unknown; allowed: adalora, alora, beamlora"),
    "a budget that is none": (["budget.rank=0"], "budget.rank=0 is not a positive integer"),
    "a value that is no choice": (["tracking.mode=foo"], "tracking.mode=foo is unknown; allowed: offline, online"),
    "a launcher that is none": (["hydra/launcher=foo"], "hydra/launcher=foo is unknown; allowed: basic, local, slurm"),
    "a partition without SLURM": (
        ["launcher.partition=gpu"],
        "'launcher.partition=gpu' does nothing; type hydra/launcher",
    ),
    "workers of one run": (["launcher.workers=2"], "'launcher.workers=2' does nothing; type -m"),
    "a project without a mirror": (["tracking.project=x"], "'tracking.project=x' does nothing; type tracking=wandb"),
    "epochs beside steps": (["trainer.epochs=5"], "'trainer.epochs=5' does nothing; type trainer.max_steps=null"),
    "a launcher by its inner name": (["launcher.kind=slurm"], "'launcher.kind=slurm' does nothing"),
    "several values for one run": (["seed=0,1"], "'seed=0,1' has several values: for a sweep over them type -m"),
    "no folder of data": (["data.root=missing"], "data.root=missing is not a folder"),
    "a damaged model": ([*OWN, "model.path=damaged"], "damaged"),
    "a store that is a file": (["store.root=file"], "store.root=file is a file"),
}
SLOW = ("no folder of data", "a damaged model", "a store that is a file")  # found after the imports of a run


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize(
    "mistake", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else []) for name in MISTAKES]
)
def test_a_mistake_is_one_line_and_exit_code_2_and_leaves_no_trace(
    mistake: str, tiny_model_dir: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    words, said = MISTAKES[mistake]
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "config.json").write_text("{")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.csv").write_text("text,label\n" + "good,1\nbad,0\n" * 9)
    before = tree(tmp_path)
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *QUICK, *MOVES, f"model.path={tiny_model_dir}", *words],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "ELALORA_CACHE": str(tmp_path_factory.mktemp("cache"))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("elalora: ") and len(done.stderr.splitlines()) == 1, done.stderr
    assert said in done.stderr and "Traceback" not in done.stdout + done.stderr
    assert tree(tmp_path) == before
