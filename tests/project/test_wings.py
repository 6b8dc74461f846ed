"""Imports lead one way: from package to package, from wing to wing, and never in a circle; the picture shows them."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

import pytest

from analysis.docs_pages import wings
from analysis.docs_pages.wings import CHECKOUT, PACKAGES, PICTURE, WINGS, graph, level_of, wing_of


@pytest.mark.parametrize("package", PACKAGES)
def test_every_import_leads_to_a_lower_wing_or_package(package: str):
    wrong = []
    for module, targets in graph().items():
        if module.split(".")[0] == package:
            here = wing_of(module)
            there = {target: wing_of(target) for target in targets}
            wrong += [f"{module} imports {t}" for t, w in there.items() if w != here and level_of(w) >= level_of(here)]
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_itself_through_others():
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


@pytest.mark.parametrize("package", PACKAGES)
def test_no_package_imports_the_command_line_or_the_tests(package: str):
    for path in wings.sources(package):
        wrong = {name.partition(".")[0] for name in wings.imports_of(path)} & {"run", "tests"}
        assert not wrong, f"{path.relative_to(CHECKOUT)} imports {', '.join(wrong)}"


def test_the_declared_wings_are_those_of_the_packages():
    declared = {(package, name) for package, levels in WINGS.items() for names in levels for name in names if name}
    assert declared == {wing_of(module) for module in graph()}


def test_imports_inside_functions_and_for_type_checking_count():
    assert "experiments.launch.local" in graph()["experiments.launch.choose"]  # inside a function
    assert "experiments.training.progress" in graph()["experiments.runs.result"]  # if TYPE_CHECKING


def test_the_picture_is_the_one_that_the_imports_make():
    assert (CHECKOUT / PICTURE).read_text(encoding="utf-8") == wings.draw(), "run: python -m analysis.docs_pages.wings"
