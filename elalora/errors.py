"""The one exception that means "the person who called this can mend it"."""

from __future__ import annotations

MOST = 2_000  # characters that are shown; what was given may be a whole document


class UserError(Exception):
    """A mistake in what was given: one line that says what, what is allowed, and what to type."""

    def __str__(self) -> str:
        """The line, whatever the quoted value holds: line breaks, what steers a terminal, half a character."""
        line = " ".join(super().__str__().split())
        shown = "".join(c if c.isprintable() else "?" for c in line[:MOST])
        return shown + ("..." if len(line) > MOST else "")


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
