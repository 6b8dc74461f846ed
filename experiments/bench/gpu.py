"""What can be measured on a machine with a GPU in some minutes: one command, a JSON file for each measurement.

    python -m experiments.bench.gpu OUT            # everything, in its order, for at most --minutes
    python -m experiments.bench.gpu OUT --tiny     # the same commands at small sizes, on any machine, to try them

Steps come first (the papers' shapes and batches; bf16 autocast and float32; LoRA, ElaLoRA, AdaLoRA and PEFT's in each),
then runs an hour of 1, 2, 4 and 8 workers, then compiled steps of three arms, each of which compiles for a minute. A
measurement is a process of its own: one that fails or takes too long costs no other. What is there already is not
measured again, so the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from experiments.runtime.pipes import as_command
from experiments.runtime.places import CHECKOUT

ARMS = "LoRA,ElaLoRA,AdaLoRA,LoRA at 1.5 r,PEFT LoRA,PEFT AdaLoRA,frozen backbone"
COMPILED_ARMS = "LoRA,ElaLoRA,PEFT LoRA"
SHAPES = [  # shape, items, tokens or pixels a side; the longest last
    ("deberta-v3-base", 32, 128),
    ("vit-b16", 64, 224),
    ("bart-base", 32, 128),
    ("smollm2-135m", 8, 512),
    ("deberta-v3-base", 32, 256),
    ("llama-1b", 8, 512),
]
WORKERS = (1, 2, 4, 8)
RUNS = 16  # of every sweep
SWEEP = ["method=lora", "task=vader_movies", f"seed=range({RUNS})"]
SMALL = "data.train_items=32 data.eval_items=32 trainer.max_steps=4 trainer.batch_size=4 task.max_length=16".split()
MOST = 150  # seconds for one measurement; twice as many where it compiles


def main() -> int:
    """Returns 1 if a measurement failed, else 0, also where time ran out."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the JSON files")
    parser.add_argument("--minutes", type=float, default=12, help="start nothing after them (default: %(default)s)")
    parser.add_argument("--blocks", type=int, default=20, help="timed blocks of every arm (default: %(default)s)")
    parser.add_argument("--only", default="", metavar="TEXT", help="measurements whose name has this")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the command; times mean nothing")
    parser.add_argument("words", nargs="*", help="as for run.py, for the sweeps: model=local model.path=FOLDER")
    options = parser.parse_intermixed_args()
    options.out.mkdir(parents=True, exist_ok=True)
    until, failed, left = time.monotonic() + 60 * options.minutes, [], []
    for name, command in measurements(options):
        file = options.out / f"{name}.json"
        if options.only not in name or file.is_file():
            continue
        seconds = min(MOST * (1 + ("--compile" in command)), until - time.monotonic())
        if seconds <= 0:
            left.append(name)
        elif why := failure([*command, "--out", str(file)], seconds):
            failed.append(name)
            print(f"{name}: {why}", flush=True)
        else:
            print(f"{name}: done", flush=True)
    for what, names in (("failed", failed), ("time ran out before", left)):
        if names:
            print(f"{what}: {', '.join(names)}. The same command goes on with them.")
    return 1 if failed else 0


def measurements(options: argparse.Namespace) -> Iterator[tuple[str, list[str]]]:
    """Every measurement's name, and its command without --out."""
    yield from steps(options, "bf16", ARMS, "--bf16")
    yield from steps(options, "fp32", ARMS)
    for workers in WORKERS:
        words = [*SWEEP, *(SMALL if options.tiny else []), *options.words, f"launcher.workers={workers}"]
        yield f"workers-{workers}", ["-m", "experiments.bench.sweep", *words]
    yield from steps(options, "bf16-compiled", COMPILED_ARMS, "--bf16", "--compile")


def steps(options: argparse.Namespace, name: str, arms: str, *flags: str) -> Iterator[tuple[str, list[str]]]:
    """A step of these arms at every shape."""
    for shape, batch, length in SHAPES:
        size = ["--batch", str(batch), "--length", str(length)]
        if options.tiny:  # an image model has as many positions as its images
            size = ["--tiny", "--batch", "2", "--length", str(length if shape == "vit-b16" else 32)]
        step = ["-m", "experiments.bench", "--shape", shape, *size, "--blocks", str(options.blocks)]
        yield f"{shape}-{batch}x{length}-{name}", [*step, "--arms", arms, *flags]


def failure(command: list[str], seconds: float) -> str:
    """Runs a command; why it gave no result, or ""."""
    words = [sys.executable, "-W", "ignore", *command]
    with subprocess.Popen(words, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            end(process)
            return f"stopped after {seconds:.0f} s"
    last = (err.strip() or out.strip()).splitlines()[-1:]
    return "" if process.returncode == 0 else f"exit code {process.returncode}, {' '.join(last)}"


def end(process: subprocess.Popen[str], patience: float = 60.0) -> None:
    """Ends a command: by a signal on which a sweep ends its workers, and by force where that does not help."""
    process.terminate()
    try:
        process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":
    as_command(lambda: sys.exit(main()))
