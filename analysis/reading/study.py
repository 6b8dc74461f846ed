"""A study for the analysis: the ids of its runs, and the comparisons that it declared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.reading.folders import Unfinished
from experiments.store.name import short_id
from experiments.studies.rules import TUNING_PART

if TYPE_CHECKING:
    import pandas as pd

    from experiments.config.study import FamilyConfig


@dataclass(frozen=True)
class Study:
    """The runs and the declared comparisons of one study.

    Attributes:
        name: of its file in conf/study.
        cells: part, kind, arm, task, budget, seed, and id ("" while the run's settings wait for the tuning).
        family: the confirmatory comparisons, None where it has none.
    """

    name: str
    cells: pd.DataFrame
    family: FamilyConfig | None

    def only(self, runs: pd.DataFrame, unfinished: Sequence[Unfinished]) -> tuple[pd.DataFrame, list[Unfinished]]:
        """Those of the runs that belong to the study."""
        ids = set(self.cells["id"]) - {""}
        short_ids = {short_id(run) for run in ids}
        return runs[runs["id"].isin(ids)].reset_index(drop=True), [r for r in unfinished if r.short_id in short_ids]

    def open_runs(self, runs: pd.DataFrame) -> pd.DataFrame:
        """Number of runs without a result, by part and arm: columns part, arm, missing, planned."""
        cells = self.cells.assign(missing=~self.cells["id"].isin(set(runs["id"])), planned=True)
        counts = cells.groupby(["part", "arm"], sort=False)[["missing", "planned"]].sum().reset_index()
        return counts[counts["missing"] > 0]

    def gaps(self, runs: pd.DataFrame) -> list[str]:
        """A line for every part with missing runs, and the command that makes them."""
        lines = []
        for part, arms in self.open_runs(runs).groupby("part", sort=False):
            listed = ", ".join(f"{arm} {missing}" for arm, missing in zip(arms["arm"], arms["missing"], strict=True))
            only = "" if part == TUNING_PART else f" 'study.only=[{part}]'"
            lines.append(
                f"Study {self.name}, part {part}: {arms['missing'].sum()} of {(self.cells['part'] == part).sum()} runs "
                f"are missing ({listed}); make them with: python run.py -m +study={self.name}{only}"
            )
        return lines


def load_study(name: str, roots: Sequence[str | Path]) -> Study:
    """Expands conf/study/NAME.yaml on run stores.

    Args:
        name: of the study.
        roots: run stores, which hold the results of its tuning.

    Raises:
        UserError: the study does not exist or is not consistent.
    """
    import pandas as pd

    from experiments.config.compose import compose_run
    from experiments.studies.expansion import Expansion

    also = ",".join(f'"{root}"' for root in roots)
    words = [f"+study={name}", f'store.root="{roots[0]}"', f"store.also=[{also}]"]
    expansion = Expansion(compose_run(words))
    columns = ["part", "kind", "arm", "task", "budget", "seed"]
    cells = pd.DataFrame([[getattr(cell, key) for key in columns] for cell in expansion.cells], columns=columns)
    cells["id"] = [cell.plan.id if cell.plan is not None else "" for cell in expansion.cells]
    return Study(name, cells, expansion.study.family)
