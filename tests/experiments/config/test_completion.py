"""Tab completion of overrides, in real shells on a pseudo terminal, installed by the lines of docs/command-line.md."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_runs import ROOT

SHELLS = {
    "bash": (["bash", "--norc"], ['eval "$(python run.py -sc install=bash)"']),
    "zsh": (
        ["zsh", "-f"],
        ["autoload -Uz compinit bashcompinit && compinit && bashcompinit", 'eval "$(python run.py -sc install=bash)"'],
    ),
    "fish": (["fish", "--no-config"], ["python run.py -sc install=fish | source"]),
}
LIMIT = 120  # seconds until a shell that shows nothing fails the test


@pytest.mark.full
@pytest.mark.parametrize("name", SHELLS)
def test_a_shell_completes_choices_and_settings(name: str, tmp_path: Path) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"no {name} here")
    command, install = SHELLS[name]
    pages = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    assert all(f"    {line}\n" in pages for line in install)
    child, terminal = pty.fork()
    if child == 0:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        os.chdir(ROOT)
        os.execvpe(command[0], command, os.environ | {"PATH": path, "HOME": str(tmp_path), "TERM": "xterm"})
    try:
        typed = keyboard(terminal)
        for line in [*install, "echo re''ady"]:
            typed(f"{line}\r", None)
        typed("", "ready")
        typed("python run.py method=ela\t", "method=elalora")
        typed("\x15python run.py task=vader_m\t", "task=vader_movies")
        typed("\x15python run.py trainer.l\t\t", "trainer.log_every=.*trainer.lr=")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def keyboard(terminal: int) -> Callable[[str, str | None], None]:
    """Types words, and waits until the shell shows a pattern after them."""

    def typed(words: str, shown: str | None) -> None:
        os.write(terminal, words.encode())
        text, ends = "", time.monotonic() + LIMIT
        while shown is not None and not re.search(shown, text, re.DOTALL):
            assert time.monotonic() < ends, text
            if not select.select([terminal], [], [], 1)[0]:
                continue
            part = os.read(terminal, 65536).decode(errors="replace")
            if "\x1b[c" in part:  # fish asks what kind of terminal this is
                os.write(terminal, b"\x1b[?62c")
            text += re.sub(r"\x1b(\[[0-9;?=>]*[A-Za-z]|\][^\x07]*\x07|[=>]|[()]B)", "", part)

    return typed
