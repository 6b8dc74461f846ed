"""Templates of prompts and completions: plain text with the names of columns in braces."""

from __future__ import annotations

from collections.abc import Mapping
from string import Formatter

from elalora.errors import UserError


def columns_of(template: str, name: str) -> set[str]:
    """The columns that a template names.

    Args:
        template: text with {column}; {{ and }} stand for braces.
        name: of the setting, for errors.

    Raises:
        UserError: a brace is not closed, or holds more than a name.
    """
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"{name}={template!r}: {error}; write {{column}}, and {{{{ or }}}} for a brace") from error
    for _, field, form, conversion in parts:
        if field is not None and (not field.isidentifier() or form or conversion):
            raise UserError(f"{name}={template!r}: {{{field}}} is not a column; write {{column}}, and {{{{ for a brace")
    return {field for _, field, _, _ in parts if field is not None}


def filled(template: str, values: Mapping[str, str]) -> str:
    """The template with the values of its columns, which are not searched for braces themselves."""
    return "".join(text + ("" if field is None else values[field]) for text, field, _, _ in Formatter().parse(template))
