"""docs/architecture.md names files, functions and wings that exist, and the way of a run stays short."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from pkgutil import resolve_name

import pytest

from analysis.docs_pages.wings import COMMANDS, WINGS
from experiments.runtime.places import CHECKOUT

TEXT = (CHECKOUT / "docs" / "architecture.md").read_text(encoding="utf-8")
PLACE = re.compile(r"`([\w/]+\.py)`,\s+`([\w.]+)`")  # a file and what to look at in it
WALK = re.findall(r"^\d+\. `([\w/.]+)`", TEXT, re.M)
LONGEST = 30
PAGES = [CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md", *sorted((CHECKOUT / "docs").rglob("*.md"))]


def defined(path: str) -> set[str]:
    """Functions and classes of a file, methods as Class.method."""
    names = set()
    for node in ast.parse((CHECKOUT / path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return names


def test_the_way_of_a_run_is_short_and_opens_each_file_once():
    assert 20 <= len(WALK) <= LONGEST
    assert len(set(WALK)) == len(WALK)
    assert WALK[0] == "run.py" and WALK[-1].startswith("analysis/")


@pytest.mark.parametrize(("path", "name"), sorted(set(PLACE.findall(TEXT))))
def test_what_the_page_names_is_there(path: str, name: str):
    assert name in defined(path), f"{path} has no {name}"


def test_every_file_of_the_page_exists_and_every_step_names_a_function():
    for path in re.findall(r"`([\w/.]+/[\w.]+\.(?:py|yaml|md))`", TEXT):
        assert (CHECKOUT / path).is_file(), path
    steps = re.findall(r"^\d+\. .*", TEXT, re.M)
    assert all(PLACE.search(step) or not step.split("`")[1].endswith(".py") for step in steps)


@pytest.mark.parametrize("package", ["experiments", "analysis"])
def test_the_page_says_what_each_wing_is_for(package: str):
    names = {name for names in WINGS[package] for name in names if name and name != COMMANDS}
    assert names == set(re.findall(rf"^- `{package}/(\w+)/`", TEXT, re.M))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_files_and_modules_that_exist(page: Path):
    text = page.read_text(encoding="utf-8")
    packages = "elalora|baselines|experiments|analysis"
    paths = set(re.findall(rf"(?<![\w/.])(?:{packages}|tests)/[\w/]+\.py", text))
    missing = [path for path in paths if not (CHECKOUT / path).exists()]
    for name in set(re.findall(rf"(?<![\w/.-])(?:{packages})(?:\.\w+)+", text)):
        try:
            resolve_name(name)
        except (ImportError, AttributeError):
            if name.rpartition(".")[2] not in ("md", "json", "safetensors"):
                missing.append(name)
    assert not missing, missing
