"""Results of other projects as they report them: shown beside contributed runs, never compared with them."""

from __future__ import annotations

import pandas as pd

from analysis.output.table import Table
from analysis.sections.published_numbers import FOLDER

REPORTED = "Reported, not ours: no run of this project stands behind it, and nothing here is compared with it."
PEFT = "PEFT's method comparison, GSM8K after MetaMathQA (huggingface/peft, method_comparison/MetaMathQA/results)"
RATES = "Learning Rate Matters, arXiv 2602.04998 (its code, run-lora/README.md)"


def reported() -> dict[str, Table]:
    """Tables by the names of their files."""
    return {"reported_peft": _peft(), "reported_learning_rates": _learning_rates()}


def _read(name: str) -> pd.DataFrame:
    return pd.read_csv(FOLDER / f"{name}.csv", dtype=str, keep_default_na=False)


def _peft() -> Table:
    rows = _read("peft_metamathqa")
    rows = rows.assign(accuracy=100 * rows["test_accuracy"].astype(float))
    rows = rows.sort_values("accuracy", ascending=False, ignore_index=True)
    columns = ["Experiment", "Type", "Rank", "Rate", "Accuracy", "Forgetting", "Parameters", "Memory GiB", "Minutes"]
    first = rows.iloc[0]
    setting = f"{first['model_id']}, {first['max_steps']} steps of {first['batch_size']}, {first['accelerator']}"
    notes = [REPORTED, "One run each; rates were not tuned alike."]
    return Table(f"{PEFT}. {setting}.", columns, [_peft_cells(row) for row in rows.to_dict("records")], notes, rows)


def _peft_cells(row: dict[str, str]) -> list[str]:
    plain = [row[name] for name in ("experiment", "peft_type", "rank", "lr")]
    forgetting = f"{float(row['forgetting']):.3f}" if row["forgetting"] else ""
    memory, minutes = int(row["max_memory_bytes"]) / 2**30, float(row["train_time_s"]) / 60
    counts = [f"{int(row['trainable_params']):,}", f"{memory:.1f}", f"{minutes:.0f}"]
    return [*plain, f"{float(row['accuracy']):.2f}", forgetting, *counts]


def _learning_rates() -> Table:
    rows = _read("lr_matters_qwen3_metamath")
    rows = rows.assign(**{name: rows[name].astype(float) for name in ("lr", "mean", "sd")})
    cells = []
    for (model, task, method), curve in rows.groupby(["model", "task", "method"]):
        best, rates = curve.loc[curve["mean"].idxmax()], curve["lr"]
        score = f"{best['mean']:.2f} ± {best['sd']:.2f}"
        grid = f"{rates.min():.2e} to {rates.max():.2e}"
        cells.append([task, method, score, f"{best['lr']:.2e}", str(len(curve)), grid, model])
    columns = ["Task", "Method", "At its best rate", "Rate", "Rates", "Grid", "Model"]
    notes = [REPORTED, "The best of the grid by the reported score itself, hence optimistic; three runs a rate."]
    return Table(f"{RATES}. Rank {rows['rank'].iloc[0]}.", columns, cells, notes, rows)
