"""Reading, checking, tokenising and caching a table of MNLI's size, beside `datasets.map` with the same tokenizer.

    python -m experiments.bench.tables

The items are pairs of made-up sentences in a temporary folder. The whole table is read and tokenised once, and once
more from the cache; then parts of it are tokenised in turns by this project and by the library, each of which writes a
file.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import resource
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.bench.report import ratio_lines, save
from experiments.bench.timing import ratio, seconds_of
from experiments.config.compose import compose_run
from experiments.config.task import DataConfig, TaskConfig
from experiments.runtime.memory import use_cpu

if TYPE_CHECKING:
    from datasets import Dataset

ITEMS = 400_000  # MNLI trains on 392,702
TARGET = 1.0  # of the ratio to datasets.map
MEBIBYTE = 2**20 if sys.platform == "darwin" else 2**10  # in the unit of ru_maxrss


def main() -> None:
    """Measures and prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench.tables", description=__doc__.split("\n")[0])
    parser.add_argument("--items", type=int, default=ITEMS, help="rows of the table (default: %(default)s)")
    parser.add_argument("--blocks", type=int, default=10, help="parts tokenised in turns (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the measurements as JSON")
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # so that both work on one core
    use_cpu(1)
    measured = large_table(options.items, options.blocks)
    save(measured, options.out)
    print("\n".join([*stage_lines(measured), "", *ratio_lines(measured)]))


def large_table(items: int, blocks: int) -> dict[str, Any]:
    """Seconds and memory of each stage, and the ratio to datasets.map.

    Returns:
        items, tokens, seconds of each stage, MiB of the process at its start and its peak after each stage, ratios.
    """
    import datasets

    from experiments.data import load_task
    from experiments.data.text_items import tokenise
    from experiments.models.load import load_processor

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        cache = f"{folder}/cache"
        task = TaskConfig(
            name="pairs", source="files", subset="pairs", text=["premise", "hypothesis"], num_labels=3,
            files={"train": "train.csv", "validation": "test.csv"},
        )  # fmt: skip
        tokenizer = load_processor(compose_run([]).model, task, None)
        words = sorted(word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha())
        write_pairs(Path(folder, "train.csv"), items, words)
        write_pairs(Path(folder, "test.csv"), 100, words)
        found: dict[str, Any] = {}

        def read() -> None:
            found["rows"] = load_task(task, data).splits["train"]

        def encode() -> None:
            found["items"] = tokenise(found["rows"], tokenizer, task, cache)

        data = DataConfig(root=folder)
        few = load_task(replace(task, files=dict.fromkeys(task.files, "test.csv")), data)
        tokenise(few.splits["train"], tokenizer, task, f"{folder}/few")  # so that imports are neither time nor memory
        start, seconds, peaks = _peak(), {}, {}
        stages: dict[str, Callable[[], None]] = {"read and check": read, "tokenise and cache": encode, "cached": encode}
        for name, work in stages.items():
            seconds[name] = seconds_of(work)
            peaks[name] = _peak()
        assert found["items"].cached
        ours, theirs = in_turns(found["rows"], tokenizer, task, Path(folder), blocks)
    return {
        "items": items,
        "tokens": len(found["items"].tokens.flat),
        "seconds": seconds,
        "mebibytes": {"start": start, **peaks},
        "ratios": [{"what": "tokenise and cache / datasets.map", "target": TARGET, **ratio(ours, theirs)._asdict()}],
    }


def in_turns(
    rows: Dataset, tokenizer: Any, task: TaskConfig, folder: Path, blocks: int
) -> tuple[list[float], list[float]]:
    """Seconds for each part of the rows, by this project and by datasets.map; who is first alternates."""
    from experiments.data.text_items import tokenise

    numbers, size = count(), len(rows) // blocks

    def ours(part: Dataset) -> None:
        tokenise(part, tokenizer, task, str(folder / f"ours{next(numbers)}"))

    def theirs(part: Dataset) -> None:
        def encode(batch: dict[str, list[str]]) -> Any:
            return tokenizer(*(batch[name] for name in task.text), truncation=True, max_length=task.max_length)

        file = str(folder / f"theirs{next(numbers)}.arrow")
        part.map(encode, batched=True, remove_columns=list(task.text), cache_file_name=file, load_from_cache_file=False)

    seconds: dict[Any, list[float]] = {ours: [], theirs: []}
    for block in range(blocks):
        part = rows.select(range(block * size, (block + 1) * size))
        for work in (ours, theirs) if block % 2 else (theirs, ours):
            seconds[work].append(seconds_of(partial(work, part)))
    return seconds[ours], seconds[theirs]


def write_pairs(file: Path, items: int, words: list[str]) -> None:
    """A CSV of pairs of sentences about as long as MNLI's, of these words and with three labels."""
    draw = random.Random(0)
    with file.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["premise", "hypothesis", "label"])
        for row in range(items):
            first, second = draw.randint(5, 35), draw.randint(3, 17)
            table.writerow([" ".join(draw.choices(words, k=first)), " ".join(draw.choices(words, k=second)), row % 3])


def _peak() -> float:
    """MiB that the process had in memory at most until now."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MEBIBYTE


def stage_lines(measured: dict[str, Any]) -> list[str]:
    """Seconds, items a second and memory of each stage as Markdown."""
    lines = [f"| {measured['items']:,} pairs | seconds | items a second | MiB at the peak, beyond the start |"]
    lines += ["| --- | ---: | ---: | ---: |"]
    sizes = measured["mebibytes"]
    for name, seconds in measured["seconds"].items():
        rate, beyond = measured["items"] / seconds, sizes[name] - sizes["start"]
        lines.append(f"| {name} | {seconds:.1f} | {rate:,.0f} | {beyond:,.0f} |")
    return lines


if __name__ == "__main__":
    main()
