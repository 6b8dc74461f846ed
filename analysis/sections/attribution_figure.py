"""The figure of the attribution."""

from __future__ import annotations

from pathlib import Path

from analysis.output.figure import new_figure, save_figure
from analysis.stats.factorial import Factorial
from analysis.stats.seeds import t_interval


def draw(factorial: Factorial, path: Path) -> list[Path]:
    """Left: the twelve arms, mean and t interval over seeds. Right: the effects with their intervals."""
    results = factorial.effects
    figure = new_figure(10.5, 4.6)
    arms, forest = figure.subplots(1, 2, width_ratios=[1.0, 1.15])
    styles = {(0, 0): ("#000000", "o"), (1, 0): ("#0072B2", "s"), (0, 1): ("#D55E00", "^"), (1, 1): ("#CC79A7", "D")}
    for number, ((d1, d2), (colour, marker)) in enumerate(styles.items()):
        label = " + ".join(n for n, on in (("D1", d1), ("D2", d2)) if on) or "neither"
        for ranks in range(3):
            sample = factorial.scores[:, ranks, d1, d2]
            low, high = t_interval(sample)
            at = ranks + 0.16 * (number - 1.5)
            mean = float(sample.mean())
            arms.errorbar(
                [at], [mean], yerr=[[mean - low], [high - mean]], fmt=marker, color=colour, capsize=2, markersize=5,
                linewidth=1, label=label if ranks == 0 else None,
            )  # fmt: skip
    arms.set_xticks(range(3), ["fixed ranks", "random moves", "scored moves"])
    arms.set_ylabel("score (points)")
    arms.set_title("The twelve arms: mean and 95 % interval", fontsize=10)
    arms.legend(title="side effects", frameon=False, fontsize=8, ncols=2)
    arms.grid(axis="y", linewidth=0.3)
    for number, effect in enumerate(results):
        clear = effect.corrected <= 0.05
        y = len(results) - number
        forest.plot([effect.low, effect.high], [y, y], color="#0072B2", linewidth=1.4)
        forest.plot([effect.mean], [y], "o", color="#0072B2", markerfacecolor="#0072B2" if clear else "white")
    forest.axvline(0, color="0.4", linewidth=0.8)
    forest.set_yticks(range(len(results), 0, -1), [e.name for e in results])
    forest.set_xlabel("effect (points)")
    forest.set_title("Effects; filled: corrected p at most 0.05", fontsize=10)
    forest.grid(axis="x", linewidth=0.3)
    title = f"Attribution: {factorial.where}, {factorial.over}, {len(factorial.seeds)} seeds"
    return save_figure(figure, path, title, factorial.source)
