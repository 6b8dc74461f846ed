"""`python -m experiments COMMAND` imports what that command needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from experiments.__main__ import COMMANDS, main, parsed
from experiments.runtime.places import CHECKOUT

LIGHT = """
import sys
from experiments.__main__ import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print("heavy:", *sorted({"torch", "transformers", "pandas", "numpy", "hydra"} & set(sys.modules)))
"""


def heavy_modules_of(*words: object) -> str:
    command = [sys.executable, "-c", LIGHT, *map(str, words)]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout.splitlines()[-1]


def test_status_loads_no_heavy_library(tmp_path):
    (tmp_path / "rte" / "lora-r4-s0-0123456789").mkdir(parents=True)
    (tmp_path / "rte" / "lora-r4-s0-0123456789" / "status.json").write_text('{"state": "failed"}')
    assert heavy_modules_of("status", tmp_path) == "heavy:"


@pytest.mark.parametrize("command", ["verify", "compact", "submit", "migrate"])
def test_commands_over_stores_start_without_heavy_libraries(command: str):
    assert heavy_modules_of(command, "--help") == "heavy:"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_name_in_the_table_is_the_name_of_its_command(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="^0$"):
        main([command, "--help"])
    assert f"python -m experiments {command} " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "stores"), [("verify", ["runs"]), ("submit a --check b", ["a", "b"]), ("compact a --out c b", ["a", "b"])]
)
def test_stores_may_follow_options(words: str, stores: list[str]):
    assert parsed(words.split()).stores == stores


def test_help_and_an_unknown_command_name_every_command(capsys: pytest.CaptureFixture[str]):
    for words in (["--help"], ["statis"]):
        with pytest.raises(SystemExit):
            main(words)
        said = "".join(capsys.readouterr())
        assert all(command in said for command in COMMANDS)
