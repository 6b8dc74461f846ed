"""From stored runs to tables and figures; reads run stores and never trains anything.

from analysis import comparison, load_runs, sign_flip
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.reading.rounds import load_predictions, load_rounds
    from analysis.reading.runs import load_runs
    from analysis.reading.study import load_study
    from analysis.report import report as write_report
    from analysis.sections.comparison import comparison
    from analysis.sections.confirmatory import confirm
    from analysis.stats.items import mcnemar, two_way_bootstrap
    from analysis.stats.seeds import holm, seeds_needed, sign_flip, summary, t_interval, win_tie_loss
    from analysis.stats.tasks import interquartile_mean, probability_of_improvement, stratified_bootstrap_t
    from experiments.studies.smallest_p import least_pairs

# where each public name lives; loaded on first use, so that a command line starts without loading pandas
_HOMES = {
    "comparison": "analysis.sections.comparison",
    "confirm": "analysis.sections.confirmatory",
    "holm": "analysis.stats.seeds",
    "interquartile_mean": "analysis.stats.tasks",
    "least_pairs": "experiments.studies.smallest_p",
    "load_predictions": "analysis.reading.rounds",
    "load_rounds": "analysis.reading.rounds",
    "load_runs": "analysis.reading.runs",
    "load_study": "analysis.reading.study",
    "mcnemar": "analysis.stats.items",
    "probability_of_improvement": "analysis.stats.tasks",
    "seeds_needed": "analysis.stats.seeds",
    "sign_flip": "analysis.stats.seeds",
    "stratified_bootstrap_t": "analysis.stats.tasks",
    "summary": "analysis.stats.seeds",
    "t_interval": "analysis.stats.seeds",
    "two_way_bootstrap": "analysis.stats.items",
    "win_tie_loss": "analysis.stats.seeds",
    "write_report": "analysis.report",
}
__all__ = [
    "comparison",
    "confirm",
    "holm",
    "interquartile_mean",
    "least_pairs",
    "load_predictions",
    "load_rounds",
    "load_runs",
    "load_study",
    "mcnemar",
    "probability_of_improvement",
    "seeds_needed",
    "sign_flip",
    "stratified_bootstrap_t",
    "summary",
    "t_interval",
    "two_way_bootstrap",
    "win_tie_loss",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'analysis' has no attribute '{name}'")
    # `report` is the module's name too, so the function is public under another one
    return getattr(import_module(_HOMES[name]), "report" if name == "write_report" else name)
