"""The papers' numbers, from `analysis/published/*.csv`, in the names of this harness.

Whatever a source does not state stays empty: a budget in ranks or the rule by which a checkpoint was chosen is never
guessed, and no difference is taken to a number without them. No readable source has ElaLoRA's numbers per task, so its
rows are empty.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pandas as pd

from analysis.sections.paper_layouts import COMMONSENSE
from experiments.runtime.places import CHECKOUT

FOLDER = CHECKOUT / "analysis" / "published"
GLUE_COLUMNS = {
    "mnli_m": ("mnli", "accuracy"), "mnli_mm": ("mnli_mm", "accuracy"), "sst2": ("sst2", "accuracy"),
    "cola": ("cola", "mcc"), "qqp_acc": ("qqp", "accuracy"), "qqp_f1": ("qqp", "f1"), "qnli": ("qnli", "accuracy"),
    "rte": ("rte", "accuracy"), "mrpc": ("mrpc", "accuracy"), "stsb": ("stsb", "correlation"),
}  # fmt: skip
README_ROWS = {
    "MNLI-m": ("mnli", "accuracy"), "MNLI-mm": ("mnli_mm", "accuracy"), "SST-2": ("sst2", "accuracy"),
    "MRPC": ("mrpc", "accuracy"), "CoLA": ("cola", "mcc"), "QNLI": ("qnli", "accuracy"), "QQP": ("qqp", "accuracy"),
    "RTE": ("rte", "accuracy"), "STS-B Pearson": ("stsb", "pearson"), "STS-B Spearman": ("stsb", "spearman"),
}  # fmt: skip
LOG_TASKS = {"mnli-m": "mnli", "mnli-mm": "mnli_mm", "sst2": "sst2"}
DECODING_OPEN = "decoding not set there, so probably sampled, and other batches"
NOT_FOUND = "not found: ElaLoRA's tables could not be read in any source"


@dataclass(frozen=True)
class Published:
    """One row of a published table.

    Attributes:
        source: paper and table.
        suite, model: in our names.
        label: the method as printed.
        method: its name here, empty for a method that this project does not have.
        budget: in our names, empty if the source states none in ranks.
        params: adapter parameters as printed.
        protocol: in our names, empty if the source does not state how the checkpoint was chosen.
        values: points by (task, metric); empty if none were found.
        average: as printed.
        remark: a note on this row.
        obstacle: why no difference is taken to it even where all of these match.
    """

    source: str
    suite: str
    model: str
    label: str
    method: str = ""
    budget: str = ""
    params: str = ""
    protocol: str = ""
    values: dict[tuple[str, str], float] = field(default_factory=dict)
    average: float | None = None
    remark: str = ""
    obstacle: str = ""


def published_file(name: str) -> tuple[str, pd.DataFrame]:
    """A file of analysis/published and its source; its rows are text, "" if empty.

    The source is the file's first line, a comment, or else that of its first row.
    """
    path = FOLDER / f"{name}.csv"
    with path.open(encoding="utf-8") as file:
        first = file.readline()
    frame = pd.read_csv(path, comment="#", dtype=str, keep_default_na=False)
    return first.lstrip("# ").strip() if first.startswith("#") else str(frame["source"].iloc[0]), frame


@cache
def published() -> tuple[Published, ...]:
    """Every published row of the paper tables' suites."""
    return (
        *_adalora_glue(),
        *_lora_glue(),
        *_raclora(),
        *_logs(),
        *_increlora_glue(),
        *_adalora_summaries(),
        *_dora_dynamic(),
        *_dylora(),
        *_elalora(),
        *_peft_comparison(),
        *_commonsense(),
    )


def _adalora_glue() -> list[Published]:
    methods = {"Full FT": ("full", "none"), "BitFit": ("bitfit", "none")}
    methods |= {f"LoRA r={rank}": ("lora", f"r{rank}") for rank in (8, 2)}
    budgets = {"1.27M": "r8", "0.32M": "r2"}  # average target ranks 8 and 2, its appendix
    rows = []
    for row in published_file("adalora_table1_glue")[1].to_dict("records"):
        method, budget = methods.get(row["method"], ("", ""))
        if row["method"] == "AdaLoRA":
            method, budget = "adalora", budgets[row["params"]]
        values = {key: float(row[column]) for column, key in GLUE_COLUMNS.items()}
        rows.append(
            Published(
                "AdaLoRA, arXiv 2303.10512, Table 1", "glue", "deberta_v3_base", row["method"], method, budget,
                row["params"], values=values, average=float(row["avg"]), remark="mean of 5 seeds",
            )
        )  # fmt: skip
    return rows


def _lora_glue() -> list[Published]:
    data = published_file("lora_readme_glue")[1].set_index("metric")
    rows = []
    for column, label, method, budget, params in (
        ("roberta_base_ft_125M", "Full FT", "full", "none", "125M"),
        ("roberta_base_lora_0.8M_label", "LoRA (query and value)", "lora", "", "0.8M as labelled"),
    ):
        values = {key: float(data.loc[row, column]) for row, key in README_ROWS.items() if data.loc[row, column]}
        average = float(data.loc["Average", column])
        remark = "its average counts MNLI-m, QQP accuracy and Pearson"
        rows.append(
            Published(
                "LoRA, README of microsoft/LoRA", "glue", "roberta_base", label, method, budget, params,
                values=values, average=average, remark=remark,
            )
        )  # fmt: skip
    return rows


def _logs() -> list[Published]:
    """The logged runs of ElaLoRA's authors: last checkpoint on the validation set, one seed each."""
    rows = []
    for name, log in published_file("elalora_githistory_logs")[1].groupby("dir", sort=False):
        first = log.iloc[0]
        values = {
            (LOG_TASKS[task], "accuracy"): 100 * float(value)
            for task, value in zip(log["task"], log["value"], strict=True)
        }
        ours = "lora" if first["method"].startswith("LoRA") else ""
        run = Path(str(name)).name.removesuffix("--overwrite_output_dir")
        label = f"{'LoRA' if ours else 'ElaLoRA, pre-release'}, log {run}"
        rows.append(
            Published(
                "logs of ElaLoRA's authors, elalora_githistory_logs.csv", "glue", first["model"].replace("-", "_"),
                label, ours, f"r{first['r_from_params']}", f"{int(first['params']):,}", "paper_last", values,
                remark="one seed each, no published table",
            )
        )  # fmt: skip
    return rows


def _increlora_glue() -> list[Published]:
    """IncreLoRA as AdaPaD's authors ran it; its own paper's table could not be read."""
    columns = {
        "CoLA": ("cola", "mcc"), "STS-B": ("stsb", "correlation"),
    }  # fmt: skip
    columns |= {n: (n.lower().replace("-", ""), "accuracy") for n in ("RTE", "MRPC", "SST-2", "QNLI", "QQP", "MNLI")}
    frame = published_file("adapad_deberta_glue")[1]
    return [
        Published(
            "AdaPaD, arXiv 2605.10741, project page", "glue", "deberta_v3_base", row["method"], "increlora", "r2",
            row["params"], values={key: float(row[column]) for column, key in columns.items()},
            average=float(row["avg"]), remark="rerun by AdaPaD's authors, second-hand",
        )
        for row in frame[frame["method"] == "IncreLoRA (rerun)"].to_dict("records")
    ]  # fmt: skip


def _adalora_summaries() -> list[Published]:
    rows = []
    for row in published_file("adalora_table3_summarization")[1].to_dict("records"):
        values = {
            (task, metric): float(row[f"{column}_{short}"])
            for column, task in (("xsum", "xsum"), ("cnndm", "cnn_dailymail"))
            for short, metric in (("r1", "rouge1"), ("r2", "rouge2"), ("rl", "rougeL"))
        }
        method, budget = {"Full FT": ("full", "none"), "LoRA": ("lora", ""), "AdaLoRA": ("adalora", "")}[row["method"]]
        rows.append(
            Published(
                "AdaLoRA, arXiv 2303.10512, Table 3", "summarization", "bart_large", row["method"], method, budget,
                f"{row['params_pct']} %", values=values,
            )
        )  # fmt: skip
    return rows


def _dora_dynamic() -> list[Published]:
    """The one number whose model is known, from a site that lists benchmarks."""
    data = published_file("dora_dynamic_secondhand")[1]
    row = data[data["model"] == "BART-base"].iloc[0]
    return [
        Published(
            "dynamic-rank DoRA, arXiv 2405.17357, second-hand", "summarization", "bart_base", "Dynamic-rank DoRA",
            "dora_dynamic", values={("xsum", "rouge1"): float(row["value"])}, remark="second-hand",
        )
    ]  # fmt: skip


def _dylora() -> list[Published]:
    """DyLoRA's row in the table of another paper; the others in it are those papers' own."""
    row = published_file("dylora_roberta_glue_fourierft")[1].set_index("method").loc["DyLoRA"]
    columns = README_ROWS | {"STS-B": README_ROWS["STS-B Pearson"]}
    values = {columns[name]: float(row[name]) for name in ("SST-2", "MRPC", "CoLA", "QNLI", "RTE", "STS-B")}
    return [
        Published(
            "DyLoRA as in FourierFT, arXiv 2405.03003, Table 2", "glue", "roberta_base", "DyLoRA (query and value)",
            "dylora", "", row["params"], values=values, average=float(row["avg"]),
            remark="second-hand; its average counts 6 tasks and Pearson",
        )
    ]  # fmt: skip


def _peft_comparison() -> list[Published]:
    """PEFT's method comparison: one run each, read at the end on GSM8K's test set, as `paper_last` does."""
    ours = {"lora/rank32": ("lora", "r32"), "lora/rank64": ("lora", "r64"), "adalora/rank32": ("adalora", "r32")}
    rows = []
    for row in published_file("peft_metamathqa")[1].to_dict("records"):
        label = row["experiment"].replace("llama-3.2-3B-", "")
        method, budget = ours.get(label, ("full", "none") if row["peft_type"] == "FULL" else ("", ""))
        rows.append(
            Published(
                "PEFT's method comparison (huggingface/peft, Apache-2.0)", "metamath", "llama3_2_3b", label, method,
                budget,
                f"{int(row['trainable_params']):,}", "paper_last",
                {("gsm8k", "accuracy"): 100 * float(row["test_accuracy"])}, obstacle=DECODING_OPEN,
                remark="reported, not ours: one run each, 20,000 rows in file order, loss on the prompt too, decoding "
                "not set, most on query and value only",
            )
        )  # fmt: skip
    return rows


def _commonsense() -> list[Published]:
    """The rows on Llama-3 8B, from the README of DoRA; other models have no name here."""
    frame = published_file("commonsense_readmes")[1]
    return [
        Published(
            "README of NVlabs/DoRA, commonsense_reasoning", "commonsense_170k", "llama3_1_8b",
            f"{row['method']} r{row['rank']} on Llama-3-8B", "", "", "",
            values={
                ("commonsense_170k", f"accuracy_{name}"): float(row[title]) for name, title in COMMONSENSE.items()
            },
            average=float(row["Average"]),
            remark="Llama-3 and not 3.1; beam search, and a rate of its own for each method",
        )
        for row in frame[frame["model"] == "LLaMA3-8B"].to_dict("records")
    ]  # fmt: skip


def _elalora() -> list[Published]:
    """Rows that the paper has, without the numbers, which no readable source has."""
    facts = dict(published_file("elalora_partial_published")[1][["item", "value"]].to_numpy().tolist())
    average = facts["VTAB-1k subset ViT-B/16 ElaLoRA average accuracy"]
    settings = [("glue", "deberta_v3_base", rank, "") for rank in facts["GLUE ranks tested"].split(",")]
    settings.append(("summarization", "bart_base", facts["XSum BART-base best ROUGE at rank"], ""))
    settings.append(("vtab", "vit_b16_in21k", "8", f"; average {average} on a subset of VTAB-1k, second-hand"))
    return [
        Published("ElaLoRA, arXiv 2504.00254", suite, model, "ElaLoRA", "elalora", f"r{rank}", remark=NOT_FOUND + more)
        for suite, model, rank, more in settings
    ]


def _raclora() -> list[Published]:
    """Averages over GLUE alone; no readable source has RAC-LoRA's numbers per task."""
    methods = {"FPFT": ("full", "none"), "LoRA": ("lora", "r2"), "COLA": ("chain_lora", "r2")}
    methods |= {"RAC-LoRA": ("rac_lora", "r2"), "AsymmLoRA": ("rac_lora", "r2")}
    source = "RAC-LoRA, arXiv 2410.08305, Table 2 as quoted in a review"
    return [
        Published(
            source, "glue", "roberta_base", row["method"], *methods[row["method"]],
            average=float(row["value"]), remark="its average alone, second-hand",
        )
        for row in published_file("raclora_review")[1].to_dict("records")
        if row["benchmark"] == "GLUE average"
    ]  # fmt: skip
