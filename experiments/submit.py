"""`python -m experiments submit`: packs runs into a folder to attach to a pull request, and checks such a folder.

A contribution is a compact store with `contribution.json`, the record of its runs: data, budgets, steps, seeds, commits
and tuning. The record is made from the runs alone, so whoever receives the folder makes it again and compares.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from elalora.errors import UserError, first_line
from experiments.runtime.files import write_whole
from experiments.runtime.text import clean, counted
from experiments.store.compact import SUFFIX, opened
from experiments.store.compaction import compact
from experiments.store.finished import id_of
from experiments.store.folder import dump
from experiments.store.foreign import DAMAGE, read_json
from experiments.verify import verify

RECORD = "contribution.json"
SHARED = ("task", "model", "method", "variant", "budget", "protocol", "recipe", "steps")  # values of all runs of an arm


def submit(stores: Sequence[str], out: Path) -> list[str]:
    """Writes a contribution and checks it.

    Args:
        stores: run stores, compact ones included.
        out: a folder that does not exist yet or is empty.

    Returns:
        A line for each problem. Problems of the stores leave nothing written.

    Raises:
        UserError: no finished run, or `out` has content.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} has content; type --out with a new folder")
    if problems := [line for store in stores for line in verify(Path(store))[1]]:
        return problems
    if left_out := [line for line in compact(stores, out) if ": left out, " in line]:
        return left_out
    write_whole(out / RECORD, dump(record(out)))
    return check(out)


def check(folder: Path) -> list[str]:
    """What is wrong with a contribution, in lines: the check of whoever sends it and of whoever receives it.

    Raises:
        UserError: `folder` is not a folder.
    """
    count, lines = verify(folder)
    extra = [path.name for path in folder.iterdir() if path.name != RECORD and not path.name.endswith(SUFFIX)]
    lines += [f"{folder}: {name} does not belong to a contribution" for name in sorted(extra)]
    if not count:
        return [*lines, f"{folder}: no finished run"]
    try:
        made = record(folder)
        lines += [f"{folder}: {line}" for line in _unofficial(made)]
        if read_json(folder / RECORD) != json.loads(dump(made)):
            lines.append(f"{folder}: {RECORD} is not the record of its runs; submit them again")
    except DAMAGE as error:
        lines.append(f"{folder}: {RECORD} cannot be compared ({first_line(error)}); submit the runs again")
    return lines


def record(folder: Path) -> dict[str, Any]:
    """The record of a store: an entry for every arm, whose runs differ in their seeds only."""
    arms: dict[str, dict[str, Any]] = {}
    for path in sorted(opened(folder).glob("*/*/result.json")):
        result = read_json(path)
        manifest = read_json(path.parent / "manifest.json")
        arm = id_of({key: value for key, value in result["identity"].items() if key != "seed"})
        entry = arms.setdefault(arm, {key: result[key] for key in SHARED} | _of_arm(result))
        entry["seeds"] = sorted({*entry["seeds"], result["seed"]})
        entry["commits"] = sorted({*entry["commits"], str(result["commit"])})
        entry["uncommitted"] += bool(manifest.get("dirty"))
    return {"schema": 1, "arms": dict(sorted(arms.items())), "tuning": _tuning(arms.values())}


def _of_arm(result: dict[str, Any]) -> dict[str, Any]:
    data, trainer = result["data"], result["identity"].get("trainer") or {}
    return {
        "data": data["fingerprint"],
        "official": bool(data.get("verified", True)),
        "learning_rate": trainer.get("lr"),
        "train_items": data["train_items"],
        "seeds": [],
        "commits": [],
        "uncommitted": 0,
    }


def _tuning(arms: Any) -> list[dict[str, Any]]:
    """Rates and runs that `protocol=tune` spent, by task and method."""
    spent: dict[tuple[str, str], dict[str, Any]] = {}
    for arm in arms:
        if arm["protocol"] == "tune":
            key = (arm["task"], arm["method"])
            entry = spent.setdefault(key, {"task": key[0], "method": key[1], "runs": 0, "rates": []})
            entry["runs"] += len(arm["seeds"])
            entry["rates"] = sorted({*entry["rates"], arm["learning_rate"]})
    return [spent[key] for key in sorted(spent)]


def _unofficial(made: dict[str, Any]) -> list[str]:
    names = [f"{a['method']} on {a['task']}" for a in made["arms"].values() if not a["official"]]
    return [f"{name}: the data was not compared with the official data" for name in sorted(set(names))]


def add_to(commands: Any) -> None:
    """Adds `submit` to the command line."""
    parser = commands.add_parser(
        "submit",
        help="pack and check runs for the page that compares everybody's runs",
        description="Packs the finished and failed runs of STORE, without adapters and folders of this machine, and "
        "records data, budgets, tuning and seeds; attach the folder to a pull request. --check checks such folders.",
        epilog="example: python -m experiments submit runs --out my_runs; python -m experiments submit --check my_runs",
    )
    parser.add_argument("stores", nargs="+", metavar="STORE", help="run stores; with --check, contributions")
    parser.add_argument("--out", type=Path, default=Path("submission"), metavar="FOLDER", help="default: submission")
    parser.add_argument("--check", action="store_true", help="check contributions and write nothing")
    parser.set_defaults(command=_run)


def _run(args: argparse.Namespace) -> int:
    lines = [line for s in args.stores for line in check(Path(s))] if args.check else submit(args.stores, args.out)
    print("\n".join(map(clean, lines)), end="\n" if lines else "")
    for folder in [] if lines else map(Path, args.stores) if args.check else [args.out]:
        seeds = [len(arm["seeds"]) for arm in record(folder)["arms"].values()]
        print(f"{folder}: {counted(len(seeds), 'arm')}, {counted(sum(seeds), 'run')}, no problem")
    return bool(lines)
