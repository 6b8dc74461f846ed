"""What the harness costs around the training steps: starting, loading, batching, evaluating, storing.

    python -m experiments.bench --shape harness [--task vader_movies] [--data-root FOLDER]

Everything goes through the command a user types, in processes of its own, with caches that are warm.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]


def harness(task: str, data_root: str | None, repeats: int = 5) -> dict[str, Any]:
    """Seconds of starting, and the share of an epoch that is no training step.

    Args:
        task: on which an epoch is trained, with MiniLM-L6 and LoRA.
        data_root: data.root of the run.
        repeats: of the starts; medians are given.
    """
    with tempfile.TemporaryDirectory() as folder:
        where = [f"store.root={folder}/runs", f"task={task}", f"data.root={data_root or 'null'}"]
        _timed("run.py", "trainer.max_steps=1", "seed=99", *where)  # warms every cache
        helps = [_timed("run.py", "--help") for _ in range(repeats)]
        starts = [_first_step(folder, n, where) for n in range(repeats)]
        epoch = _epoch(folder, where)
    return {
        "help_seconds": statistics.median(helps),
        "first_step_seconds": statistics.median(starts),
        "epoch": epoch,
    }


def _run(*words: str) -> float:
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    began = time.time()
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr[-2000:]}")
    return began


def _timed(*words: str) -> float:
    began = _run(*words)
    return time.time() - began


def _first_step(folder: str, seed: int, where: list[str]) -> float:
    """From the command to the line of the first training step."""
    began = _run("run.py", "method=lora", "trainer.max_steps=1", "trainer.log_every=1", f"seed={100 + seed}", *where)
    [file] = Path(folder).glob(f"runs/*/lora-*-s{100 + seed}-*/timing.jsonl")
    return file.stat().st_mtime - began


def _epoch(folder: str, where: list[str]) -> dict[str, float]:
    """One epoch with two evaluations and checkpoints, end to end, over the bare training steps in it."""
    words = ["method=lora", "trainer.epochs=1", "trainer.max_steps=null", "trainer.evaluations=2", "seed=200"]
    whole = _timed("run.py", *words, "store.checkpoint_every=50", *where)
    [file] = Path(folder).glob("runs/*/lora-*-s200-*/result.json")
    cost = json.loads(file.read_text(encoding="utf-8"))["cost"]
    return {
        "seconds": whole,
        "step_seconds": cost["train_seconds"],
        "evaluation_seconds": cost["eval_seconds"],
        "end to end / steps": whole / cost["train_seconds"],
        "without evaluation / steps": (whole - cost["eval_seconds"]) / cost["train_seconds"],
    }


def padding(lengths: np.ndarray, batch_size: int, padded_to: int) -> dict[str, float]:
    """Tokens that an epoch sends through the model, by our batching and padded as the official scripts do.

    Args:
        lengths: tokens of every item, (n,).
        batch_size: items per batch.
        padded_to: the scripts' max_length.
    """
    from experiments.data.batches import train_batches

    lengths = np.minimum(lengths, padded_to)
    ours = sum(-(-int(lengths[b].max()) // 8) * 8 * len(b) for b in train_batches(lengths, batch_size, 0, 0))
    theirs = padded_to * len(lengths)
    return {"ours": float(ours), "padded": float(theirs), "ours / padded": ours / theirs}
