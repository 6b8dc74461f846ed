"""Which layers get which ranks: tables, pictures and sentences for every task, model, budget and protocol.

`sections` is what the page of results calls. It computes with `analysis.stats.rank_agreement` and
`analysis.stats.relation`, draws with
`analysis.sections.rank_study_figures`, and says nothing that is not a coefficient with its interval or p.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.output.figure import names
from analysis.output.table import Table, signed, signed_range
from analysis.reading.arms import CELL
from analysis.reading.rounds import events, load_rounds, paired, patterns, scores, shares_of_types
from analysis.reading.settings import cell_of
from analysis.sections import rank_study_figures as rank_figures
from analysis.sections.rank_maps import _as_map, _cells_of, _type_order
from analysis.sections.transplant import STEPS, arm_of, transplant
from analysis.stats.rank_agreement import Agreement, agreement_p, concordance, mean_tau, mean_tau_between
from analysis.stats.relation import Relation, relation
from experiments.runtime.places import CHECKOUT

if TYPE_CHECKING:
    import pandas as pd

    from analysis.output.section import Section

PERMUTATIONS = 1_999
MOST_ROUNDS = rank_figures.MOST_ROUNDS


def sections(runs: pd.DataFrame, folder: Path | None) -> list[Section]:
    """The rank study of every task, model, budget and protocol among the runs.

    Args:
        runs: from `load_runs`.
        folder: for the figures; None draws none.
    """
    from analysis.output.section import Section

    ranked = runs[[bool(ranks) for ranks in runs["ranks_final"]]]
    found = []
    for _, cell in ranked.groupby(CELL, sort=False):
        first = cell.iloc[0]
        stem = names([first[key] for key in ("task", "model", "budget", "protocol", "recipe")])
        where = ", ".join(str(first[key]) for key in ("task", "model", "budget", "protocol") if first[key])
        arms = {name: arm.sort_values("seed") for name, arm in cell.groupby("shown")}
        own = {name: arm for name, arm in arms.items() if not _given(arm)}
        tables = [stability(own, where), relations(arms, where), transplants(cell, where), shares(own, where)]
        section = Section(f"Which layers get which ranks: {where}")
        section.tables = {f"{kind}_{stem}": table for kind, table in zip(KINDS, tables, strict=True) if table}
        if folder is not None:
            section.figures = figures(arms, own, folder, stem, where, first["citation"])
        if section.tables or section.figures:
            found.append(section)
    return found


KINDS = ("stability", "contribution", "transplant", "shares")


# -- tables ------------------------------------------------------------------------------------------------


def stability(arms: Mapping[str, pd.DataFrame], where: str) -> Table | None:
    """How far seeds agree on the final ranks: W and mean tau-b, over all matrices and beyond the matrix type."""
    import pandas as pd

    rows, records = [], []
    for name, arm in arms.items():
        x, order = patterns(arm)
        if len(x) < 2 or not _varies(x):
            continue
        kinds = _kinds(arm, order)
        w, tau = concordance(x), mean_tau(x)
        p = agreement_p(x, np.random.default_rng(0), None, PERMUTATIONS)
        p_within = agreement_p(x, np.random.default_rng(0), kinds, PERMUTATIONS)
        rows.append([name, str(len(x)), _interval(w), _interval(tau), _p(p), _p(p_within)])
        records.append((where, name, len(x), *w, *tau, p, p_within))
    if not rows:
        return None
    frame = pd.DataFrame(
        records,
        columns=["where", "arm", "seeds", "w", "w_low", "w_high", "tau", "tau_low", "tau_high", "p", "p_within_type"],
    )
    columns = ["Method", "Seeds", "Kendall's W", "Mean tau-b", "p", "p within types"]
    notes = [
        "W and tau-b are corrected for ties; 95 % jackknife intervals over seeds, from 3 seeds on.",
        f"p: patterns shuffled in every seed apart ({PERMUTATIONS} shuffles) agree as much. Within types: among "
        "matrices of one type only, so a small p says that seeds agree on layers too.",
    ]
    return Table(f"Agreement of final ranks over seeds: {where}", columns, rows, notes, frame)


def relations(arms: Mapping[str, pd.DataFrame], where: str) -> Table | None:
    """Rank against contribution: of each arm's own adapter, and of ElaLoRA's ranks in the fixed-rank adapter."""
    import pandas as pd

    rows, records = [], []
    for ranks_of, measured_in, arm, measured in _comparisons(arms):
        ranks, rises, order, seeds = paired(arm, measured)
        if not seeds or not _varies(ranks):
            continue
        kinds = _kinds(arm, order)
        across = relation(ranks, rises, np.random.default_rng(0))
        within = relation(ranks, rises, np.random.default_rng(0), kinds)
        below, matrices = int((rises.mean(0) < 0).sum()), len(order)
        rows.append(
            [ranks_of, measured_in, str(len(seeds)), *_shown(across), *_shown(within), f"{below} of {matrices}"]
        )
        records.append((where, ranks_of, measured_in, len(seeds), *across, *within, below, matrices))
    if not rows:
        return None
    measures = [f"{kind}_{part}" for kind in ("across", "within") for part in ("rho", "low", "high", "p")]
    frame = pd.DataFrame(
        records, columns=["where", "ranks_of", "contributions_in", "seeds", *measures, "below", "matrices"]
    )
    columns = ["Ranks of", "Contributions in", "Seeds", "Spearman", "p", "Spearman within types", "p within types"]
    columns.append("Below 0")
    notes = [
        "Contribution: rise of the mean loss on held-out items when the matrix's adapter is taken out.",
        "Mean over seeds; 95 % bootstrap interval over matrices; two-sided permutation p, all seeds moved together. "
        "Within types compares a matrix with others of its type only.",
        "ElaLoRA's ranks against contributions in SVD-LoRA of the same seed is the control: there every matrix has the "
        "same rank, so a matrix cannot carry more because it was given more.",
        "Below 0: matrices without whose adapter the held-out loss is lower, on the mean over seeds. Where most are, "
        "the model is surer than it is right: the loss punishes what an adapter adds, and a correlation does not say "
        "that ranks go where they are of no use.",
    ]
    return Table(f"Rank against contribution: {where}", columns, rows, notes, frame)


def _comparisons(arms: Mapping[str, pd.DataFrame]) -> list[tuple[str, str, pd.DataFrame, pd.DataFrame]]:
    """(ranks of, contributions in, arm, arm): each arm with itself, and ElaLoRA with the fixed-rank adapter."""
    found = [(name, name, arm, arm) for name, arm in arms.items()]
    fixed = [(n, a) for n, a in arms.items() if arm_of(a.iloc[0]["settings"]) == "svd_lora"]
    for name, arm in arms.items():
        if arm_of(arm.iloc[0]["settings"]) == "elalora":
            found += [(name, other, arm, measured) for other, measured in fixed]
    return found


def transplants(cell: pd.DataFrame, where: str) -> Table | None:
    """The transplant control: what the layout does, what the way there does."""
    import pandas as pd

    steps = transplant(cell)
    if len(steps) < 2:
        return None
    rows = [
        [s.name, s.meaning, str(s.seeds), signed(s.mean), signed_range(s.low, s.high).strip(), _p(s.p), _p(s.corrected)]
        for s in steps
    ]
    shown = {step.name for step in steps}
    names_ = [f"{name}: {arm} less {less}." for name, arm, less, _ in STEPS if name in shown]
    arms = [arm_of(s) for s in cell["settings"]]
    rates = {a: s["trainer"]["lr"] for a, s in zip(arms, cell["settings"], strict=True) if a and "trainer" in s}
    if len(set(rates.values())) > 1:
        listed = ", ".join(f"{arm} {rate}" for arm, rate in sorted(rates.items()))
        names_.append(f"Learning rates, tuned for each arm, are part of these differences: {listed}.")
    notes = [*names_, "Paired by seed; t interval over seeds; exact sign-flip test, Holm over the rows of this table."]
    columns = ["Difference", "Meaning", "Seeds", "Points", "95 % interval", "p", "p (Holm)"]
    frame = pd.DataFrame(steps).assign(where=where)
    return Table(f"Layout or dynamics: {where}", columns, rows, notes, frame)


def shares(arms: Mapping[str, pd.DataFrame], where: str) -> Table | None:
    """Mean rank of each matrix type over the mean rank of all, beside the authors' own logged runs where known."""
    import pandas as pd

    found: dict[str, dict[str, float]] = {}
    for name, arm in arms.items():
        x, order = patterns(arm)
        if _varies(x):
            kinds = dict(zip(order, _kinds(arm, order), strict=True))
            found[name] = shares_of_types(dict(zip(order, x.mean(axis=0), strict=True)), kinds)
    if not found:
        return None
    logged = logged_shares()
    frame = pd.DataFrame.from_dict(found | logged, orient="index")
    frame = frame[sorted(frame.columns, key=_type_order)]
    rows = [[str(name), *("" if math.isnan(v) else f"{v:.2f}" for v in line)] for name, line in frame.iterrows()]
    notes = ["1 is an even share. Ranks in large matrices cost more parameters than in small ones."]
    if logged:
        notes.append(
            "The authors' rows are final ranks that their repository's history holds (DeBERTa-v3-base, pre-release "
            "runs, not a published table); other model and other settings, so they are shown and not compared."
        )
    whole = frame.rename_axis("arm").reset_index().assign(where=where)
    return Table(f"Share of each matrix type: {where}", ["Method", *map(str, frame.columns)], rows, notes, whole)


def logged_shares(path: Path | None = None) -> dict[str, dict[str, float]]:
    """Shares in the authors' logged rank patterns, by "authors: RUN"; empty where the file is not there."""
    import pandas as pd

    path = path or CHECKOUT / "analysis" / "published" / "elalora_githistory_rank_patterns.csv"
    if not path.is_file():
        return {}
    frame = pd.read_csv(path, comment="#")
    found = {}
    for run, rows in frame.groupby("run", sort=True):
        places = {
            f"{layer}.{module}": (layer, module) for layer, module in zip(rows["layer"], rows["module"], strict=True)
        }
        cells = _cells_of(places)
        ranks = dict(zip(places, rows["rank"].astype(float), strict=True))
        name = str(run).removesuffix("--overwrite_output_dir")
        found[f"authors: {name}"] = shares_of_types(ranks, {key: kind for key, (_, kind) in cells.items()})
    return found


# -- pictures ----------------------------------------------------------------------------------------------


def figures(
    arms: Mapping[str, pd.DataFrame], own: Mapping[str, pd.DataFrame], out: Path, stem: str, where: str, data: str
) -> dict[Path, str]:
    """Spread over seeds, round by round, what moved when, agreement, scores, contribution; each where there is one.

    Only contribution is drawn of all `arms`, the rest of those that chose their ranks themselves (`own`).
    Rounds and moves of arms with the side effects D1 or D2 are left to the attribution table.

    Returns:
        Captions by the path of the .svg; a .png stands beside it.
    """
    drawn: dict[Path, str] = {}

    def draw(function: Callable[..., list[Path]], kind: str, title: str, *frames: Any, of: str = "") -> None:
        path = out / f"{kind}_{names([stem, of])}"
        drawn[function(*frames, path, title, data)[-1]] = title

    moved = {name: arm for name, arm in own.items() if _varies(patterns(arm)[0])}
    spread = {name: spread_map(arm) for name, arm in moved.items() if len(arm) > 1}
    if spread:
        draw(rank_figures.draw_spreads, "spread", f"Spread of final ranks over seeds: {where}", spread)
    if len(moved) > 1 or spread:
        draw(rank_figures.draw_agreement, "agreement", f"Agreement of final ranks: {where}", agreement(moved))
    distributions = {}
    for name, arm in moved.items():
        rounds = [load_rounds(folder) for folder in arm["folder"]]
        if max(map(len, rounds)) < 2 or any((cell_of(arm.iloc[0]["settings"]) or (0,))[1:]):
            continue
        label = f"{name}: {where}" + (f", mean over {len(arm)} seeds" if len(arm) > 1 else "")
        maps = maps_of_rounds(arm, rounds)
        centre = float(np.nanmean(next(iter(maps.values())).to_numpy(float)))
        draw(rank_figures.draw_rounds, "rounds", f"Ranks of {label}", maps, centre, of=name)
        net, replaced = moves(arm, rounds)
        if len(net):
            draw(rank_figures.draw_events, "moves", f"Moves of {label}", net, replaced, of=name)
        if found := [frame for one in rounds if len(frame := scores(one))]:
            import pandas as pd

            distributions[name] = pd.concat(found)
    if distributions:
        draw(rank_figures.draw_scores, "scores", f"Scores before each round: {where}", distributions)
    if len(points := contribution_points(arms)):
        draw(rank_figures.draw_relation, "contribution", f"Rank against contribution: {where}", points)
    return drawn


def spread_map(arm: pd.DataFrame) -> pd.DataFrame:
    """Standard deviation (ddof 1) of the final ranks over seeds, (layers, matrix types)."""
    x, order = patterns(arm)
    return _map(dict(zip(order, x.std(axis=0, ddof=1), strict=True)), arm)


def _map(values: Mapping[str, Any], arm: pd.DataFrame) -> pd.DataFrame:
    frame = _as_map(values, arm.iloc[0]["places"])
    return frame[sorted(frame.columns, key=_type_order)].sort_index()


def agreement(arms: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Mean tau-b within arms (of different seeds) and between arms, (arms, arms); NaN where one seed is all."""
    import pandas as pd

    table = pd.DataFrame(math.nan, index=list(arms), columns=list(arms))
    for one, first in arms.items():
        for two, second in arms.items():
            x, y = patterns(first)[0], patterns(second)[0]
            if one != two:
                table.loc[one, two] = mean_tau_between(x, y).value
            elif len(x) > 1:
                table.loc[one, two] = mean_tau(x).value
    return table


def maps_of_rounds(arm: pd.DataFrame, rounds: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, pd.DataFrame]:
    """Mean ranks over seeds at the start and after up to `MOST_ROUNDS` - 1 rounds, by panel title."""
    steps = sorted({line["step"] for one in rounds for line in one})
    if len(steps) > MOST_ROUNDS:
        steps = [steps[round(i)] for i in np.linspace(0, len(steps) - 1, MOST_ROUNDS)]
    maps = {}
    for step in steps:
        held = [[line["ranks"] for line in one if line["step"] <= step][-1] for one in rounds if one]
        mean = {name: sum(ranks[name] for ranks in held) / len(held) for name in arm.iloc[0]["places"]}
        maps["start" if step < 0 else f"after step {step}"] = _map(mean, arm)
    return maps


def moves(arm: pd.DataFrame, rounds: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Directions gained less lost and replaced in place, (matrices that moved, steps), mean over seeds."""
    import pandas as pd

    cells = _cells_of(arm.iloc[0]["places"])
    found = pd.concat([events(one) for one in rounds])
    found["replaced"] = np.minimum(found["pruned"], found["grown"])
    order = sorted(set(found["matrix"]), key=lambda n: (_type_order(cells[n][1]), cells[n][0]))
    steps = sorted(set(found["step"]))
    wide = found.pivot_table(index="matrix", columns="step", values=["net", "replaced"], aggfunc="sum", fill_value=0)
    net, replaced = (wide[part].reindex(index=order, columns=steps) / len(rounds) for part in ("net", "replaced"))
    for frame in (net, replaced):
        frame.index = pd.Index([f"{cells[name][1]} {cells[name][0]}" for name in order])
    return net, replaced


def contribution_points(arms: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Mean rank and mean contribution of every matrix, for the comparisons of `relations`."""
    import pandas as pd

    rows = []
    for ranks_of, measured_in, arm, measured in _comparisons(arms):
        ranks, rises, order, seeds = paired(arm, measured)
        if not seeds or not _varies(ranks):
            continue
        own = ranks_of == measured_in
        panel = f"{ranks_of}, own contributions" if own else f"ranks of {ranks_of}, contributions in {measured_in}"
        kinds = _kinds(arm, order)
        rows += [(panel, *line) for line in zip(kinds, ranks.mean(axis=0), rises.mean(axis=0), strict=True)]
    return pd.DataFrame(rows, columns=["panel", "type", "rank", "rise"])


# -- shared ------------------------------------------------------------------------------------------------


def _kinds(arm: pd.DataFrame, order: Sequence[str]) -> list[str]:
    cells = _cells_of(arm.iloc[0]["places"])
    return [cells[name][1] for name in order]


def _given(arm: pd.DataFrame) -> bool:
    """Whether the ranks were taken from another run: then they are no finding of this one, and would count twice."""
    return bool(arm.iloc[0]["settings"].get("method", {}).get("ranks_from"))


def _varies(ranks: Any) -> bool:
    """Whether any seed has more than one rank."""
    return bool((np.ptp(ranks, axis=1) > 0).any())


def _interval(found: Agreement) -> str:
    if math.isnan(found.value):
        return "undefined"
    reach = "" if math.isnan(found.low) else f" [{found.low:.2f}, {found.high:.2f}]"
    return f"{found.value:.2f}{reach}".replace("-", "−")


def _shown(found: Relation) -> list[str]:
    if math.isnan(found.rho):
        return ["undefined", ""]
    return [signed(found.rho) + signed_range(found.low, found.high), _p(found.p)]


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
