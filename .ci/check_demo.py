"""Looks at what a demo left in its store: ElaLoRA moved ranks, and every arm beats the constant answer."""

from __future__ import annotations

import json
import sys
from pathlib import Path

LEAST_MOVED = 0.1  # gross share of the rank sum
LEAST_GAIN = 5.0  # points over the commonest class


def main(store: str) -> None:
    """Exits with a line for each thing that does not hold."""
    results = [json.loads(path.read_text()) for path in sorted(Path(store).glob("*/*/result.json"))]
    problems = [] if results else [f"no finished run in {store}"]
    if {r["method"] for r in results} < {"elalora", "lora"}:
        problems.append("the demo has not both ElaLoRA and LoRA")
    for r in results:
        name = f"{r['method']} seed {r['seed']}"
        gain = r["readings"]["last"]["report"]["metrics"][r["metric"]] - r["data"]["majority"][r["metric"]]
        moved = r["moves"]["gross_share"]
        print(f"{name}: {gain:+.1f} points over the constant answer, {100 * moved:.1f} % of the ranks moved")
        if gain < LEAST_GAIN:
            problems.append(f"{name} gains only {gain:.1f} points over the constant answer")
        if r["method"] == "elalora" and moved < LEAST_MOVED:
            problems.append(f"{name} moved only {100 * moved:.1f} % of the ranks")
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main(sys.argv[1])
