"""The names that `analysis` offers."""

from __future__ import annotations

import subprocess
import sys

import pytest

import analysis
from experiments.runtime.places import CHECKOUT


def test_every_public_name_is_there_and_has_a_docstring() -> None:
    assert sorted(analysis._HOMES) == analysis.__all__
    for name in analysis.__all__:
        assert callable(getattr(analysis, name)) and getattr(analysis, name).__doc__, name
    with pytest.raises(AttributeError, match="nothing"):
        _ = analysis.nothing


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, analysis; heavy = {'numpy', 'pandas', 'scipy', 'matplotlib', 'torch', 'omegaconf'}; "
        "print(heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CHECKOUT)
    assert done.stdout.strip() == "set()"
