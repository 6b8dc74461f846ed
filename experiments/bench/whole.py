"""A whole run against a plain script with the stock Trainer and PEFT's LoRA, from the command to the score.

    python -m experiments.bench.whole task=rte
    python -m experiments.bench.whole task=rte_prompt model=smollm2_135m data.train_items=128 --order length --blocks 1

WORDS are those of run.py; the method is LoRA, for one epoch: a part of one would compare other items, because the
Trainer's batches by length begin with the longest. Both start as processes of their own, in turn, read the same items,
train the same matrices for as many steps, in batches by length and at random, and score the same items once. Neither
finds tokenised data of an earlier run. Seconds are those of the processor, which with one thread others disturb little.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from elalora.errors import UserError
from elalora.schedules import steps_of
from experiments.bench.report import ratio_lines, save, without_folders
from experiments.bench.timing import ratio
from experiments.bench.waiting import seconds_of
from experiments.config.compose import compose_run
from experiments.config.explain import in_one_line
from experiments.config.schema import BatchOrder
from experiments.config.templates import filled
from experiments.models.load import resolve_model
from experiments.runs.plan import Plan, make_plan
from experiments.runs.prepare import prepare, rows_of

COMMON = ["method=lora", "trainer=standard", "trainer.epochs=1", "trainer.batch_size=16", "protocol=paper_last"]
ARMS, ORDERS = ("run", "script"), ("length", "random")
TARGETS = {"length": 0.80, "random": None}


def main() -> None:
    """Measures and prints the ratios."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench.whole", description=__doc__.split("\n")[0])
    parser.add_argument("words", nargs="*", help="as for run.py (default: task=rte)")
    parser.add_argument("--blocks", type=int, default=3, help="pairs of each order (default: %(default)s)")
    parser.add_argument("--order", choices=ORDERS, help="of the items (default: both, one after the other)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the measurements as JSON")
    options = parser.parse_intermixed_args()
    words = [*COMMON, f"threads={options.threads}", *(options.words or ["task=rte"])]
    with in_one_line(words):
        measured = measure(words, options.blocks, [options.order] if options.order else ORDERS)
    save(measured | {"words": without_folders(words)}, options.out)
    print("\n".join(ratio_lines(measured)))


def measure(words: Sequence[str], blocks: int, orders: Sequence[str] = ORDERS) -> dict[str, Any]:
    """The ratios by order of the items, and seconds and accuracy of both in every block.

    Raises:
        UserError: the task is neither a classification nor prompts with options, or the words name a number of steps.
    """
    measured: dict[str, Any] = {"ratios": [], "seconds": {}, "accuracy": {}}
    with tempfile.TemporaryDirectory() as folder:
        for order in orders:
            pairs = [_pair([*words, f"trainer.batches={order}"], Path(folder), n) for n in range(blocks)]
            seconds, accuracy = ({one: [pair[kind][one] for pair in pairs] for one in ARMS} for kind in (0, 1))
            what = f"run / Trainer with PEFT, batches {'by length' if order == 'length' else 'at random'}"
            compared = ratio(seconds["run"], seconds["script"])
            measured["ratios"].append({"what": what, "target": TARGETS[order], **compared._asdict()})
            measured["seconds"][order], measured["accuracy"][order] = seconds, accuracy
    return measured


def _pair(words: Sequence[str], folder: Path, block: int) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of processor and accuracy of one run and one script; the one that goes first alternates."""
    words = [*words, f"data.cache={folder}/cache", f"store.root={folder}/runs{block}"]
    plan = make_plan(compose_run(words))
    out = folder / f"script{block}"
    out.mkdir(exist_ok=True)
    (out / "spec.json").write_text(json.dumps(specification(plan, out)), encoding="utf-8")
    commands = {"run": ["run.py", *words], "script": ["-m", "experiments.bench.plain_script", str(out / "spec.json")]}
    seconds = {}
    for name in ARMS if block % 2 == 0 else ARMS[::-1]:
        shutil.rmtree(folder / "cache" / "tokenised", ignore_errors=True)
        seconds[name] = seconds_of(commands[name])
    result = plan.folder.result()
    found = {"run": result["readings"]["last"]["report"]["metrics"]["accuracy"]}
    found["script"] = 100 * json.loads((out / "score.json").read_text(encoding="utf-8"))["accuracy"]
    shutil.rmtree(out)
    shutil.rmtree(plan.stores[0])
    return seconds, found


def specification(plan: Plan, out: Path) -> dict[str, Any]:
    """What the script needs to do as a run does, as JSON; the items are written to files in `out`.

    Raises:
        UserError: see `measure`.
    """
    trainer, model = plan.config.trainer, plan.config.model
    _check(plan.config.task, trainer.max_steps)
    prepared, rows = prepare(plan), rows_of(plan)
    files = {name: str(out / f"{name}.jsonl") for name in ("train", "report")}
    for name, file in files.items():
        lines = map(json.dumps, _rows(plan.config.task, getattr(rows, name)))
        Path(file).write_text("\n".join(lines) + "\n", encoding="utf-8")
    steps = prepared.method.total_steps
    return {
        "model": str(resolve_model(model.path, model.sha256, model.revision)), "files": files, "cache": str(out / "hf"),
        "out": str(out), "causal": plan.config.task.kind == "causal", "labels": plan.config.task.num_labels,
        "text": list(plan.config.task.text), "options": list(plan.config.task.options or []),
        "max_length": plan.config.task.max_length, "steps": steps, "batch_size": trainer.batch_size, "lr": trainer.lr,
        "warmup": steps_of(trainer.warmup, steps, "trainer.warmup"), "by_length": trainer.batches == BatchOrder.length,
        "rank": plan.config.budget.rank, "alpha": plan.method_config.alpha, "matrices": list(prepared.method.ranks()),
        "head": prepared.method.whole, "threads": plan.config.threads, "seed": plan.seed,
    }  # fmt: skip


def _check(task: Any, max_steps: int | None) -> None:
    if max_steps is not None:
        raise UserError(f"trainer.max_steps={max_steps}: one epoch is compared; data.train_items=N makes it shorter")
    prompts = task.kind == "causal" and task.answer == "options" and task.options and not task.chat
    if task.kind != "classification" and not prompts:
        raise UserError(f"task={task.name} is neither a classification nor prompts with options; type task=rte")


def _rows(task: Any, rows: Any) -> Iterator[dict[str, Any]]:
    """The items of a split with their texts as the script reads them."""
    if task.kind == "classification":
        yield from ({name: row[name] for name in (*task.text, "label")} for row in rows)
        return
    for row in rows:
        completion = filled(task.completion, {**row, "label": task.options[row["label"]]})
        yield {"prompt": filled(task.prompt, row), "completion": completion, "label": row["label"]}


if __name__ == "__main__":
    main()
