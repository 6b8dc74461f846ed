"""Generated code runs only where a user allows it, within limits, and passes only by its tests."""

from __future__ import annotations

import socket
import subprocess
import time

import pytest

from experiments.training import execution
from experiments.training.execution import Limits, passes, program_of

TESTS = "assert add(2, 3) == 5\nassert add(-1, 1) == 0"
RIGHT = "def add(a, b):\n    return a + b"
SMALL = Limits(memory=2**28)
SHORT = Limits(seconds=1, wall=1.0)  # only for programs that would run for ever


@pytest.mark.parametrize(
    "code",
    [
        "def add(a, b):\n    while True:\n        pass",
        "import time\ntime.sleep(60)\n" + RIGHT,
        "while True:\n    print('x' * 10_000)",  # its output goes nowhere
    ],
)
def test_code_that_does_not_end_is_stopped_and_wrong(code):
    assert not passes(program_of(code, [RIGHT, TESTS]), SHORT)


@pytest.mark.parametrize(
    ("code", "right"),
    [
        (RIGHT, True),
        ("def add(a, b):\n    return a - b", False),
        ("def add(a, b)\n    return a + b", False),  # a syntax error
        ("x = bytearray(2**31)\n" + RIGHT, False),
        ("x = []\nwhile True:\n    x.append(bytearray(2**20))", False),
        ("import os\nos._exit(0)", False),
        ("raise SystemExit(0)", False),
        ("import sys\nprint('x' * 5_000_000)\nprint('y', file=sys.stderr)\n" + RIGHT, True),  # its output goes nowhere
        ("open('large', 'wb').write(b'x' * 2**21)\n" + RIGHT, False),
        ("input()\n" + RIGHT, False),
        ("if __name__ == '__main__':\n    raise ValueError\n" + RIGHT, True),
        ("import dataclasses\n@dataclasses.dataclass\nclass P:\n    x: 'int'\n" + RIGHT, True),
    ],
)  # fmt: skip
def test_code_passes_by_its_tests_alone(code, right):
    assert passes(program_of(code, [RIGHT, TESTS]), SMALL) is right


def test_a_program_has_an_empty_folder_of_its_own_and_no_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET", "token")
    seen = "import os\nassert os.listdir() == []\nassert 'SECRET' not in os.environ\nopen('file', 'w').write('x')"
    assert passes(seen, SMALL)
    assert passes(seen, SMALL)  # what the first wrote is gone
    assert not list(tmp_path.iterdir())
    assert passes(f"import os\nassert os.getcwd() != {str(tmp_path)!r}", SMALL)


def test_a_process_that_a_program_leaves_behind_is_killed(tmp_path):
    """Only root may start one: the kernel limits the processes of other users."""
    alive = tmp_path / "alive"
    left = f"import os, time\nif os.fork() == 0:\n    time.sleep(1)\n    open({str(alive)!r}, 'w')\n    os._exit(0)"
    passes(left, SMALL)
    time.sleep(1.3)
    assert not alive.exists()


def test_a_program_has_no_network_where_the_kernel_lets_it_leave_that():
    if subprocess.run(["unshare", "--user", "--net", "true"], capture_output=True).returncode:
        pytest.skip("this machine forbids user namespaces")
    with socket.create_server(("127.0.0.1", 0)) as server:
        connect = f"import socket\nsocket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 1)"
        assert not passes(connect, SMALL)


def test_a_program_that_could_not_be_limited_is_an_error_and_not_a_wrong_answer(tmp_path, monkeypatch):
    broken = tmp_path / "child.py"
    broken.write_text("raise ValueError")
    monkeypatch.setattr(execution, "CHILD", broken)
    with pytest.raises(RuntimeError, match="limits of its process could not be set"):
        passes(RIGHT, SMALL)


def test_a_function_may_be_continued_or_written_again():
    beginning = 'from typing import List\n\n\ndef total(x: List[int]) -> int:\n    """Sum."""\n'
    tests = "def check(f):\n    assert f([1, 2]) == 3\ncheck(total)"
    for code in ("    return sum(x)", "\ndef total(x: List[int]):\n    return sum(x)"):
        assert passes(program_of(code, ["", tests, beginning]), SMALL)
    assert not passes(program_of("", ["", tests, beginning]), SMALL)
