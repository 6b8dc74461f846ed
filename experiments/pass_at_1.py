"""Runs the code that a finished run generated against the tests of its problems, and prints the share that passes.

    python -m experiments pass_at_1 RUN --execute

Code from a model is run, so use a container that holds nothing of value. Every program has a process of its own with
limits of time, memory and file size (`experiments.training.execution`).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from elalora.errors import UserError, first_line
from experiments.config.stored import from_store
from experiments.config.task import CODE_PARSERS, TaskConfig
from experiments.store.foreign import DAMAGE, read_table, read_yaml


def stored_programs(run: Path) -> list[str | None]:
    """The whole program of every reported item, None where no code was found in the text.

    Raises:
        UserError: the folder is not that of a finished run whose task asks for code.
    """
    from pyarrow import ArrowException

    from experiments.training.execution import program_of

    if not (run / "result.json").is_file():
        raise UserError(f"{run} is not the folder of a finished run: it has no result.json")
    task = from_store(TaskConfig, read_yaml(run / "config.yaml")["task"], run / "config.yaml")
    if task.answer != "generate" or task.parser not in CODE_PARSERS:
        raise UserError(f"{run}: task={task.name} generates no code; give a run of task=humaneval or task=mbpp")
    try:
        rows = read_table(run / "predictions.parquet", ["label", "parsed"]).to_pylist()
    except (*DAMAGE, ArrowException) as error:
        raise UserError(f"{run}/predictions.parquet cannot be read ({first_line(error)}); run it again") from error
    return [None if row["parsed"] is None else program_of(row["parsed"], row["label"]) for row in rows]


def add_to(commands: Any) -> None:
    """Adds `pass_at_1` to the command line."""
    parser = commands.add_parser("pass_at_1", help="run the code that a run generated against its tests")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run of task=humaneval or task=mbpp")
    parser.add_argument("--execute", action="store_true", help="allow that the generated code is run")
    parser.set_defaults(command=command)


def command(args: argparse.Namespace) -> int:
    """Prints the score; returns the exit code."""
    from experiments.runtime.display import tracked
    from experiments.training.execution import passes

    programs = stored_programs(args.run)
    if not args.execute:
        raise UserError(
            f"pass_at_1 runs {len(programs)} generated programs on this machine; type --execute to allow it, in a "
            "container that holds nothing of value"
        )
    right = [code is not None and passes(code) for code in tracked(programs, f"running {len(programs)} programs")]
    print(f"pass@1 {100 * sum(right) / len(right):.1f} ({sum(right)} of {len(right)})")
    return 0
