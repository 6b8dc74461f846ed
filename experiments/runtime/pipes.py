"""A reader that leaves early, as in `python -m analysis | head`, costs neither a traceback nor a run.

What is unusual: other tools are killed by the next write. Here the command falls silent and ends its work, because it
may be training, or writing files. Hydra, logging, rich and the interpreter's last flush all write to these streams.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Any, NoReturn


class _Patient(io.FileIO):
    """A stream whose reader may leave."""

    left = False

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except BrokenPipeError:
            _Patient.left = True
            return len(content)


def as_command(main: Callable[[], int | None]) -> NoReturn:
    """Does a command in this process and leaves with its exit code."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        plain = getattr(sys, name)
        raw, at_once = _Patient(number, "w", closefd=False), plain.write_through  # at once under PYTHONUNBUFFERED
        stream = io.TextIOWrapper(
            raw if at_once else io.BufferedWriter(raw),
            plain.encoding,
            plain.errors,
            line_buffering=plain.line_buffering,
            write_through=at_once,
        )
        setattr(sys, name, stream)
    sys.exit(main())


def reader_left() -> bool:
    """Whether nobody reads any more what this command writes."""
    return _Patient.left
