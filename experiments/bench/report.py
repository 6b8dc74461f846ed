"""Tables and verdicts of the benchmarks."""

from __future__ import annotations

import platform
from typing import Any

from experiments.bench.timing import Ratio, verdict

# what is compared with what, and the target where there is one
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


def table(found: dict[str, Any]) -> str:
    """What was measured as Markdown: the ratios, then the steps."""
    return "\n".join([*ratio_lines(found), "", *step_lines(found)])


def ratio_lines(found: dict[str, Any]) -> list[str]:
    """The ratios of time as Markdown, with that of the counted operations, and a verdict where there is a target."""
    lines = [
        "| ratio | median | 95 % interval | of operations | target | |",
        "| --- | ---: | --- | ---: | ---: | --- |",
    ]
    for row in found.get("ratios", [found]):  # `epoch` writes one ratio
        value = Ratio(row["median"], row["low"], row["high"])
        goal, said = ("", "") if row["target"] is None else (f"≤ {row['target']:.2f}", verdict(value, row["target"]))
        counted = f"{row['flops']:.3f}" if "flops" in row else ""
        interval = f"{value.low:.3f} to {value.high:.3f}"
        lines.append(f"| {row['what']} | {value.median:.3f} | {interval} | {counted} | {goal} | {said} |")
    return lines + _memory_row(found.get("bytes", {}))


def step_lines(found: dict[str, Any]) -> list[str]:
    """Every arm's step as Markdown: time, counted operations and counted bytes."""
    lines = ["| arm | step ms (quartiles) | GFLOP | MiB at the peak | of them in the step |"]
    lines += ["| --- | --- | ---: | ---: | ---: |"]
    for name, spread in found["milliseconds"].items():
        size, flops = found["bytes"].get(name), found.get("flops", {}).get(name)
        kept = f"{size['total'] / 2**20:.1f} | {size['step'] / 2**20:.1f}" if size else " | "
        took = f"{spread['median']:.1f} ({spread['low']:.1f} to {spread['high']:.1f})"
        lines.append(f"| {name} | {took} | {f'{flops / 1e9:.2f}' if flops else ''} | {kept} |")
    return lines


def _memory_row(sizes: dict[str, dict[str, int]]) -> list[str]:
    """The ratio of counted bytes that has a target: exact, so without an interval."""
    a, b, target = MEMORY_TARGET
    if a not in sizes or b not in sizes:
        return []
    value = sizes[a]["total"] / sizes[b]["total"]
    said = "met" if value <= target else "missed"
    return [f"| {a} / {b}, peak bytes | {value:.3f} | counted | | ≤ {target:.2f} | {said} |"]


def machine() -> dict[str, Any]:
    """Host, versions and Python of the measurement."""
    from experiments.runtime.manifest import manifest

    facts = manifest()
    return {"host": facts["host"], "versions": facts["versions"], "python": platform.python_version()}
