"""Overrides as words: KEY=VALUE."""

from __future__ import annotations

GROUPS = ("method", "task", "model", "budget", "protocol", "trainer", "recipe", "tracking")


def key_of(word: str) -> str:
    """The setting that an override changes: "trainer.lr" of "++trainer.lr=1"."""
    return word.partition("=")[0].lstrip("+~")
