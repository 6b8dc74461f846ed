"""Which tasks and metrics a paper's table shows, in which order, and what its averages are over."""

from __future__ import annotations

from dataclasses import dataclass

Part = tuple[str, str]  # task, metric; "correlation" is the mean of Pearson and Spearman


@dataclass(frozen=True)
class Column:
    """A column of one number, or of several with slashes between."""

    title: str
    parts: tuple[Part, ...]
    group: str = ""


@dataclass(frozen=True)
class Layout:
    """A table's columns.

    Attributes:
        suite, title: in file names and in captions.
        columns: in the papers' order.
        group_means: whether every group has a mean, and the last column is the mean of these.
        average: whether the table has an average; a column of two numbers counts as their mean.
    """

    suite: str
    title: str
    columns: tuple[Column, ...]
    group_means: bool = False
    average: bool = True

    def tasks(self) -> set[str]:
        """Every task in it."""
        return {task for column in self.columns for task, _ in column.parts}


def _one(title: str, task: str, metric: str = "accuracy", group: str = "") -> Column:
    return Column(title, ((task, metric),), group)


GLUE = Layout(
    "glue", "GLUE",
    (
        Column("MNLI m/mm", (("mnli", "accuracy"), ("mnli_mm", "accuracy"))),
        _one("SST-2", "sst2"), _one("CoLA (Mcc)", "cola", "mcc"),
        Column("QQP Acc/F1", (("qqp", "accuracy"), ("qqp", "f1"))),
        _one("QNLI", "qnli"), _one("RTE", "rte"), _one("MRPC", "mrpc"), _one("STS-B (Corr)", "stsb", "correlation"),
    ),
)  # fmt: skip
SUMMARIZATION = Layout(
    "summarization",
    "Summarization (ROUGE-1/2/L)",
    tuple(
        Column(title, ((task, "rouge1"), (task, "rouge2"), (task, "rougeL")))
        for title, task in (("XSum", "xsum"), ("CNN/DailyMail", "cnn_dailymail"), ("SciTLDR", "scitldr"))
    ),
    average=False,
)
NATURAL = {
    "caltech101": "Caltech101", "cifar100": "CIFAR-100", "dtd": "DTD", "flowers102": "Flowers102", "pets": "Pets",
    "svhn": "SVHN", "sun397": "Sun397",
}  # fmt: skip
SPECIALIZED = {
    "camelyon": "Camelyon", "eurosat": "EuroSAT", "resisc45": "Resisc45", "retinopathy": "Retinopathy",
}  # fmt: skip
STRUCTURED = {
    "clevr_count": "Clevr-Count", "clevr_distance": "Clevr-Dist", "dmlab": "DMLab", "kitti": "KITTI",
    "dsprites_location": "dSpr-Loc", "dsprites_orientation": "dSpr-Ori", "smallnorb_azimuth": "sNORB-Azim",
    "smallnorb_elevation": "sNORB-Elev",
}  # fmt: skip
VTAB = Layout(
    "vtab",
    "VTAB-1k",
    tuple(
        _one(title, task, group=group)
        for group, tasks in (("Natural", NATURAL), ("Specialized", SPECIALIZED), ("Structured", STRUCTURED))
        for task, title in tasks.items()
    ),
    group_means=True,
)
METAMATH = Layout("metamath", "After MetaMathQA", (_one("GSM8K", "gsm8k"), _one("MATH", "math")), average=False)
COMMONSENSE = {
    "boolq": "BoolQ", "piqa": "PIQA", "social_i_qa": "SIQA", "hellaswag": "HellaSwag", "winogrande": "WinoGrande",
    "ARC-Easy": "ARC-e", "ARC-Challenge": "ARC-c", "openbookqa": "OBQA",
}  # fmt: skip
COMMONSENSE_170K = Layout(
    "commonsense_170k",
    "Commonsense",
    tuple(_one(title, "commonsense_170k", f"accuracy_{name}") for name, title in COMMONSENSE.items()),
)
LAYOUTS = (GLUE, SUMMARIZATION, VTAB, METAMATH, COMMONSENSE_170K)
