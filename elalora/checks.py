"""Checks of a method's settings: one line that names the setting, its value and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from elalora.errors import UserError


def check_choices(config: Any, **allowed: Sequence[Any]) -> None:
    """Refuses a setting that is not one of the allowed values; None among them is not listed."""
    for name, values in allowed.items():
        if (value := getattr(config, name)) not in values:
            listed = ", ".join(str(v) for v in values if v is not None)
            raise UserError(f"method.{name}={value} is unknown; allowed: {listed}")


def check_fractions(config: Any, *names: str) -> None:
    """Refuses settings outside [0, 1)."""
    for name in names:
        if not 0 <= (value := getattr(config, name)) < 1:
            raise UserError(f"method.{name}={value} must lie in [0, 1)")


def check_above_0(config: Any, *names: str) -> None:
    """Refuses settings of 0 or less."""
    for name in names:
        if (value := getattr(config, name)) <= 0:
            raise UserError(f"method.{name}={value} must be above 0")


def check_at_least_1(config: Any, *names: str) -> None:
    """Refuses settings below 1; None is accepted."""
    for name in names:
        if (value := getattr(config, name)) is not None and value < 1:
            raise UserError(f"method.{name}={value} must be at least 1")
