"""`python -m experiments status [STORE]`: what a store's runs are doing."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from elalora.errors import UserError


def main(words: list[str] | None = None) -> int:
    """Exit codes: 0 fine, 2 a mistake in what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    status = commands.add_parser("status", help="every run of a store by state, and the commands that go on")
    status.add_argument("store", nargs="?", default="runs", type=Path)
    status.add_argument("--json", action="store_true", help="one JSON list")
    status.add_argument("--watch", nargs="?", type=float, const=10.0, metavar="SECONDS", help="again and again")
    status.set_defaults(run=_status)
    args = parser.parse_args(words)
    try:
        args.run(args)
    except UserError as error:
        print(f"elalora: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # how --watch is ended
        pass
    return 0


def _status(args: argparse.Namespace) -> None:
    from experiments.status import as_json, states, text

    while True:
        found = states(args.store)
        print(as_json(found) if args.json else text(args.store, found), flush=True)
        if args.watch is None:
            return
        time.sleep(args.watch)
        print()


if __name__ == "__main__":
    sys.exit(main())
