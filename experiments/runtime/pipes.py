"""Handles a closed stdout or stderr (`| head`) without a traceback.

Other tools are killed by their next write. Here the command continues silently, because it may be training or writing
files. Print statements, Hydra, logging, rich and the interpreter's last flush all write to these streams.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Any, NoReturn


class _Output(io.FileIO):
    """A stream that drops what its reader does not want any more."""

    reader_left = False

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except BrokenPipeError:
            _Output.reader_left = True
            return len(content)


def as_command(main: Callable[[], int | None]) -> NoReturn:
    """Runs a command in this process and exits with its code."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        old = getattr(sys, name)
        buffer = io.BufferedWriter(_Output(number, "w", closefd=False))
        by_line = old.line_buffering or old.write_through  # write_through: PYTHONUNBUFFERED
        setattr(sys, name, io.TextIOWrapper(buffer, old.encoding, old.errors, line_buffering=by_line))
    sys.exit(main())


def reader_left() -> bool:
    """Whether the process that read this command's output is gone."""
    return _Output.reader_left
