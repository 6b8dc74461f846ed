"""Commands beside run.py: check what runs need, list the runs of a store, verify, show, export, pack, migrate."""

from __future__ import annotations

import argparse
import sys
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


def parsed(words: list[str]) -> argparse.Namespace:
    """The arguments of a command; its stores may follow its options. Imports what the command needs and no other."""
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    known = [name for name in words[:1] if name in COMMANDS]
    for name in known or COMMANDS:
        import_module(COMMANDS[name]).add_to(commands)
    return commands.choices[known[0]].parse_intermixed_args(words[1:]) if known else parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Returns the exit code: 0 for success, 1 if a run has a problem, 2 for a user's mistake."""
    words = sys.argv[1:] if words is None else words
    args = parsed(words)
    try:
        return args.command(args)
    except UserError as error:
        print(f"elalora: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # ends `status --watch`
        return 0


if __name__ == "__main__":
    as_command(main)
