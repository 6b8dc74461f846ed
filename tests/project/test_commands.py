"""Every command that the README and docs/ show works as it stands there, or a table says why no test starts it.

`python run.py ...` is composed, checked and planned with the words of the page (`--plan`), `python -m ...` is parsed by
the command's own parser and executed by the test file that the table names, and `make ...` is a target of the Makefile.
So a misspelt group, setting, option or target on a page fails here.
"""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import run
from experiments.config.compose import compose_run
from experiments.runtime.places import CHECKOUT
from experiments.studies.expansion import study_of

ROOT = CHECKOUT
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES += [ROOT / "analysis" / "docs_pages" / "study.template.md"]  # becomes docs/study.md
PROGRAMS = ("python", "torchrun", "accelerate", "make", "pip", "wandb", "conda", "source", "eval", "autoload")
PROGRAMS += ("pre-commit",)

# where a command is executed to its end: a test file, or .ci/run
EXECUTED = {
    "python -m analysis": "test_report.py",
    "python -m analysis commons": "test_commons.py",
    "python -m analysis.notebooks": "test_notebooks.py",
    "python -m analysis.error_rates": "test_error_rates.py",
    "python -m analysis.lm_eval": "test_lm_eval.py",
    "python -m experiments check": "test_check.py",
    "python -m experiments status": "test_status.py",
    "python -m experiments examples": "test_examples.py",
    "python -m experiments export": "test_export_command.py",
    "python -m experiments pass_at_1": "test_code_problems.py",
    "python -m experiments compact": "test_compact.py",
    "python -m experiments submit": "test_submit.py",
    "python -m experiments verify": "test_finished.py",
    "python -m experiments migrate": "test_migration.py",
    "python -m experiments.contribution": "test_contribution.py",
    "python -m experiments.bench": "test_bench.py",
    "python -m experiments.bench.epoch": "test_bench.py",
    "python -m experiments.bench.gpu": "test_gpu.py",
    "python -m experiments.bench.startup": "test_bench.py",
    "python -m experiments.bench.sweep": "test_sweep.py",
    "python -m experiments.bench.tables": "test_bench.py",
    "python -m experiments.bench.waiting": "test_waiting.py",
    "python -m experiments.bench.whole": "test_whole.py",
    "python -m experiments.tools.kill_harness": "test_kill.py",
    "python -m experiments.tools.golden_trajectories": "test_golden.py",
    "make setup": ".ci/run",
    "make lint": ".ci/run",
    "make docs": ".ci/run",
    "make demo": ".ci/run",
    "make test": ".ci/run",
    "make test-slow": ".ci/run",
}
NOT_EXECUTED = {
    "make help": "prints the Makefile's own comments",
    "make test-full": "the long tests themselves",
    "make smoke": "the full test tests/experiments/standins/test_smoke.py itself",
    "python -m experiments.reproduce_check": "trains for minutes even on stand-ins; composed below",
    "python -m analysis.docs_pages.study": "writes docs/study.md and docs/study/; their test makes them again",
    "python -m analysis.docs_pages.family": "writes docs/img/family.svg; test_family.py draws it again",
    "python -m analysis.docs_pages.wings": "writes docs/img/wings.svg; test_wings.py draws it again",
    "make reproduce-check": "python -m experiments.reproduce_check under another name",
    "make notebooks": "python -m analysis.notebooks on a store that experiments.standins.study makes",
    "make bench": "python -m experiments.bench under another name",
    "python -m experiments.tools.slurm_cluster": "the fixture of test_slurm.py, around any command",
    "python run.py --help": "test_config.py",
    "python run.py --hydra-help": "Hydra's own page",
    "eval": "test_completion.py types it into bash and zsh",
    "autoload": "test_completion.py types it into zsh",
    "source": "the shell's own",
    "conda": "needs conda",
    "pip download": "needs PyPI; .ci/run fetches the same file",
    "pip install": "needs PyPI; test_packaging.py installs the wheel",
    "pre-commit": "installs a hook into the user's own checkout",
    "wandb": "needs an account",
}


def commands(page: Path) -> list[str]:
    """The commands of a page: in indented blocks, in ```bash blocks and between backticks."""
    lines: list[str] = []
    fence: str | None = None
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            fence = line[3:].strip() if fence is None else None
        elif fence == "bash":
            lines.append(line)
        elif fence is None and line.startswith("    "):
            lines.append(line[4:])
        elif fence is None:
            lines += re.findall(r"`([^`]+)`", line)
    parts = [part for line in "\n".join(lines).replace("\\\n", " ").splitlines() for part in line.split("&&")]
    plain = [re.sub(r"\s+#.*", "", part).strip() for part in parts]
    return [part for part in plain if part.partition(" ")[0] in PROGRAMS and " " in part]


SHOWN = sorted({command for page in PAGES for command in commands(page)})
RUNS = [c for c in SHOWN if re.match(r"(python|torchrun .*|accelerate launch .*) run\.py", c) and c not in NOT_EXECUTED]
MODULES = [c for c in SHOWN if c.startswith("python -m ")]
PLACEHOLDERS = {
    "NAME": "offline_main",
    "ACCOUNT": "account",
    "RUN": "a_run",
    "STORE": "a_store",
    "RUN_OR_STORE": "a_store",
}


def words_of(command: str) -> list[str]:
    """The words after the program and its file, with placeholders filled and optional words kept."""
    given = shlex.split(re.sub(r"\[(--\w+|STORE)\]", r"\1", command).replace("...", ""))
    return [re.sub(r"\b[A-Z_]{3,}\b", lambda m: PLACEHOLDERS.get(m[0], m[0]), word) for word in given]


@pytest.fixture
def place(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the pages' placeholders name."""
    (tmp_path / "FOLDER").symlink_to(tiny_model_dir)
    (tmp_path / "my_model").symlink_to(tiny_model_dir)
    (tmp_path / "my_data").mkdir()
    for folder in (tmp_path, tmp_path / "my_data"):
        for name in ("train", "test"):
            (folder / f"{name}.csv").write_text("review,stars,liked\ngood,0,yes\nbad,1,no\n")
    guide = (ROOT / "docs" / "add-a-method.md").read_text(encoding="utf-8")
    blocks = dict(re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", guide, re.DOTALL))
    for name, text in blocks.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def planned(command: str) -> tuple[str, ...]:
    """The words after `run.py`, with fewer seeds."""
    words = words_of(command)
    words = words[words.index("run.py") + 1 :]
    return tuple(re.sub(r"range\(\d+\)", "range(1)", word) for word in words if word != "--plan")


@pytest.mark.parametrize("words", sorted({planned(c) for c in RUNS if "+study=" not in c}), ids=" ".join)
@pytest.mark.slow
def test_a_run_command_composes_and_plans(words: tuple[str, ...], place: Path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run.py", *words, "--plan"])
    code = run.main()
    out, err = capsys.readouterr()
    assert code == 0, err
    assert "run" in out and not list(place.glob("runs/[a-z]*"))


@pytest.mark.parametrize("words", sorted({planned(c) for c in RUNS if "+study=" in c}), ids=" ".join)
def test_a_command_of_a_study_composes(words: tuple[str, ...]):
    """tests/experiments/studies/test_study.py expands and plans the studies themselves."""
    assert study_of(compose_run([word for word in words if word != "-m"])).parts


class Parsed(Exception):
    """The words fit."""


@pytest.mark.parametrize("command", MODULES)
def test_a_module_command_is_what_its_parser_takes(command: str, monkeypatch):
    _, _, module, *words = words_of(command)
    if module == "experiments.reproduce_check":  # it takes overrides
        assert compose_run(["+study=reproduce_check", *words]).study is not None
        return
    for way in ("parse_args", "parse_intermixed_args"):
        parse = getattr(argparse.ArgumentParser, way)

        def stop(self: argparse.ArgumentParser, given: list[str] | None = None, parse=parse) -> None:
            parse(self, given)
            raise Parsed

        monkeypatch.setattr(argparse.ArgumentParser, way, stop)
    monkeypatch.setattr(sys, "argv", [module, *words])
    with pytest.raises(Parsed):
        runpy.run_module(module, run_name="__main__")


@pytest.mark.parametrize("command", [c for c in SHOWN if c.startswith("make ")])
def test_a_make_command_names_targets_that_are_there(command: str):
    if shutil.which("make") is None:
        pytest.skip("needs make")
    done = subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_command_is_executed_somewhere_or_the_table_says_why_not():
    table = {**EXECUTED, **NOT_EXECUTED}
    missing, used = [], set()
    for command in SHOWN:
        parts = [f"make {target}" for target in shlex.split(command)[1:] if "=" not in target]
        for one in parts if command.startswith("make ") else [command]:
            found = [known for known in table if f"{one} ".startswith(f"{known} ")]
            used |= set(found)
            if not found and one not in RUNS:
                missing.append(one)
    assert not missing, f"add to EXECUTED or NOT_EXECUTED: {missing}"
    assert not set(table) - used, set(table) - used
    for command, where in EXECUTED.items():
        [path] = [ROOT / where] if where.startswith(".") else (ROOT / "tests").rglob(where)
        text = path.read_text(encoding="utf-8")
        name = command.split()[-1].removesuffix(".py").rpartition(".")[2]
        assert name in text, f"{where} does not execute {command}"


def test_a_misspelt_word_on_a_page_would_be_seen(place: Path, monkeypatch, capsys):
    for word in ("method=elalroa", "trainer.lrr=1", "+study=offline"):
        monkeypatch.setattr(sys, "argv", ["run.py", word, "--plan"])
        assert run.main() == 2, word
    assert len(RUNS) > 40 and len(MODULES) > 12
