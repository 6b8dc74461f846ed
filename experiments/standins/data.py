"""Made-up data sets in the official layouts, for smoke runs: a few hundred rows each, whose scores mean nothing.

Labels follow from cue words or colours, which LoRA on a tiny random encoder or vision transformer learns in fifty
steps, so that a test can check that the loss falls. All words are common lower-case English, known to any tokenizer.
Runs need `task.verify=false`, which every result records.
"""

from __future__ import annotations

import colorsys
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.commonsense import SETS as COMMONSENSE
from experiments.data.digits import png
from experiments.data.glue import SPLITS as GLUE
from experiments.data.vtab import SPLITS as IMAGE_SPLITS
from experiments.data.vtab import TASKS as VTAB

FILLERS = "the a an it is was so very too this that movie film plot story actor scene in on for with and of to".split()
CUES = (("bad", "poor"), ("good", "great"), ("slow", "late"))  # by class
ANIMALS = "dog cat bird horse fish cow mouse bear".split()
LOOKS = "big small red blue old young fast slow".split()
SITES = "house garden river school market forest city field".split()
TEXT_ROWS = {"train": 240, "validation": 60, "test": 60}
IMAGE_ROWS = {"train": 80, "validation": 20, "test": 40}
IMAGE_SETS = ("svhn", "eurosat", "clevr_count")  # one per group of VTAB-1k
PAIRS = {
    "cola": ("sentence",),
    "sst2": ("sentence",),
    "mnli": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"),
    "qqp": ("question1", "question2"),
}
QUESTIONS = 12  # of each mathematical test set
CHOICES = (("true", "false"), ("solution1", "solution2"), ("answer1", "answer2"), ("ending1", "ending4"))
SIDE = 32  # pixels


def make_data(folder: Path, seed: int = 0) -> Path:
    """Writes data sets in their official layouts into the folder, for `data.root=FOLDER task.verify=false`."""
    for task in GLUE:
        if not task.endswith("_mm"):  # mnli holds the mismatched split too
            _glue(folder / "glue" / task, task, seed)
    for name in ("xsum", "cnn_dailymail", "scitldr_a"):
        _summaries(folder / "summarization" / name, name, seed)
    for name in IMAGE_SETS:
        _images(folder / "vtab-1k" / name, name, seed)
    _mathematics(folder / "math", seed)
    _commonsense(folder / "commonsense", seed)
    return folder


def _rng(seed: int, *names: str) -> np.random.Generator:
    digest = hashlib.sha256("/".join(names).encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])


def _write(file: Path, columns: dict[str, Any]) -> None:
    import pyarrow
    import pyarrow.parquet as parquet

    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), file)


def _balanced(rng: np.random.Generator, classes: int, rows: int) -> list[int]:
    return rng.permutation(np.arange(rows) % classes).tolist()


def _sentence(rng: np.random.Generator, cues: list[str]) -> str:
    """A few fillers and the cues, in random order."""
    words = [*rng.choice(FILLERS, size=rng.integers(2, 5)).tolist(), *cues]
    return " ".join(rng.permutation(words).tolist())


def _glue(folder: Path, task: str, seed: int) -> None:
    names = PAIRS.get(task, ("sentence1", "sentence2"))
    splits = [*GLUE[task], *(["validation_mismatched"] if task == "mnli" else [])]
    for split in splits:
        rng = _rng(seed, "glue", task, split)
        rows = TEXT_ROWS["train" if split == "train" else "validation"]
        labels, cues = (_scores if task == "stsb" else _classes)(rng, 3 if task == "mnli" else 2, rows)
        columns: dict[str, Any] = {name: [_sentence(rng, words) for words in cues] for name in names}
        columns["label"] = np.array(labels, dtype=np.float32 if task == "stsb" else np.int64)
        _write(folder / f"{split}.parquet", columns | {"idx": np.arange(rows, dtype=np.int32)})


def _classes(rng: np.random.Generator, classes: int, rows: int) -> tuple[list[int], list[list[str]]]:
    """Labels, and four cue words of each label."""
    labels = _balanced(rng, classes, rows)
    return labels, [rng.choice(CUES[label], size=4).tolist() for label in labels]


def _scores(rng: np.random.Generator, _: int, rows: int) -> tuple[list[float], list[list[str]]]:
    """Scores from 0 to 5, and four cue words of which a matching share is good."""
    counts = _balanced(rng, 5, rows)
    cues = [[*rng.choice(CUES[1], size=n).tolist(), *rng.choice(CUES[0], size=4 - n).tolist()] for n in counts]
    return [1.25 * n for n in counts], cues


def _summaries(folder: Path, name: str, seed: int) -> None:
    """Documents whose summary takes three words from the first sentence."""
    for split, rows in TEXT_ROWS.items():
        rng = _rng(seed, "summarization", name, split)
        facts = [tuple(str(rng.choice(words)) for words in (LOOKS, ANIMALS, SITES)) for _ in range(rows)]
        documents = [
            f"the {animal} was {look} in the {place} . {_sentence(rng, [])} . {_sentence(rng, [])} ."
            for look, animal, place in facts
        ]
        first = [f"a {look} {animal} in the {place}" for look, animal, place in facts]
        second = [f"in the {place} there is a {look} {animal}" for look, animal, place in facts]
        ids = [f"{name}-{split}-{i}" for i in range(rows)]
        columns: dict[str, Any] = {"document": documents, "summary": first, "id": ids}
        if name == "cnn_dailymail":
            columns = {"article": documents, "highlights": first, "id": ids}
        elif name == "scitldr_a":
            several = [[a] if split == "train" else [a, b] for a, b in zip(first, second, strict=True)]
            columns |= {"title": [f"on the {animal}" for _, animal, _ in facts], "references": several}
        _write(folder / f"{split}.parquet", columns)


def _mathematics(folder: Path, seed: int) -> None:
    """Sums as MetaMathQA, GSM8K and MATH write problems and solutions."""
    rng = _rng(seed, "math")
    sums = [tuple(map(int, pair)) for pair in rng.integers(0, 10, size=(TEXT_ROWS["train"] + 2 * QUESTIONS, 2))]
    train, gsm8k, math = sums[: -2 * QUESTIONS], sums[-2 * QUESTIONS : -QUESTIONS], sums[-QUESTIONS:]
    solved = [{"query": f"{a} + {b}?", "response": f"{a + b}\nThe answer is: {a + b}"} for a, b in train]
    _write_json(folder / "MetaMathQA-395K.json", solved)
    _write_json(folder / "gsm8k_test.jsonl", [{"question": f"{a} + {b}?", "answer": f"#### {a + b}"} for a, b in gsm8k])
    _write_json(
        folder / "math_test.jsonl", [{"problem": f"{a} + {b}?", "solution": f"$\\boxed{{{a + b}}}$"} for a, b in math]
    )


def _commonsense(folder: Path, seed: int) -> None:
    """Rows of LLM-Adapters' layout, each of which names its answer."""

    def rows(place: int, count: int) -> list[dict[str, str]]:
        chosen = _rng(seed, "commonsense", str(place)).choice(CHOICES[place % len(CHOICES)], size=count).tolist()
        return [{"instruction": f"say {word}", "input": "", "output": "", "answer": word} for word in chosen]

    for name in ("commonsense_15k", "commonsense_170k"):
        _write_json(folder / f"{name}.json", [row for place in range(8) for row in rows(place, 30)])
    for place, name in enumerate(COMMONSENSE):
        _write_json(folder / name / "test.json", rows(place, 4))


def _write_json(file: Path, rows: list[dict[str, str]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = file.suffix == ".jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows), encoding="utf-8")


def _images(folder: Path, name: str, seed: int) -> None:
    """Images and list files in the layout of VTAB-1k."""
    draw = _dots if name == "clevr_count" else _coloured
    lists: dict[str, list[str]] = {}
    for split, rows in IMAGE_ROWS.items():
        rng, stem = _rng(seed, "vtab-1k", name, split), IMAGE_SPLITS[split]
        (folder / "images" / stem).mkdir(parents=True, exist_ok=True)
        lists[stem] = []
        for number, label in enumerate(_balanced(rng, VTAB[name].classes, rows)):
            path = f"images/{stem}/{number:06d}.png"
            (folder / path).write_bytes(png(draw(rng, label, VTAB[name].classes)))
            lists[stem].append(f"{path} {label}\n")
    lists["train800val200"] = lists["train800"] + lists["val200"]
    for stem, lines in lists.items():
        (folder / f"{stem}.txt").write_text("".join(lines), encoding="utf-8")


def _coloured(rng: np.random.Generator, label: int, classes: int) -> np.ndarray:
    """The hue of the class with noise, (SIDE, SIDE, 3) uint8."""
    colour = np.array(colorsys.hsv_to_rgb(label / classes, 0.9, 0.8)) * 255
    return np.clip(colour + rng.normal(0, 20, size=(SIDE, SIDE, 3)), 0, 255).astype(np.uint8)


def _dots(rng: np.random.Generator, label: int, _: int) -> np.ndarray:
    """label + 3 bright squares on a dark 4 x 4 grid, (SIDE, SIDE, 3) uint8."""
    image = rng.integers(0, 40, size=(SIDE, SIDE, 3), dtype=np.uint8)
    for position in rng.choice(16, size=label + 3, replace=False):
        row, column = divmod(int(position), 4)
        image[8 * row + 1 : 8 * row + 7, 8 * column + 1 : 8 * column + 7] = 220
    return image
