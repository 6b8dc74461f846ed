"""docs/performance.md says what its measurements say."""

from __future__ import annotations

import json
import re

import pytest

from analysis.docs_pages.performance import COLUMNS, MARK, MEASURED, PAGE, filled

FILES = sorted(MEASURED.glob("*.json"))


def test_the_page_is_made_from_its_files():
    page = PAGE.read_text(encoding="utf-8")
    assert filled(page) == page, "type python -m analysis.docs_pages.performance"
    columns = {name for names in COLUMNS.values() for name in names}
    assert {found[2] for found in MARK.finditer(page)} - set(COLUMNS) | columns == {file.stem for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_measurement_names_its_machine_and_no_place_on_it(file):
    text = file.read_text(encoding="utf-8")
    found = json.loads(text)
    assert found["machine"]["host"]["cpu"] and found["machine"]["versions"]["torch"]
    assert not re.search(r'"[^"]*=?(\.\.)?/\w+/', text)
