"""Runs of tests whose files do not belong together: made-up scores beside made-up predictions and losses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def believed() -> Iterator[None]:
    """Lets tables read such runs; tests/experiments/store holds that nothing else gets past the checks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("analysis.reading.result_row.check_score", lambda folder, result: None)
        patch.setattr("analysis.reading.result_row.losses_of", lambda folder, result: None)
        yield
