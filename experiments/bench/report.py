"""Tables, verdicts and JSON files of the benchmarks."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments.bench.timing import Ratio, verdict

# numerator, denominator and target of every ratio
TARGETS = [
    ("LoRA", "PEFT LoRA", 0.95),
    ("ElaLoRA", "LoRA", 1.03),
    ("AdaLoRA", "LoRA at 1.5 r", 1.05),
    ("AdaLoRA", "PEFT AdaLoRA", 0.85),
    ("LoRA", "floor", 1.15),
    ("SVD-LoRA", "LoRA", None),
    ("SoRA", "LoRA at 2 r", None),
    ("PRILoRA", "LoRA", None),
    ("PEFT AdaLoRA", "PEFT LoRA", None),
    ("pruned AdaLoRA", "AdaLoRA", None),
    ("full fine-tuning", "LoRA", None),
]
MEMORY_TARGET = ("ElaLoRA", "LoRA", 1.02)
FOLDERS = ("data.root=", "store.root=", "model.path=")  # words that name folders of this machine


def table(measured: dict[str, Any]) -> str:
    """The ratios, then the steps, as Markdown."""
    return "\n".join([*ratio_lines(measured), "", *step_lines(measured)])


def ratio_lines(measured: dict[str, Any]) -> list[str]:
    """Ratios of time and of counted operations as Markdown, with a verdict for every target."""
    lines = ["| ratio | median | 95 % interval | of operations | target | |"]
    lines += ["| --- | ---: | --- | ---: | ---: | --- |"]
    for row in measured.get("ratios", [measured]):  # `epoch` writes one ratio
        value = Ratio(row["median"], row["low"], row["high"])
        goal, met = ("", "") if row["target"] is None else (f"≤ {row['target']:.2f}", verdict(value, row["target"]))
        counted = f"{row['flops']:.3f}" if "flops" in row else ""
        interval = f"{value.low:.3f} to {value.high:.3f}"
        if value.low == value.high:  # a single pair
            interval, met = "one pair", "unresolved" if goal else ""
        lines.append(f"| {row['what']} | {value.median:.3f} | {interval} | {counted} | {goal} | {met} |")
    sizes, (a, b, most) = measured.get("bytes", {}), MEMORY_TARGET
    if a in sizes and b in sizes:  # counted exactly, so without an interval
        value = sizes[a]["total"] / sizes[b]["total"]
        met = "met" if value <= most else "missed"
        lines.append(f"| {a} / {b}, peak bytes | {value:.3f} | counted | | ≤ {most:.2f} | {met} |")
    return lines


def step_lines(measured: dict[str, Any]) -> list[str]:
    """Time, operations and bytes of every arm's step as Markdown."""
    lines = ["| arm | step ms (quartiles) | GFLOP | MiB at the peak | of them in the step |"]
    lines += ["| --- | --- | ---: | ---: | ---: |"]
    for name, spread in measured["milliseconds"].items():
        size, flops = measured["bytes"].get(name), measured.get("flops", {}).get(name)
        mebibytes = f"{size['total'] / 2**20:.1f} | {size['step'] / 2**20:.1f}" if size else " | "
        duration = f"{spread['median']:.1f} ({spread['low']:.1f} to {spread['high']:.1f})"
        lines.append(f"| {name} | {duration} | {f'{flops / 1e9:.2f}' if flops else ''} | {mebibytes} |")
    return lines


def without_folders(words: Iterable[str]) -> list[str]:
    """The words of a command that mean the same on another machine."""
    return [word for word in words if not word.startswith(FOLDERS)]


def save(measured: dict[str, Any], out: Path | None) -> None:
    """Writes measurements with host, versions and Python as JSON; None writes nothing."""
    if out is None:
        return
    from experiments.runtime.manifest import manifest

    facts = manifest()
    machine = {"host": facts["host"], "versions": facts["versions"], "python": platform.python_version()}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(measured | {"machine": machine}, indent=1) + "\n", encoding="utf-8")
