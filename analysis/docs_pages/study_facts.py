"""Tables of the study's page that no report has: how sure a rate is, LoRA's lead, losses above guessing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.output.table import Table, mean_sd, signed, signed_range
from analysis.output.writers import to_markdown
from analysis.reading.curves import load_curve, warmup_steps
from analysis.reading.rounds import load_rounds
from analysis.reading.stored import Stored
from analysis.sections.arms import budget_order
from analysis.stats.seeds import summary
from elalora.errors import UserError
from experiments.studies.rules import TUNING_PART


def tuning(stored: Stored) -> str:
    """Mean held-out score of every learning rate, and by how much each arm's best rate is above the next."""
    assert stored.declared is not None
    cells = stored.declared.cells
    arms = cells[cells["part"] == TUNING_PART].set_index("id")["arm"]
    frame = stored.tuning.assign(
        rate=[float(tree["trainer"]["lr"]) for tree in stored.tuning["settings"]], arm=stored.tuning["id"].map(arms)
    )
    means = frame.groupby(["task", "arm", "rate"])["score"].mean().unstack("rate")
    columns = ["Task", "Arm", *(f"{rate:g}" for rate in means.columns)]
    rows, apart = [], []
    for (task, arm), row in means.iterrows():
        best, next_best = row.nlargest(2).index
        of_arm = frame[(frame["task"] == task) & (frame["arm"] == arm)]
        by_seed = of_arm.pivot(index="seed", columns="rate", values="score").sort_index()
        gaps = ", ".join(signed(gap) for gap in by_seed[best] - by_seed[next_best])
        scores = ["" if score != score else f"**{score:.2f}**" if rate == best else f"{score:.2f}"
                  for rate, score in row.items()]  # fmt: skip
        rows.append([task.replace("_", "\\_"), arm.replace("_", "\\_"), *scores])
        apart.append([task, arm, f"{best:g}", f"{next_best:g}", gaps])
    lines = [columns, ["---", "---", *["---:"] * len(means.columns)], *rows]
    seeds = ", ".join(map(str, sorted(set(frame["seed"]))))
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    notes = [f"Points by which the best rate is above the next best, seeds {seeds}."]
    second = _markdown("How sure the choice is.", ["Task", "Arm", "Best", "Next", "By seed"], apart, notes)
    return f"{body}\n\n- Mean held-out score over seeds {seeds}; bold is the best.\n\n{second}"


def lead(stored: Stored, method: str = "LoRA") -> str:
    """One method less each other arm: the mean over tasks and every task, paired by seed."""
    wide = stored.runs.pivot(index="seed", columns=["row_name", "task"], values="score")
    tasks = sorted(set(stored.runs["task"]))
    rows = []
    for other in sorted(set(stored.runs["row_name"]) - {method}):
        if any(task not in wide[other] for task in tasks):
            continue
        gaps = (wide[method] - wide[other])[tasks].dropna()
        samples = [gaps.mean(axis=1), *(gaps[task] for task in tasks)]
        texts = [signed(s.mean) + signed_range(s.low, s.high) for s in map(summary, samples)]
        rows.append([other, str(len(gaps)), *texts])
    notes = [
        f"{method} less the other, in points, paired by seed, with a 95 % t interval. Exploratory but for ElaLoRA, the "
        "declared baseline; not corrected."
    ]
    return _markdown(f"{method} against every other arm.", ["Other", "n", "Mean over tasks", *tasks], rows, notes)


def arms(stored: Stored, base: str) -> str:
    """Every arm of a study beside one of them, by the study's names, paired by seed.

    Raises:
        UserError: the study has no run of `base`.
    """
    assert stored.declared is not None
    cells = stored.declared.cells
    names = cells[cells["part"] != TUNING_PART].drop_duplicates("id").set_index("id")["arm"]
    runs = stored.runs.assign(arm=stored.runs["id"].map(names)).dropna(subset="arm")
    if base not in set(runs["arm"]):
        raise UserError(f"the study has no run of {base}; it has {', '.join(sorted(set(runs['arm'])))}")
    order = list(dict.fromkeys(names))
    rows = []
    several = runs["budget"].nunique() > 1
    cells = sorted(runs.groupby(["task", "budget"]), key=lambda cell: (cell[0][0], budget_order(cell[0][1])))
    for (task, budget), cell in cells:
        scores = cell.pivot(index="seed", columns="arm", values="score")
        sizes = cell.groupby("arm")["params_final"].mean()
        for arm in [arm for arm in order if arm in scores]:
            s, gap = summary(scores[arm].dropna()), summary((scores[arm] - scores[base]).dropna())
            text = "" if arm == base else signed(gap.mean) + signed_range(gap.low, gap.high)
            place = [task, budget] if several else [task]
            rows.append([*place, arm, str(s.n), mean_sd(s.mean, s.sd), text, f"{sizes[arm]:,.0f}"])
    notes = [f"Score: mean and standard deviation over seeds. To {base}: paired by seed, with a 95 % t interval."]
    columns = ["Task", *(["Budget"] if several else []), "Arm", "n", "Score", f"To {base}", "Parameters"]
    return _markdown(f"Every arm and {base}.", columns, rows, notes)


def losses(stored: Stored) -> str:
    """Where the mean training loss of every arm lay above that of guessing, and what was moved there."""
    rows = []
    for (task, name), arm in stored.runs.groupby(["task", "shown"], sort=True):
        runs = arm.to_dict("records")
        curves = pd.DataFrame([dict(load_curve(run).loss) for run in runs])
        curves = curves.loc[:, [step for step in curves.columns if step >= warmup_steps(runs[0])]]
        guess = runs[0]["guessing"]
        above_guess = curves > guess
        mean, peak = curves.mean(), int(curves.mean().idxmax())
        above = [int(step) for step in mean.index if mean[step] > guess]
        moves = _moves(arm["folder"], above)
        rates = sorted({f"{tree['trainer']['lr']:g}" for tree in arm["settings"]})
        rows.append([
            task, name, ", ".join(rates), f"{guess:.3f}", f"{mean[peak]:.2f} at step {peak}",
            f"{int(above_guess[peak].sum())} of {len(arm)}", f"{100 * float(above_guess.to_numpy().mean()):.0f} %",
            f"{above[0]} to {above[-1]}" if above else "nowhere", moves,
        ])  # fmt: skip
    columns = [
        "Task", "Method", "Rate", "Guessing", "Highest mean loss", "Seeds above there", "Logged losses above",
        "Mean above at steps", "Moves decided there",
    ]  # fmt: skip
    notes = [
        "Training loss, the mean of each ten steps, from the end of warm-up on. Guessing: the entropy of the reported "
        "classes, the loss of the best constant answer. Moves: directions moved while the mean over seeds was above "
        "guessing, of all."
    ]
    return _markdown("Training loss against guessing.", columns, rows, notes)


def _moves(folders: Sequence[str], above: Sequence[int]) -> str:
    """How many directions were moved up to the last step with a loss above guessing, of all; empty without moves."""
    first, last = (above[0], above[-1]) if above else (0, -1)
    counts = [
        [(first <= line["step"] <= last, len(line["grown"])) for line in load_rounds(folder)] for folder in folders
    ]
    there = np.mean([sum(n for inside, n in lines if inside) for lines in counts])
    total = np.mean([sum(n for _, n in lines) for lines in counts])
    return f"{there:.0f} of {total:.0f}" if total else ""


def _markdown(caption: str, columns: list[str], rows: list[list[str]], notes: list[str]) -> str:
    return to_markdown(Table(caption, columns, rows, notes, pd.DataFrame(rows, columns=columns))).rstrip()
