"""Score against cost: the table, the Pareto front and its figures."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from drawn import catch, cut_off

from analysis.output.looks import Looks
from analysis.reading.runs import load_runs
from analysis.sections import cost_figures
from analysis.sections.comparison import comparison
from analysis.sections.cost import cost_table, suite_costs, task_costs
from analysis.sections.cost_figures import draw_pareto, pareto_front
from experiments.standins.stored_runs import result, write_run


def test_the_pareto_front_is_what_no_point_beats() -> None:
    cost, score = [1, 2, 2, 3, 4, 4], [5, 7, 6, 7, 9, 9]
    assert pareto_front(cost, score).tolist() == [True, True, False, False, True, True]
    assert pareto_front([], []).tolist() == []
    with pytest.raises(ValueError, match="are needed twice"):
        pareto_front([1], [1, 2])


def test_the_cost_table_holds_start_peak_and_end_and_leaves_the_unknown_empty(tmp_path: Path) -> None:
    write_run(tmp_path, result("adalora", 0, 80.0, counts__initial__rank_sum=72, counts__peak__rank_sum=75))
    table = cost_table(comparison(load_runs(tmp_path)))
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert (row["Rank sum"], row["Parameters"]) == ("72 → 48 (peak 75)", "64,512")
    assert list(table.frame.loc[0, ["rank_sum_initial", "rank_sum_peak", "rank_sum_final"]]) == [72, 75, 48]
    assert (row["Step ms"], row["Memory MiB"], row["Adapter KiB"], row["Head"]) == ("500", "", "977", "148,610")


def test_a_pareto_figure_is_drawn_once_per_task_and_nothing_is_cut_off(tmp_path: Path) -> None:
    from matplotlib.image import imread

    for number, method in enumerate(("lora", "svd_lora", "adalora", "sora")):
        for seed in (0, 1):
            changes = {"counts__final__params": 1000 * (number + 1), "cost__peak_memory_mib": 100.0 + number}
            write_run(
                tmp_path, result(method, seed, 80.0 + number + seed, label="a long name of an arm " * 2, **changes)
            )
    (key, arms), *rest = task_costs(comparison(load_runs(tmp_path)))
    assert key["task"] == "vader_movies" and not rest and len(arms) == 4
    paths = draw_pareto(arms, Looks(), tmp_path / "pareto", "a title " * 30, "a source")
    pixels = imread(paths[0])[..., :3]
    for edge in (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]):
        assert edge.min() == 1.0


def test_fifteen_arms_fit_a_pareto_figure_and_an_arm_looks_alike_in_every_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = catch(monkeypatch, cost_figures)
    names = [f"ElaLoRA, random moves + D1 + D2 (paper) [trainer.lr=0.{i:03}]" for i in range(15)]
    rows = [{"shown": n, "budget": "r4", "metric": "accuracy", "score_mean": 80.0 + i} for i, n in enumerate(names)]
    arms = pd.DataFrame(rows).assign(
        score_sd=1.0, method="elalora", peak_memory_mib=None, adapter_bytes=None, step_seconds_median=None
    )
    arms["params_final"] = range(1000, 1015)
    looks = Looks()
    for number, some in enumerate((arms, arms.iloc[::-1].iloc[:3])):
        draw_pareto(some, looks, tmp_path / str(number), "a title", "a source")
    found = []
    for figure in made:
        assert cut_off(figure) == []
        (legend,) = figure.legends
        legend_box = legend.get_window_extent()
        assert legend_box.y1 <= figure.bbox.height and legend_box.y0 >= 0
        handles = zip(legend.get_texts(), legend.legend_handles, strict=True)
        found.append({" ".join(text.get_text().split()): (h.get_color(), h.get_marker()) for text, h in handles})
    assert all(found[0][name] == look for name, look in found[1].items())
    assert len(set(found[0].values())) == 17  # the arms, the budget and the line


def test_a_suite_s_points_are_means_over_the_tasks_and_seeds_that_every_arm_has(tmp_path: Path) -> None:
    for task, level, step in (("rte", 60.0, 0.2), ("cola", 50.0, 0.4), ("mrpc", 90.0, 9.0)):
        for seed in (0, 1):
            for method, budget, gain in (("lora", "r2", 0.0), ("lora", "r4", 2.0), ("sora", "r2", 1.0)):
                if (method, task) == ("sora", "mrpc"):
                    continue
                cost = {"cost__step_seconds_median": step, "counts__final__params": 1000 * int(budget[1])}
                named = {"task": task, "identity__task": {"name": task}, "budget": budget, "identity__budget": budget}
                write_run(tmp_path, result(method, seed, level + gain + 4 * seed, **named, **cost))
    alone = {"task": "rte", "identity__task": {"name": "rte"}, "budget": "r2", "identity__budget": "r2"}
    write_run(tmp_path, result("lora", 2, 10.0, **alone))
    write_run(tmp_path, result("lora", 0, 10.0))  # of another suite
    for flags, task in ((["off budget"], "rte"), ([], "cola")):
        named = {"task": task, "identity__task": {"name": task}, "budget": "r4", "identity__budget": "r4"}
        write_run(tmp_path, result("sora", 0, 99.0, flags=flags, **named))
    [(key, arms, tasks, off)] = suite_costs(load_runs(tmp_path))
    assert (key["suite"], tasks, off) == ("glue", ["cola", "rte"], ["SoRA at r4"])
    shown = arms.set_index(["shown", "budget"]).sort_index()
    assert shown["score_mean"].to_dict() == {("LoRA", "r2"): 57.0, ("LoRA", "r4"): 59.0, ("SoRA", "r2"): 58.0}
    assert shown["score_sd"].tolist() == pytest.approx([8**0.5] * 3)  # seeds 2 above and 2 below, each over both tasks
    assert shown["step_seconds_median"].tolist() == pytest.approx([0.3] * 3)
    assert shown["params_final"].tolist() == [2000, 4000, 2000] and set(shown["n"]) == {2}
    paths = draw_pareto(arms, Looks(), tmp_path / "pareto")
    text = paths[1].read_text()
    assert "Mean score over 2 tasks (points)" in text and "budget r2" in text and "budget r4" in text
