"""Commands beside run.py: check what runs need, list the runs of a store, verify, show, export, pack, migrate."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from importlib import import_module

from elalora.errors import UserError
from experiments.runtime.pipes import as_command

COMMANDS = {
    "check": "experiments.check",
    "status": "experiments.store.status",
    "verify": "experiments.verify",
    "examples": "experiments.examples",
    "export": "experiments.export",
    "pass_at_1": "experiments.pass_at_1",
    "compact": "experiments.store.compaction",
    "submit": "experiments.submit",
    "migrate": "experiments.runs.migration",
}  # by name, the module that adds its options; some import torch, which takes seconds


def parser(names: Iterable[str] = COMMANDS) -> argparse.ArgumentParser:
    """The command line with these commands; each adds its own options."""
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in names:
        import_module(COMMANDS[name]).add_to(commands)
    return parser


def main(words: list[str] | None = None) -> int:
    """Returns the exit code: 0 for success, 1 if a run has a problem, 2 for a user's mistake."""
    words = sys.argv[1:] if words is None else words
    args = parser(words[:1] if words[:1] and words[0] in COMMANDS else COMMANDS).parse_args(words)
    try:
        return args.command(args)
    except UserError as error:
        print(f"elalora: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # ends `status --watch`
        return 0


if __name__ == "__main__":
    as_command(main)
