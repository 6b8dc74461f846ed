"""The configuration of a stored run as typed settings: what is read is data, so no resolver of OmegaConf ever runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from elalora.errors import UserError, first_line

T = TypeVar("T")


def from_store(cls: type[T], values: Any, path: Path) -> T:
    """A schema's object from the plain values of a stored config.yaml.

    Args:
        cls: the schema, or a part of it.
        values: from `experiments.store.foreign.read_yaml`, whole or the part.
        path: of the file, for errors.

    Runs store their configuration resolved. An interpolation, such as one that reads an environment variable, can only
    have been written by hand and is refused.

    Raises:
        UserError: an interpolation, or values that do not fit the schema.
    """
    if (text := _interpolation(values)) is not None:
        raise UserError(f"{path} holds the interpolation {text[:100]!r}; a stored run has plain values only")
    try:
        config: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), values))
    except (OmegaConfBaseException, ValueError, TypeError, RecursionError) as error:
        line = first_line(error)
        raise UserError(f"{path} does not fit this version ({line}); check out the commit in manifest.json") from error
    return config


def _interpolation(value: Any) -> str | None:
    """The first text with an interpolation in a nested value, keys included."""
    if isinstance(value, str):
        return value if "${" in value else None
    parts = [*value, *value.values()] if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return next((text for part in parts if (text := _interpolation(part)) is not None), None)
