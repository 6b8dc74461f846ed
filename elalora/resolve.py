"""Settings that mean the same computation, in one spelling.

A setting may be left to a default that scales with the run, be decided by the variant, or be read by nothing. A
method's dataclass says so in one place, `resolved(size)`, which `attach` uses before it reads a setting and a run's
identity uses before it is hashed, so that the two cannot drift apart.
"""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any

from elalora.errors import UserError


@dataclass(frozen=True)
class RunSize:
    """What defaults scale with; None for what is not known.

    Attributes:
        steps: optimizer steps of the run.
        rank: the budget's mean rank.
        rank_sum: sum of the ranks at the start.
        lr, weight_decay: of the trainer.
    """

    steps: int | None = None
    rank: int | None = None
    rank_sum: int | None = None
    lr: float | None = None
    weight_decay: float | None = None


def resolve(config: Any, size: RunSize) -> Any:
    """A method's settings as they act: defaults filled in as far as `size` determines them, unread ones reset.

    Settings without a `resolved` method act as they stand.
    """
    return config.resolved(size) if hasattr(config, "resolved") else config


def canonical(config: Any, size: RunSize) -> Any:
    """The one spelling of all settings that resolve to the same: every one that may be is at its default."""
    acting = resolve(config, size)
    shortest = acting
    for f in fields(config):
        default = f.default if f.default_factory is MISSING else f.default_factory()
        try:
            shorter = replace(shortest, **{f.name: default})
            if resolve(shorter, size) == acting:
                shortest = shorter
        except UserError:  # this setting and another one only fit together
            continue
    return shortest


def unread(config: Any, *names: str) -> dict[str, Any]:
    """The defaults of settings that nothing reads beside the others, for `dataclasses.replace`."""
    return {f.name: f.default for f in fields(config) if f.name in names}


def added(default: Any) -> Any:
    """A dataclass field that came after runs were stored: at its default, it is left out of a run's identity.

    The default must therefore compute what was computed before the setting existed. A dataclass is given as a class.
    """
    if isinstance(default, type):
        return field(default_factory=default, metadata={"added": True})
    return field(default=default, metadata={"added": True})


def added_defaults(schema: Any) -> dict[str, Any]:
    """The fields of `added` of a dataclass and their defaults, a dataclass among them as a dictionary."""
    later = [f for f in fields(schema) if f.metadata.get("added")]
    defaults: dict[str, Any] = {
        f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in later
    }
    dataclasses = [name for name, value in defaults.items() if is_dataclass(value)]
    return defaults | {name: asdict(defaults[name]) for name in dataclasses}


def identifying(config: Any) -> dict[str, Any]:
    """The settings that a run's identity has: all but those of `added` at their default."""
    later = added_defaults(config)
    settings = {f.name: getattr(config, f.name) for f in fields(config)}
    return {name: value for name, value in settings.items() if name not in later or value != later[name]}
