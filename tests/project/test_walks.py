"""The walks of the documentation, done as they stand there: own data and model, and a method from a paper's rule."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.runtime.places import CHECKOUT

ROOT = CHECKOUT
SHORT = "threads=1 trainer.max_steps=60 trainer.batch_size=8 task.max_length=16 trainer.lr=5e-3"


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def files_of(name: str, folder: Path) -> None:
    """Writes the blocks of a page that begin with the name of their file."""
    for where, text in re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", page(name), re.DOTALL):
        (folder / where).parent.mkdir(parents=True, exist_ok=True)
        (folder / where).write_text(text)


def typed(name: str, folder: Path, more: str = "") -> None:
    """Types the page's ```bash block in a folder, with run.py where it is, and in small: fewer steps, no figures."""
    [command] = re.findall(r"```bash\n(.*?)```", page(name), re.DOTALL)
    start = command.index("python run.py")
    end = command.index("&&", start)
    command = f"{command[:end]} {SHORT} {more} {command[end:].rstrip()} --no-figures"
    command = command.replace("\\\n", " ").replace("\n", " ")
    command = command.replace("run.py", shlex.quote(str(ROOT / "run.py")))
    program = f'python() {{ {shlex.quote(sys.executable)} "$@"; }}; {command}'
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(["bash", "-c", program], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def table(folder: Path) -> dict[str, dict[str, str]]:
    """The rows of the comparison by method."""
    with (folder / "tables" / "comparison.csv").open(encoding="utf-8") as file:
        return {row["method"]: row for row in csv.DictReader(file)}


@pytest.mark.slow
def test_two_files_and_a_model_folder_become_a_compared_table(tiny_model_dir: Path, tmp_path: Path):
    (tmp_path / "my_model").symlink_to(tiny_model_dir)
    (tmp_path / "my_data").mkdir()
    [shown] = re.findall(r"```csv\n(.*?)```", page("own-data.md"), re.DOTALL)
    head, *rows = shown.splitlines()
    for name, times in (("train", 40), ("test", 10)):
        (tmp_path / "my_data" / f"{name}.csv").write_text("\n".join([head, *rows * times]) + "\n")
    typed("own-data.md", tmp_path)
    results = [json.loads(path.read_text()) for path in (tmp_path / "runs" / "reviews").glob("*/result.json")]
    assert sorted(r["method"] for r in results) == ["elalora", "elalora", "head", "head", "lora", "lora"]
    assert {r["data"]["train_items"] for r in results} == {72} and {r["data"]["report_items"] for r in results} == {20}
    assert max(r["readings"]["last"]["report"]["metrics"]["accuracy"] for r in results) == 100.0
    rows_by_method = table(tmp_path)
    assert {row["n"] for name, row in rows_by_method.items() if name in ("elalora", "lora", "head")} == {"2"}
    assert (tmp_path / "tables" / "index.html").is_file()


@pytest.mark.full
def test_the_method_of_the_guide_becomes_a_row_of_the_table(tiny_model_dir: Path, tmp_path: Path):
    files_of("add-a-method.md", tmp_path)
    words = f"model=local model.path={tiny_model_dir} 'model.head=[bert.pooler,classifier]' data.train_items=120"
    typed("add-a-method.md", tmp_path, words)
    [first, _] = sorted((tmp_path / "runs" / "vader_movies").glob("alora_sensi-r4-s*/result.json"))
    result = json.loads(first.read_text())
    assert result["label"] == "ALoRA-Sensi" and result["counts"]["final"]["rank_sum"] == 48
    assert result["moves"]["gross_share"] > 0.2 and len(set(result["ranks"]["final"].values())) > 1
    text = (tmp_path / "tables" / "comparison.md").read_text()
    assert re.search(r"ALoRA-Sensi.*†", text) and "LoRA" in table(tmp_path)["lora"]["label"]


@pytest.fixture
def guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    files_of("add-a-method.md", tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.slow
def test_the_method_of_the_guide_passes_the_contract(guide: Path):
    line = re.search(r'`("my_package\S+ \{\}),`', page("add-a-method.md"))
    assert line is not None
    methods = (ROOT / "tests" / "support" / "contract.py").read_text(encoding="utf-8")
    changed = methods.replace("METHODS = {\n", f"METHODS = {{\n    {line[1]},\n", 1)
    assert changed != methods
    (guide / "contract.py").write_text(changed)
    suite = (ROOT / "tests" / "baselines" / "test_contract.py").read_text(encoding="utf-8")
    (guide / "test_contract.py").write_text(suite)
    paths = os.pathsep.join(map(str, (guide, ROOT, ROOT / "tests" / "support")))
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(guide)]
    command += ["-k", "my_package or registered"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", "test_contract.py"],
        cwd=guide,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None and int(passed[1]) >= 9, done.stdout


def test_the_rule_of_the_guide_gives_new_ranks_as_the_paper_says(guide: Path):
    from importlib import import_module

    allocate = import_module("my_package.alora_sensi").allocate
    scores = {"a": [9.0] * 8, "b": [7.0] * 8, "c": [8.0] * 8, "d": [1.0] * 8}
    pruned, grown = allocate(scores, 8, dict.fromkeys(scores, 16))
    assert pruned == [("d", slot) for slot in range(8)]
    assert [grown.count(name) for name in "acb"] == [3, 3, 2]  # the paper's example; extra ones to the highest means
    assert allocate(scores, 8, {"a": 9, "b": 8, "c": 9, "d": 16}) == ([("d", 0), ("d", 1)], ["a", "c"])
    assert allocate({"a": [1.0, 2.0]}, 1, {"a": 4}) == ([], [])  # nobody lost none
