"""A small set of runs that has everything a table must cope with, and every table of it.

`python tests/support/golden_tables.py` writes tests/golden/tables anew, after a change of the tables that is meant;
what changed
is then seen in the diff.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import pandas as pd  # noqa: E402

from analysis.output.writers import write  # noqa: E402
from analysis.reading.runs import load_runs  # noqa: E402
from analysis.reading.study import Study  # noqa: E402
from analysis.report import report  # noqa: E402
from analysis.sections.confirmatory import confirm  # noqa: E402
from experiments.config.study import FamilyConfig  # noqa: E402
from experiments.standins.stored_runs import failed, modules, moved_run, result, write_run  # noqa: E402

TABLES = HERE.parent / "golden" / "tables"
GLUE = {"rte": ["accuracy"], "cola": ["mcc"], "qqp": ["accuracy", "f1"]}
FAMILY = FamilyConfig("main", ["elalora - lora", "prilora - lora"], ["r4"], m=2)


def build(root: Path) -> pd.DataFrame:
    """Writes the store; returns the cells of its study: VADER at r4, 8 seeds of LoRA, ElaLoRA and PRILoRA."""
    cells = []
    for seed in range(8):
        for arm, score in (("lora", 80.0 + seed % 3), ("elalora", 81.25 + seed % 3 + seed / 10), ("prilora", 80.5)):
            flags = ["collapsed"] if (arm, seed) == ("prilora", 3) else []
            changes: dict[str, Any] = {"recipe": "matched", "flags": flags}
            folder = moved_run(root, seed, score, **changes) if arm == "elalora" else write_run(
                root, result(arm, seed, score, **changes), commit="fedcba98" if seed == 7 else "0123456789abcdef"
            )  # fmt: skip
            run = json.loads((folder / "result.json").read_text())["id"]
            _predictions(folder, arm, seed)
            cells.append(
                {"part": "main", "kind": "confirmatory", "arm": arm, "task": "vader_movies", "budget": "r4",
                 "seed": seed, "id": run}
            )  # fmt: skip
    _glue(root)
    _others(root)
    return pd.DataFrame(cells)


def _predictions(folder: Path, arm: str, seed: int) -> None:
    """40 items, of which an arm gets some of its own wrong; a seed of PRILoRA has lost its file."""
    if (arm, seed) == ("prilora", 5):
        return
    wrong = {"lora": range(10 - seed), "elalora": range(8, 10), "prilora": range(10 - seed)}[arm]
    label = [i % 2 for i in range(40)]
    prediction = [1 - y if i in wrong else y for i, y in enumerate(label)]
    frame = pd.DataFrame({"idx": range(40), "label": label, "prediction": prediction, "score": 0.5})
    frame.to_parquet(folder / "predictions.parquet")


def _glue(root: Path) -> None:
    """GLUE on DeBERTa under two protocols, with gaps, an ablation and a transplant."""
    for number, (task, metrics) in enumerate(GLUE.items()):
        for seed in range(3):
            for shift, method in enumerate(("lora", "elalora", "adalora")):
                for budget in ("r2", "r4"):
                    if (method, task) == ("adalora", "qqp") or (method, seed, budget) == ("elalora", 2, "r2"):
                        continue
                    scores = {m: 85.0 + number + shift / 4 + seed / 8 + i for i, m in enumerate(metrics)}
                    _run(root, method, seed, task, scores, budget=budget, identity__budget=budget)
    for seed in range(3):
        _run(root, "elalora", seed, "rte", {"accuracy": 84.0 + seed}, identity__method={"name": "elalora", "k": 3})
    _run(root, "lora", 0, "rte", {"accuracy": 91.0}, protocol="paper_best", identity__protocol={"name": "paper_best"})
    _run(root, "lora", 0, "cola", {"mcc": 60.0}, protocol="tune", identity__protocol={"name": "tune"})
    sources = load_runs(root)
    chosen = sources[(sources["task"] == "rte") & (sources["method"] == "elalora") & (sources["budget"] == "r4")]
    for source, seed in zip(chosen["id"][:3], chosen["seed"][:3], strict=True):
        transplant = {"label": "SVD-LoRA transplant", "identity__method__ranks_from": source}
        _run(root, "svd_lora", int(seed), "rte", {"accuracy": 86.0 + seed}, **transplant)


def _run(root: Path, method: str, seed: int, task: str, metrics: dict[str, float], **changes: Any) -> None:
    first = next(iter(metrics))
    given: dict[str, Any] = {
        "task": task, "identity__task": {"name": task}, "metric": first, "readings__last__report__metrics": metrics,
        "data__majority": {first: 50.0}, "model": "deberta_v3_base", "identity__model": {"name": "deberta_v3_base"},
        "protocol": "paper_last", "identity__protocol": {"name": "paper_last"}, "identity__method": {"name": method},
        "data__citation": "Wang et al., GLUE, ICLR 2019",
    }  # fmt: skip
    write_run(root, result(method, seed, 0.0, **given | changes))


def _others(root: Path) -> None:
    """Summaries, images on stand-in data, an arm off its budget, a hostile name, and runs that did not end well."""
    rouge = {"rouge1": 40.5, "rouge2": 18.25, "rougeL": 33.0}
    bart = {"model": "bart_large", "identity__model": {"name": "bart_large"}}
    _run(root, "lora", 0, "xsum", rouge, **bart)
    vit = {"model": "vit_b16_in21k", "identity__model": {"name": "vit_b16_in21k"}, "data__verified": False}
    for number, task in enumerate(("cifar100", "svhn", "eurosat", "clevr_count")):
        _run(root, "elalora", 0, task, {"accuracy": 60.0 + number}, **vit)
    even = {name: 3 for name in list(modules())[:10]}  # of uneven ranks there would be tables of their own
    places = {name: list(modules()[name]) for name in even}
    sora = {"counts__final__rank_sum": 30, "ranks__final": even, "ranks__places": places}
    write_run(root, result("sora", 0, 79.0, flags=["off budget"], **sora))
    write_run(root, result("peft", 0, 78.0, label=r"<b>a|b_c* [x] \input{y}</b>"))
    for seed, failure, error in (
        (20, "nan", "NotFinite: the loss is nan"),
        (21, "crash", "RuntimeError: out of memory"),
    ):
        folder = root / "vader_movies" / f"lora-r4-s{seed}-0123456789"
        folder.mkdir()
        (folder / "status.json").write_text(json.dumps(failed(failure, error)))


def tables(root: Path, out: Path) -> list[Path]:
    """Builds the store and writes every table of it; returns their files."""
    cells = build(root)
    files = [path for path in report([root], out, with_figures=False, quiet=True) if path.suffix != ".html"]
    runs = load_runs(root)
    return files + write(
        confirm(runs, Study("golden", cells, FAMILY), runs.attrs["unfinished"]).table, out, "confirmatory"
    )


if __name__ == "__main__":
    import tempfile

    from made_up import believed

    with tempfile.TemporaryDirectory() as folder, believed():
        TABLES.mkdir(parents=True, exist_ok=True)
        for old in TABLES.iterdir():
            old.unlink()
        for path in tables(Path(folder) / "runs", Path(folder) / "out"):
            (TABLES / path.name).write_bytes(path.read_bytes())
