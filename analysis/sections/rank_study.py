"""Which layers get which ranks: tables of every task, model, budget and protocol.

Tables say nothing but coefficients with their interval or p, from `analysis.stats.rank_agreement` and
`analysis.stats.relation`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from analysis.output.figure import file_name
from analysis.output.section import Section
from analysis.output.table import Table, p_value, signed, signed_range
from analysis.reading.arms import CELL
from analysis.reading.rounds import patterns, shares_of_types
from analysis.reading.settings import given_ranks
from analysis.reading.stored import Stored
from analysis.sections.arms import cell_label, cell_stem
from analysis.sections.matrix_types import layers_and_types, type_order, types_of
from analysis.sections.rank_study_frames import Contribution, contributions, figures, varies
from analysis.sections.transplant import transplant_table
from analysis.stats.rank_agreement import Agreement, agreement_p, concordance, mean_tau
from analysis.stats.relation import Relation, relation
from experiments.runtime.places import CHECKOUT

PERMUTATIONS = 1_999
LOGGED_PATTERNS = CHECKOUT / "analysis" / "published" / "elalora_githistory_rank_patterns.csv"


def sections(stored: Stored, folder: Path | None) -> list[Section]:
    """The rank study of every task, model, budget and protocol among the runs."""
    ranked = stored.runs[[bool(ranks) for ranks in stored.runs["ranks_final"]]]
    parts = [_section(cell, folder) for _, cell in ranked.groupby(CELL, sort=False)]
    return [part for part in parts if part.tables or part.figures]


def _section(cell: pd.DataFrame, folder: Path | None) -> Section:
    label, stem = cell_label(cell), file_name(cell_stem(cell))
    arms = {name: arm.sort_values("seed") for name, arm in cell.groupby("shown")}
    # ranks that were given, by another run or by a rule, are not a result of this one
    chosen = {name: arm for name, arm in arms.items() if not given_ranks(arm.iloc[0]["settings"])}
    measured = contributions(arms)
    tables = {
        "stability": stability(chosen, label),
        "contribution": relations(measured, label),
        "transplant": transplant_table(cell, label),
        "shares": shares(chosen, label),
    }
    section = Section(f"Which layers get which ranks: {label}")
    section.tables = {f"{kind}_{stem}": table for kind, table in tables.items() if table}
    if folder is not None:
        section.figures = figures(chosen, measured, folder, stem, label, cell["citation"].iloc[0])
    return section


def stability(arms: Mapping[str, pd.DataFrame], label: str) -> Table | None:
    """How far seeds agree on the final ranks: W and mean tau-b, over all matrices and beyond the matrix type."""
    rows, records = [], []
    for name, arm in arms.items():
        x, order = patterns(arm)
        if len(x) < 2 or not varies(x):
            continue
        kinds = types_of(order, arm.iloc[0]["places"])
        w, tau = concordance(x), mean_tau(x)
        p = agreement_p(x, None, PERMUTATIONS)
        p_within = agreement_p(x, kinds, PERMUTATIONS)
        rows.append([name, str(len(x)), _interval(w), _interval(tau), p_value(p), p_value(p_within)])
        records.append((label, name, len(x), *w, *tau, p, p_within))
    if not rows:
        return None
    numbers = ["w", "w_low", "w_high", "tau", "tau_low", "tau_high", "p", "p_within_type"]
    frame = pd.DataFrame(records, columns=["where", "arm", "seeds", *numbers])
    columns = ["Method", "Seeds", "Kendall's W", "Mean tau-b", "p", "p within types"]
    notes = [
        "W and tau-b are corrected for ties; 95 % jackknife intervals over seeds, from 3 seeds on.",
        f"p: patterns shuffled in every seed apart ({PERMUTATIONS} shuffles) agree as much. Within types: among "
        "matrices of one type only, so a small p says that seeds agree on layers too.",
    ]
    return Table(f"Agreement of final ranks over seeds: {label}", columns, rows, notes, frame)


def relations(measured: Sequence[Contribution], label: str) -> Table | None:
    """Rank against contribution: of each arm's own adapter, and of ElaLoRA's ranks in the fixed-rank adapter."""
    rows, records = [], []
    for c in measured:
        across = relation(c.ranks, c.rises)
        within = relation(c.ranks, c.rises, c.types)
        seeds, matrices, below = len(c.ranks), len(c.types), int((c.rises.mean(0) < 0).sum())
        text = [*_relation_text(across), *_relation_text(within), f"{below} of {matrices}"]
        rows.append([c.ranks_of, c.measured_in, c.measure, str(seeds), *text])
        records.append((label, c.ranks_of, c.measured_in, c.measure, seeds, *across, *within, below, matrices))
    if not rows:
        return None
    numbers = [f"{kind}_{part}" for kind in ("across", "within") for part in ("rho", "low", "high", "p")]
    names = ["where", "ranks_of", "contributions_in", "measure", "seeds", *numbers, "below", "matrices"]
    frame = pd.DataFrame(records, columns=names)
    columns = ["Ranks of", "Contributions in", "Measured on", "Seeds", "Spearman", "p"]
    columns += ["Spearman within types", "p within types", "Below 0"]
    notes = [
        "Contribution: what changes on held-out items when the matrix's adapter is taken out. Loss: rise of the mean "
        "loss. Calibrated loss: the same, with and without the adapter each at its best temperature. Score: its fall.",
        "Mean over seeds; 95 % bootstrap interval over matrices; two-sided permutation p, all seeds moved together. "
        "Within types compares a matrix with others of its type only.",
        "ElaLoRA's ranks against contributions in SVD-LoRA of the same seed is the control: there every matrix has the "
        "same rank, so a matrix cannot carry more because it was given more.",
        "Below 0: matrices without whose adapter the model does better, on the mean over seeds. Where the loss says so "
        "of most, the model is surer than it is right: the loss punishes what an adapter adds, a correlation does not "
        "say that ranks go where they are of no use, and the calibrated loss is the one to read.",
    ]
    return Table(f"Rank against contribution: {label}", columns, rows, notes, frame)


def shares(arms: Mapping[str, pd.DataFrame], label: str) -> Table | None:
    """Mean rank of each matrix type over the mean rank of all, beside the authors' logged runs."""
    ours: dict[str, dict[str, float]] = {}
    for name, arm in arms.items():
        x, order = patterns(arm)
        if varies(x):
            kinds = dict(zip(order, types_of(order, arm.iloc[0]["places"]), strict=True))
            ours[name] = shares_of_types(dict(zip(order, x.mean(axis=0), strict=True)), kinds)
    if not ours:
        return None
    logged = logged_shares()
    frame = pd.DataFrame.from_dict(ours | logged, orient="index")
    frame = frame[sorted(frame.columns, key=type_order)]
    rows = [[str(name), *("" if math.isnan(v) else f"{v:.2f}" for v in line)] for name, line in frame.iterrows()]
    notes = ["1 is an even share. Ranks in large matrices cost more parameters than in small ones."]
    if logged:
        notes.append(
            "The authors' rows are final ranks that their repository's history holds (DeBERTa-v3-base, pre-release "
            "runs, not a published table); other model and other settings, so they are shown and not compared."
        )
    whole = frame.rename_axis("arm").reset_index().assign(where=label)
    return Table(f"Share of each matrix type: {label}", ["Method", *map(str, frame.columns)], rows, notes, whole)


def logged_shares(path: Path = LOGGED_PATTERNS) -> dict[str, dict[str, float]]:
    """Shares in the authors' logged rank patterns, by "authors: RUN"; empty without the file."""
    if not path.is_file():
        return {}
    shares_by_run = {}
    for run, rows in pd.read_csv(path, comment="#").groupby("run", sort=True):
        pairs = list(zip(rows["layer"], rows["module"], strict=True))
        places = {f"{layer}.{module}": (layer, module) for layer, module in pairs}
        kinds = {name: kind for name, (_, kind) in layers_and_types(places).items()}
        ranks = dict(zip(places, rows["rank"].astype(float), strict=True))
        name = str(run).removesuffix("--overwrite_output_dir")
        shares_by_run[f"authors: {name}"] = shares_of_types(ranks, kinds)
    return shares_by_run


def _interval(a: Agreement) -> str:
    if math.isnan(a.value):
        return "undefined"
    interval = "" if math.isnan(a.low) else f" [{a.low:.2f}, {a.high:.2f}]"
    return f"{a.value:.2f}{interval}".replace("-", "−")


def _relation_text(r: Relation) -> list[str]:
    if math.isnan(r.rho):
        return ["undefined", ""]
    return [signed(r.rho) + signed_range(r.low, r.high), p_value(r.p)]
