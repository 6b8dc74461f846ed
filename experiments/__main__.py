"""`python -m experiments`: what to do with a run store beside filling it."""

from __future__ import annotations

import argparse
import sys

from elalora.errors import UserError
from experiments import examples
from experiments.runtime.pipes import as_command
from experiments.store import compact, status


def parser() -> argparse.ArgumentParser:
    """The command line; each command adds its own part."""
    given = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    commands = given.add_subparsers(required=True, metavar="COMMAND")
    status.add_to(commands)
    examples.add_to(commands)
    compact.add_to(commands)
    return given


def main(words: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 a mistake in what was asked for."""
    asked = parser().parse_args(words)
    try:
        return asked.do(asked)
    except UserError as error:
        print(f"elalora: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # how a watch ends
        return 0


if __name__ == "__main__":
    as_command(main)
