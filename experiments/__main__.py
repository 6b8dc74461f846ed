"""Commands beside run.py: check what runs need, list the runs of a store, verify, show, export, pack, migrate."""

from __future__ import annotations

import argparse
import sys

from elalora.errors import UserError
from experiments import check, examples, export, submit, verify
from experiments.runs import migration
from experiments.runtime.pipes import as_command
from experiments.store import compaction, status


def parser() -> argparse.ArgumentParser:
    """The command line; each command adds its own options."""
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (check, status, verify, examples, export, compaction, submit, migration):
        command.add_to(commands)
    return parser


def main(words: list[str] | None = None) -> int:
    """Returns the exit code: 0 for success, 1 if a run has a problem, 2 for a user's mistake."""
    args = parser().parse_args(words)
    try:
        return args.command(args)
    except UserError as error:
        print(f"elalora: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # ends `status --watch`
        return 0


if __name__ == "__main__":
    as_command(main)
