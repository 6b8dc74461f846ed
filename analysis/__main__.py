"""`python -m analysis`: writes every table and figure of the stored runs."""

from __future__ import annotations

import argparse
import gc
import sys

from elalora.errors import UserError
from experiments.runtime.pipes import as_command

PORT = 8765  # of --serve


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(
        prog="python -m analysis",
        description="Reads run stores; writes every table (Markdown, CSV, LaTeX), every figure and index.html.",
        epilog="example: python -m analysis runs ../cluster/runs --task vader_movies --budget r2,r4 --interval; "
        "python -m analysis commons --help: the page over everybody's runs",
    )
    arguments.add_argument("stores", nargs="*", default=["runs"], metavar="STORE", help="run stores (default: runs)")
    arguments.add_argument("--out", default="tables", metavar="FOLDER", help="output folder (default: tables)")
    for name in ("method", "task", "budget", "protocol"):
        arguments.add_argument(f"--{name}", default="", metavar="A,B", help=f"only runs of these {name}s")
    arguments.add_argument("--study", default="", metavar="NAME", help="only this study, with its declared tests")
    arguments.add_argument("--baseline", default="", metavar="METHOD", help="method to compare against (default: lora)")
    arguments.add_argument("--interval", action="store_true", help="show t intervals instead of standard deviations")
    arguments.add_argument("--reading", choices=("last", "best"), default="last", help="checkpoint (default: last)")
    arguments.add_argument("--no-figures", action="store_true", help="skip the figures, which take most of the time")
    arguments.add_argument(
        "--serve", action="store_true", help="show the page on this machine and keep it current; draws no figures"
    )
    arguments.add_argument("--port", type=int, metavar="N", help=f"of --serve (default: {PORT}; 0 takes a free one)")
    return arguments


def main(words: list[str] | None = None) -> int:
    """Returns the exit code: 0 written, 1 written without a section that failed, 2 a mistake in the command."""
    words = sys.argv[1:] if words is None else words
    if words[:1] == ["commons"]:
        from analysis import commons

        return commons.main(words[1:])
    args = parser().parse_intermixed_args(words)
    from analysis.reading.stored import Stored, read_stores
    from analysis.report import write_sections
    from analysis.serve import serve

    filters = {name: _list(getattr(args, name)) for name in ("method", "task", "budget", "protocol")}
    spread = "interval" if args.interval else "sd"

    def read() -> Stored:
        return read_stores(args.stores, filters, args.study, args.reading, args.baseline, spread)

    try:
        if args.serve:
            port = PORT if args.port is None else args.port
            serve(args.stores, port, lambda: write_sections(read(), args.out, False, quiet=True))
            return 0
        if args.port is not None:
            raise UserError("--port does nothing without --serve; type both, or leave it out")
        stored = read()
        write_sections(stored, args.out, not args.no_figures)
    except UserError as error:
        print(f"analysis: {error}", file=sys.stderr)
        return 2
    for line in stored.failed:
        print(f"analysis: {line}", file=sys.stderr)
    return 1 if stored.failed else 0


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


if __name__ == "__main__":
    gc.set_threshold(200_000)  # runs are many small values without cycles, which it would look through again and again
    as_command(main)
