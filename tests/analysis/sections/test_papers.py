"""The papers' tables: layout, averages and differences against numbers worked out by hand or printed in the papers."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis.output.writers import to_latex, to_markdown
from analysis.reading.runs import load_runs
from analysis.reading.settings import command
from analysis.sections.ablations import ablations
from analysis.sections.beside_published import against_published
from analysis.sections.paper_cells import points
from analysis.sections.paper_layouts import COMMONSENSE, GLUE, LAYOUTS, SUMMARIZATION, VTAB
from analysis.sections.papers import paper_tables
from analysis.sections.published_numbers import DECODING_OPEN, FOLDER, Published, published, published_file
from experiments.runtime.places import CHECKOUT
from experiments.standins.stored_runs import result, write_run

T_2 = 4.302652729911275  # 97.5 % point of Student's t with 2 degrees of freedom
MODEL = {"model": "deberta_v3_base", "identity__model": {"name": "deberta_v3_base"}}


def run(root: Path, method: str, task: str, seed: int, metrics: dict[str, float], **changes: Any) -> None:
    """One run of a task with all its metrics."""
    whole = result(
        method, seed, 0.0, **MODEL | {"task": task, "identity__task": {"name": task}, "metric": next(iter(metrics))}
        | {"readings__last__report__metrics": metrics, "data__majority": {}} | changes,
    )  # fmt: skip
    write_run(root, whole)


def cell(tables: dict, name: str, method: str, column: str) -> str:
    rows = [dict(zip(tables[name].columns, row, strict=True)) for row in tables[name].rows]
    (found,) = [row[column] for row in rows if row["Method"] == method]
    return found


# -- published numbers -------------------------------------------------------------------------------------


def test_every_published_file_names_its_source_and_says_what_was_verified() -> None:
    names = [path.stem for path in sorted(FOLDER.glob("*.csv"))]
    assert len(names) >= 14
    for name in names:
        source, frame = published_file(name)
        assert len(source) > 20 and len(frame), name
        if "verified" in frame:
            assert set(frame["verified"]) <= {"yes", "yes (image)", "second-hand"}, name
        else:
            assert frame["source"].str.startswith("code:").all(), name  # copied from a file, with its line or name


def test_published_files_are_copies_of_the_reference(shared: Path) -> None:
    files = sorted(FOLDER.glob("*.csv"))
    assert files
    for path in files:
        assert path.read_bytes() == (shared / "reference" / "published" / path.name).read_bytes()


@pytest.mark.parametrize("row", [r for r in published() if r.average and "AdaLoRA" in r.source], ids=lambda r: r.label)
def test_the_average_of_a_glue_row_is_the_one_that_adalora_prints(row: Published) -> None:
    columns = [[row.values[part] for part in column.parts] for column in GLUE.columns]
    mean = sum(sum(parts) / len(parts) for parts in columns) / 8
    assert mean == pytest.approx(row.average, abs=0.06)  # printed from unrounded cells


def test_elaloras_own_rows_are_empty_and_say_so() -> None:
    rows = [row for row in published() if row.method == "elalora"]
    assert {row.suite for row in rows} == {"glue", "summarization", "vtab"}
    assert all(not row.values and "not found" in row.remark for row in rows)


def test_published_values_are_those_of_the_files() -> None:
    ada = [r for r in published() if r.method == "adalora" and r.suite == "glue"]
    assert [(r.budget, r.values["rte", "accuracy"]) for r in ada] == [("r8", 88.09), ("r2", 87.36)]
    bart = next(r for r in published() if r.label == "AdaLoRA" and r.params == "0.13 %")
    assert (bart.values["xsum", "rouge2"], bart.budget) == (19.95, "")
    log = next(r for r in published() if r.method == "lora" and r.label.endswith("mnli_r4"))
    assert log.values["mnli_mm", "accuracy"] == pytest.approx(90.06305939788446) and log.protocol == "paper_last"


def test_every_task_of_a_layout_has_a_configuration_once_its_suite_is_there() -> None:
    conf = CHECKOUT / "conf" / "task"
    for layout in LAYOUTS:
        known = {task for task in layout.tasks() if (conf / f"{task}.yaml").is_file()}
        if layout is GLUE or known:
            assert layout.tasks() - known <= ({"mnli_mm"} if layout is GLUE else set())
    assert (len(VTAB.columns), len(SUMMARIZATION.columns)) == (19, 3)
    assert [sum(c.group == g for c in VTAB.columns) for g in ("Natural", "Specialized", "Structured")] == [7, 4, 8]


# -- layout ------------------------------------------------------------------------------------------------


def full_glue(root: Path, method: str, seed: int, shift: float) -> None:
    run(root, method, "mnli", seed, {"accuracy": 90 + shift})
    run(root, method, "mnli_mm", seed, {"accuracy": 91 + shift})
    run(root, method, "qqp", seed, {"accuracy": 92 + shift, "f1": 89 + shift})
    run(root, method, "stsb", seed, {"pearson": 91 + shift, "spearman": 90 + shift})
    run(root, method, "cola", seed, {"mcc": 70 + shift})
    for task in ("sst2", "qnli", "rte", "mrpc"):
        run(root, method, task, seed, {"accuracy": 94 + shift})


def test_glue_has_the_papers_columns_and_the_average_of_the_papers(tmp_path: Path) -> None:
    full_glue(tmp_path, "lora", 0, 0.0)
    full_glue(tmp_path, "lora", 1, 1.0)
    tables = paper_tables(load_runs(tmp_path))
    assert list(tables) == ["glue_deberta_v3_base"]
    columns = tables["glue_deberta_v3_base"].columns
    assert columns[-9:] == [*(column.title for column in GLUE.columns), "Avg"]
    here = ("glue_deberta_v3_base", "LoRA")
    assert cell(tables, *here, "MNLI m/mm") == "90.50/91.50 ± 0.71/0.71"
    assert cell(tables, *here, "STS-B (Corr)") == "91.00 ± 0.71"  # of 90.5 and 91.5
    # (90.5 + 94 * 4 + 70 + 90.5 + 90.5) / 8 = 89.6875 for seed 0, one more for seed 1
    assert cell(tables, *here, "Avg") == "90.19 ± 0.71"


def test_published_rows_stand_beside_ours_and_elaloras_are_empty(tmp_path: Path) -> None:
    full_glue(tmp_path, "lora", 0, 0.0)
    shown = paper_tables(load_runs(tmp_path))["glue_deberta_v3_base"]
    rows = [dict(zip(shown.columns, row, strict=True)) for row in shown.rows]
    ada = next(row for row in rows if row["Method"] == "AdaLoRA, published" and row["Budget"] == "r2")
    assert (ada["MNLI m/mm"], ada["QQP Acc/F1"], ada["Avg"]) == ("90.66/90.70", "91.78/89.16", "88.86")
    assert ada["Protocol"] == "not stated"
    ela = [row for row in rows if row["Method"] == "ElaLoRA, published (not found)"]
    assert [row["Budget"] for row in ela] == ["r2", "r4", "r10"]
    assert all(row[column.title] == "" for row in ela for column in GLUE.columns)
    assert any("ElaLoRA's tables could not be read" in note for note in shown.notes)


def test_missing_runs_are_counted_with_a_command_and_enter_no_average(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        run(tmp_path, "lora", "rte", seed, {"accuracy": 80.0 + seed})
        run(tmp_path, "lora", "cola", seed, {"mcc": 60.0})
        run(tmp_path, "adalora", "cola", seed, {"mcc": 60.0 + seed})
    run(tmp_path, "svd_lora", "rte", 1, {"accuracy": 70.0})
    tables = paper_tables(load_runs(tmp_path))
    name = "glue_deberta_v3_base"
    assert cell(tables, name, "AdaLoRA", "RTE") == "3 missing" and cell(tables, name, "AdaLoRA", "Avg") == ""
    assert cell(tables, name, "SVD-LoRA", "RTE") == "70.00 (2 missing)"
    (note,) = [n for n in tables[name].notes if n.startswith("Missing: 3 runs of AdaLoRA, r4, rte, clean")]
    words = shlex.split(note.partition("make them with: ")[2])
    assert words[:3] == ["python", "run.py", "-m"] and {"method=adalora", "task=rte", "budget=r4", "seed=0,1,2"} <= set(
        words
    )
    (note,) = [n for n in tables[name].notes if n.startswith("Missing: 2 runs of SVD-LoRA, r4, rte")]
    assert note.endswith("seed=0,2")


@pytest.mark.parametrize(
    "words",
    [
        ["method=elalora", "method.k=3", "method.interval=2", "task=rte", "task.max_length=64", "budget=r2",
         "trainer=standard", "seed=3",
         "trainer.lr=0.0002", "data.train_items=100", "protocol=paper_last", "model.dropout=0.2"],
        ["method=svd_lora", "method.ranks_from='elalora variant=official trainer.lr=0.01'", "budget=r2", "seed=3"],
        ["method=lora", "recipe=published", "task=rte", "trainer.max_steps=50", "seed=3", "budget=params",
         "budget.params=330000"],
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_the_command_of_a_result_plans_the_same_run(tmp_path: Path, words: list[str]) -> None:
    from experiments.config.compose import compose_run
    from experiments.runs.plan import budget_name, make_plan

    wanted = make_plan(compose_run([*words, f'store.root="{tmp_path}"']))
    for plan in (wanted, *(source.plan for source in wanted.sources)):  # as they are found in a store
        assert plan is not None
        folder = write_run(tmp_path, result(str(plan.identity["method"]["name"]), 3, 80.0, identity=plan.identity))
        whole = json.loads((folder / "result.json").read_text()) | {"id": plan.id}
        (folder / "result.json").write_text(json.dumps(whole))
    stored = load_runs(tmp_path).set_index("id").loc[wanted.id]
    typed = shlex.split(command(stored["settings"], str(budget_name(wanted.budget)), [3]))[2:]
    assert make_plan(compose_run([*typed, f'store.root="{tmp_path}"'])).id == wanted.id
    assert not any(word.startswith(("method.beta1", "task.text")) for word in typed)


def test_protocols_budgets_and_settings_have_rows_of_their_own(tmp_path: Path) -> None:
    run(tmp_path, "lora", "rte", 0, {"accuracy": 80.0})
    best = {"protocol": "paper_best", "identity__protocol": {"name": "paper_best"}}
    run(tmp_path, "lora", "rte", 0, {"accuracy": 90.0}, **best)
    run(tmp_path, "lora", "rte", 0, {"accuracy": 70.0}, budget="r8", identity__budget="r8")
    run(tmp_path, "lora", "rte", 0, {"accuracy": 60.0}, identity__trainer__lr=0.5)
    frame = paper_tables(load_runs(tmp_path))["glue_deberta_v3_base"].frame
    ours = frame[(frame["row"] == "ours") & (frame["task"] == "rte")]
    assert sorted(ours["mean"].dropna()) == [60.0, 70.0, 80.0, 90.0]


def test_a_knob_that_was_turned_on_one_task_leaves_the_method_one_row(tmp_path: Path) -> None:
    for task in ("rte", "mrpc"):
        run(tmp_path, "elalora", task, 0, {"accuracy": 80.0}, identity__method={"name": "elalora", "k": 2})
    run(tmp_path, "elalora", "rte", 0, {"accuracy": 85.0}, identity__method={"name": "elalora", "k": 3})
    tables = paper_tables(load_runs(tmp_path))
    name = "glue_deberta_v3_base"
    assert [cell(tables, name, "ElaLoRA (paper)", title) for title in ("RTE", "MRPC")] == ["80.00", "80.00"]
    assert [cell(tables, name, "ElaLoRA (paper) [k=3]", title) for title in ("RTE", "MRPC")] == ["85.00", ""]


def test_published_recipes_with_other_knobs_on_every_task_leave_the_method_one_row(tmp_path: Path) -> None:
    for number, task in enumerate(("rte", "mrpc")):
        knobs = {"name": "elalora", "t_initial": 100 * (number + 1)}
        settings = {"identity__method": knobs, "recipe": f"published (script {task})"}
        run(tmp_path, "elalora", task, 0, {"accuracy": 80.0}, **settings)
        if task == "rte":
            run(tmp_path, "elalora", task, 0, {"accuracy": 85.0}, **settings | {"identity__method": knobs | {"k": 3}})
    runs = load_runs(tmp_path)
    tables, name = paper_tables(runs), "glue_deberta_v3_base"
    assert [cell(tables, name, "ElaLoRA (paper)", title) for title in ("RTE", "MRPC")] == ["80.00", "80.00"]
    assert cell(tables, name, "ElaLoRA (paper) [k=3]", "RTE") == "85.00"
    turned = ablations(runs)
    assert turned is not None and [row[4:] for row in turned.rows] == [
        ["as configured", "1", "80.00", ""],
        ["k=3", "1", "85.00", "+5.00"],
    ]


def test_runs_on_other_data_are_never_averaged(tmp_path: Path) -> None:
    run(tmp_path, "lora", "rte", 0, {"accuracy": 80.0})
    run(tmp_path, "lora", "rte", 1, {"accuracy": 90.0}, data__fingerprint="ffff")
    shown = paper_tables(load_runs(tmp_path))
    assert cell(shown, "glue_deberta_v3_base", "LoRA", "RTE") == "mixed"
    assert any("different data are not averaged" in note for note in shown["glue_deberta_v3_base"].notes)


def test_stand_in_data_is_marked_everywhere(tmp_path: Path) -> None:
    run(tmp_path, "lora", "rte", 0, {"accuracy": 80.0}, data__verified=False)
    shown = paper_tables(load_runs(tmp_path))["glue_deberta_v3_base"]
    assert "LoRA§" in to_markdown(shown) and r"LoRA\S{}" in to_latex(shown)
    assert any("not the official data" in note and "rte" in note for note in shown.notes)


def test_vtab_has_nineteen_tasks_three_group_means_and_their_mean(tmp_path: Path) -> None:
    model = {"model": "vit_b16_in21k", "identity__model": {"name": "vit_b16_in21k"}}
    for number, column in enumerate(VTAB.columns):
        run(tmp_path, "elalora", column.parts[0][0], 0, {"accuracy": float(number)}, **model)
    tables = paper_tables(load_runs(tmp_path))
    here = ("vtab_vit_b16_in21k", "ElaLoRA (paper)")
    # 0..6, 7..10, 11..18
    means = [cell(tables, *here, f"{group} mean") for group in ("Natural", "Specialized", "Structured")]
    assert means == ["3.00", "8.50", "14.50"] and cell(tables, *here, "Mean of groups") == "8.67"
    assert any("64.88 on a subset of VTAB-1k, second-hand" in note for note in tables["vtab_vit_b16_in21k"].notes)


def test_summaries_show_three_rouge_scores_and_no_average(tmp_path: Path) -> None:
    model = {"model": "bart_large", "identity__model": {"name": "bart_large"}}
    run(tmp_path, "lora", "xsum", 0, {"rouge1": 43.0, "rouge2": 20.0, "rougeL": 35.0, "rougeLsum": 35.0}, **model)
    tables = paper_tables(load_runs(tmp_path))
    assert cell(tables, "summarization_bart_large", "LoRA", "XSum") == "43.00/20.00/35.00"
    assert not any(title.startswith("Avg") for title in tables["summarization_bart_large"].columns)
    published_cell = [row for row in tables["summarization_bart_large"].rows if row[0] == "AdaLoRA, published"][0]
    assert "44.72/21.46/36.46" in published_cell


def test_correlation_needs_both() -> None:
    assert points({"pearson": 90.0, "spearman": 88.0}, "correlation") == 89.0
    assert points({"pearson": 90.0}, "correlation") is None


# -- beside published numbers ------------------------------------------------------------------------------

THERE = Published(
    "Somebody 2024", "glue", "deberta_v3_base", "LoRA", "lora", "r4", "", "clean", {("rte", "accuracy"): 80.0}
)


def beside(root: Path, **changes: Any) -> str:
    met = against_published(load_runs(root), [replace(THERE, **changes)])
    assert met is not None
    return met.rows[0][-1]


def test_a_difference_stands_only_where_model_task_budget_and_protocol_match(tmp_path: Path) -> None:
    for seed, score in enumerate((80.0, 82.0, 84.0)):
        run(tmp_path, "lora", "rte", seed, {"accuracy": score})
    half = T_2 * 2 / 3**0.5
    assert beside(tmp_path) == f"+2.00 [{2 - half:+.2f}, {2 + half:+.2f}]".replace("-", "−")
    assert beside(tmp_path, protocol="") == "not comparable: protocol not stated"
    assert beside(tmp_path, budget="", protocol="paper_best") == (
        "not comparable: budget in ranks not stated; protocol paper_best there"
    )
    runs = load_runs(tmp_path)
    for other in (
        {"budget": "r2"},
        {"model": "roberta_base"},
        {"method": "adalora"},
        {"values": {("cola", "mcc"): 1.0}},
    ):
        assert against_published(runs, [replace(THERE, **other)]) is None


def test_below_three_seeds_the_difference_has_no_interval(tmp_path: Path) -> None:
    run(tmp_path, "lora", "rte", 0, {"accuracy": 81.0})
    assert beside(tmp_path) == "+1.00 (no interval below 3 seeds)"


def test_stand_in_data_meets_no_published_number(tmp_path: Path) -> None:
    run(tmp_path, "lora", "rte", 0, {"accuracy": 81.0}, data__verified=False)
    assert beside(tmp_path) == "not comparable: our data is not the official one"


def test_the_note_says_that_the_interval_covers_our_seeds_only(tmp_path: Path) -> None:
    run(tmp_path, "lora", "rte", 0, {"accuracy": 81.0})
    met = against_published(load_runs(tmp_path), [THERE])
    assert met is not None and "covers our seeds only" in to_markdown(met)


def test_our_lora_on_deberta_meets_the_authors_logs_and_adalora_is_not_comparable(tmp_path: Path) -> None:
    last = {"protocol": "paper_last", "identity__protocol": {"name": "paper_last"}}
    last |= {"budget": "r2", "identity__budget": "r2"}
    run(tmp_path, "lora", "sst2", 0, {"accuracy": 95.0}, **last)
    run(tmp_path, "adalora", "sst2", 0, {"accuracy": 95.0}, **last)
    met = against_published(load_runs(tmp_path))
    assert met is not None
    assert {row[-1] for row in met.rows if row[0] == "AdaLoRA"} == {"not comparable: protocol not stated"}
    logs = met.frame[met.frame["source"].str.startswith("logs of ElaLoRA's authors")]
    assert logs["comparable"].all() and logs["difference"].round(4).tolist() == [-0.7569, 0.7339]


def test_the_63_results_of_pefts_comparison_stand_beside_ours_as_reported(tmp_path: Path) -> None:
    model = {"model": "llama3_2_3b", "identity__model": {"name": "llama3_2_3b"}, "protocol": "paper_last"}
    model |= {"budget": "r32", "identity__budget": "r32", "identity__protocol": {"name": "paper_last"}}
    run(tmp_path, "lora", "gsm8k", 0, {"accuracy": 47.0}, **model)
    tables = paper_tables(load_runs(tmp_path))
    rows = tables["metamath_llama3_2_3b"].rows
    reported = [row for row in rows if row[0].endswith(", published")]
    assert len(reported) == 63 and cell(tables, "metamath_llama3_2_3b", "lora/rank32, published", "GSM8K") == "47.84"
    assert any("reported, not ours" in note for note in tables["metamath_llama3_2_3b"].notes)
    met = against_published(load_runs(tmp_path))
    assert met is not None and [row[-1] for row in met.rows] == [f"not comparable: {DECODING_OPEN}"]


def test_commonsense_has_eight_columns_and_their_average(tmp_path: Path) -> None:
    scores = {"accuracy": 4.5} | {f"accuracy_{name}": float(i) for i, name in enumerate(COMMONSENSE, start=1)}
    model = {"model": "llama3_1_8b", "identity__model": {"name": "llama3_1_8b"}}
    run(tmp_path, "lora", "commonsense_170k", 0, scores, **model)
    tables = paper_tables(load_runs(tmp_path))
    here = "commonsense_170k_llama3_1_8b"
    assert cell(tables, here, "LoRA", "HellaSwag") == "4.00" and cell(tables, here, "LoRA", "Avg") == "4.50"
    assert cell(tables, here, "LoRA r32 on Llama-3-8B, published", "Avg") == "80.80"
