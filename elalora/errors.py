"""The exception for mistakes that the user can fix."""

from __future__ import annotations

LONGEST = 2_000  # characters that are shown; a wrong value may be a whole document


class UserError(Exception):
    """A mistake in the input: one line with the wrong value, what is allowed, and what to type."""

    def __str__(self) -> str:
        """The message as one printable line, whatever the quoted value contains."""
        line = " ".join(super().__str__().split())
        shown = "".join(c if c.isprintable() else "?" for c in line[:LONGEST])
        return shown + ("..." if len(line) > LONGEST else "")


def first_line(error: Exception) -> str:
    """First line of an error's message, or its type if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
