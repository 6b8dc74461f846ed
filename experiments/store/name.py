"""The name of a run's folder: METHOD-VARIANT-BUDGET-sSEED-ID, with the first ten digits of the run's id."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ID_DIGITS = 10
PATTERN = re.compile(rf"(?P<arm>.+)-s(?P<seed>\d+)-(?P<id>[0-9a-f]{{{ID_DIGITS}}})")


@dataclass(frozen=True)
class RunName:
    """The parts of a run folder's name; `str(name)` is the name.

    Attributes:
        arm: method, variant unless it is the default, and budget, joined by "-".
        seed: the run's seed.
        id: the first `ID_DIGITS` hex digits of the run's id.
    """

    arm: str
    seed: int
    id: str

    def __str__(self) -> str:
        return f"{self.label}-{self.id}"

    @property
    def label(self) -> str:
        """Arm and seed, as people read them."""
        return f"{self.arm}-s{self.seed}"

    @classmethod
    def of(cls, arm: str, seed: int, run_id: str) -> RunName:
        """The name of a run with a full id (64 hex digits)."""
        return cls(arm, seed, short_id(run_id))

    @classmethod
    def parse(cls, folder: str | Path) -> RunName | None:
        """The parts of a folder's name, or None if it is not the name of a run."""
        match = PATTERN.fullmatch(Path(folder).name)
        return None if match is None else cls(match["arm"], int(match["seed"]), match["id"])


def short_id(run_id: str) -> str:
    """The digits of a run's id that its folder's name contains."""
    return run_id[:ID_DIGITS]
