"""The exception for mistakes that the user can fix, and the checks of a method's settings that raise it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

LONGEST = 2_000  # characters that are shown; a wrong value may be a whole document


class UserError(Exception):
    """A mistake in the input: one line with the wrong value, what is allowed, and what to type."""

    def __str__(self) -> str:
        """The message as one printable line, whatever the quoted value contains."""
        parts = (part.strip() for part in super().__str__().splitlines())
        line = " ".join(part for part in parts if part)
        shown = "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in line[:LONGEST])
        return shown + ("..." if len(line) > LONGEST else "")


def first_line(error: Exception) -> str:
    """First line of an error's message, or its type if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def check_choices(config: Any, **allowed: Sequence[Any]) -> None:
    """Refuses a setting that is not one of the allowed values; None among them is not listed."""
    for name, values in allowed.items():
        if (value := getattr(config, name)) not in values:
            listed = ", ".join(str(v) for v in values if v is not None)
            raise UserError(f"method.{name}={value} is unknown; allowed: {listed}")


RULES: dict[str, Callable[[float], bool]] = {
    "lie in [0, 1)": lambda value: 0 <= value < 1,
    "lie in (0, 1]": lambda value: 0 < value <= 1,
    "lie in [0, 1]": lambda value: 0 <= value <= 1,
    "be above 0": lambda value: value > 0,
    "be at least 1": lambda value: value >= 1,
    "not be negative": lambda value: value >= 0,
}


def check_numbers(config: Any, rule: str, *names: str) -> None:
    """Refuses settings that break one of the `RULES`; None is accepted."""
    for name in names:
        if (value := getattr(config, name)) is not None and not RULES[rule](value):
            raise UserError(f"method.{name}={value} must {rule}")


def check_finite(config: Any) -> None:
    """Refuses a number that is infinite or nan in any field of a method's dataclass, nested options included."""
    values = {f"method.{f.name}": getattr(config, f.name) for f in fields(config)}
    while values:
        name, value = values.popitem()
        if isinstance(value, Mapping):
            values |= {f"{name}.{key}": inner for key, inner in value.items()}
        elif isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{name}={value} must be a finite number")
