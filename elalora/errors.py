"""The one exception that means "the person who called this can mend it"."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in what was given: one line that says what, what is allowed, and what to type."""
