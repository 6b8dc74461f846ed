"""Mean ranks and performance profiles over tasks: drawn whole where they show something, with a reason elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from drawn import catch, cut_off
from scipy import stats

from analysis.output.looks import Looks
from analysis.reading.runs import load_runs
from analysis.report import report
from analysis.sections import overall_figures
from analysis.sections.shared_tasks import SharedTasks, mean_ranks, shared_tasks
from analysis.stats.tasks import critical_difference, performance_profile, profile_band
from experiments.standins.stored_runs import result, write_run


def pool(arms: int, tasks: int, seeds: int = 3, name: str = "arm {}") -> SharedTasks:
    import pandas as pd

    rng = np.random.default_rng(0)
    columns = [f"task {i}" for i in range(tasks)]
    scores = {
        name.format(i): pd.DataFrame(80 + i + rng.normal(size=(seeds, tasks)), columns=columns) for i in range(arms)
    }
    key = {"model": "a model", "protocol": "clean", "recipe": "", "budget": "r4"}
    return SharedTasks(key, scores, dict.fromkeys(scores, "other") | {name.format(0): "lora"}, ["A and B, A Set, 2020"])


def test_a_band_is_the_quantiles_of_the_binomials_it_samples() -> None:
    """A resample of a task has Binomial(n, share above) runs above; their sum over tasks of equal share is Binomial."""
    scores = np.array([[1.0, 4.0], [2.0, 5.0], [3.0, 1.0], [4.0, 2.0], [5.0, 3.0]])
    low, high = profile_band(scores, [0.5, 2.5, 5.5], np.random.default_rng(0), resamples=20_000)
    assert performance_profile(scores, [2.5]) == pytest.approx([0.6])
    expected = stats.binom.ppf([0.025, 0.975], 10, 0.6) / 10
    assert [low[1], high[1]] == pytest.approx(expected)
    assert (low[0], high[0], low[2], high[2]) == (1, 1, 0, 0)


def test_no_diagram_where_no_two_ranks_can_be_told_apart() -> None:
    assert critical_difference(3, 2) > 2  # the ends of three ranks are 2 apart
    assert "3 arms over 2 tasks no two mean ranks can be 2.34 apart" in overall_figures.why_not_ranks(pool(3, 2))
    assert overall_figures.why_not_ranks(pool(3, 3)) == ""
    assert "three arms or more" in overall_figures.why_not_ranks(pool(2, 19))
    assert "need 3 common seeds" in overall_figures.why_not_profiles(pool(3, 3, seeds=2))


@pytest.mark.parametrize(("arms", "tasks"), [(3, 8), (10, 19)])
def test_figures_hold_every_arm_and_cut_nothing_off(
    arms: int, tasks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = catch(monkeypatch, overall_figures)
    found = pool(arms, tasks, name="ElaLoRA of a long name (official) number {}")
    overall_figures.draw_ranks(found, tmp_path / "ranks", "A title")
    overall_figures.draw_profiles(found, "lora", Looks(), tmp_path / "profiles", "A title")
    for figure in made:
        assert cut_off(figure) == []
    ranks, _ = mean_ranks(found)
    texts = [text.get_text() for text in made[0].axes[0].texts]
    for name, rank in zip(found.arms, ranks.mean_ranks, strict=True):
        assert any(f"{rank:.2f}" in text and name in text.replace("\n", " ") for text in texts), name
    lines = made[1].axes[0].lines[:arms]
    assert len({(line.get_color(), line.get_linestyle(), line._unscaled_dash_pattern[1]) for line in lines}) == arms


def test_the_page_has_the_figures_beside_their_table(tmp_path: Path) -> None:
    for task in "abc":
        for method, gain in (("lora", 0.0), ("sora", 1.0), ("adalora", 2.0)):
            for seed in range(3):
                score = 80.0 + gain + seed / 4
                write_run(tmp_path / "runs", result(method, seed, score, task=task, identity__task={"name": task}))
    files = {path.name for path in report([tmp_path / "runs"], tmp_path / "out", {"task": list("abc")}, quiet=True)}
    for kind in ("mean_ranks", "profiles"):
        assert {f"{kind}_minilm-clean-r4.{suffix}" for suffix in ("png", "svg")} <= files
    page = (tmp_path / "out" / "index.html").read_text()
    section = page[page.index(">Over all tasks</h2>") :].split("</section>")[0]
    assert section.count("<figure>") == 2 and "Performance profiles over 3 tasks: minilm, clean, r4" in section
    [found] = shared_tasks(load_runs(tmp_path / "runs"))
    assert found.baseline_arm("lora") == "LoRA" and found.tasks == list("abc") and found.seeds == 3
