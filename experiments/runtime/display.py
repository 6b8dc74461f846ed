"""Shows a run's progress: one live line on a terminal, a few plain lines in a log.

What is unusual: showing never costs the run. When the console breaks (a closed pipe, a full disk), the display falls
silent and the training goes on.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO, TypeVar

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

Item = TypeVar("Item")


class RunDisplay:
    """Progress of one run: phase, step, loss, ranks moved, time left.

    On a terminal one line is redrawn; anywhere else there is a plain line for each new phase and each evaluation.
    Both begin with a line that names the run and end with one that says how it went. rich leaves colours out when
    NO_COLOR is set.

    Args:
        title: the run's label.
        total_steps: optimizer steps of the whole run.
        console: where to write; None takes the standard error stream.
    """

    def __init__(self, title: str, total_steps: int, console: Console | None = None) -> None:
        self.title, self.total = title, total_steps
        self.console = console or stderr_console()
        self._live: Any = None
        self._broken = False
        self._reading = ""
        self._step, self._phase, self._loss, self._moved, self._metrics = 0, "", math.nan, 0, ""
        self._began = time.monotonic()
        self._first: tuple[int, float] | None = None  # step and time of this attempt's first update

    def __enter__(self) -> Self:
        self.note(f"{self.title}: {self.total} steps")
        if self.console.is_terminal:
            from rich.live import Live

            self._live = Live(get_renderable=self._line, console=self.console, refresh_per_second=4, transient=True)
            self._safely(self._live.start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._safely(self._live.stop)
        end = "trained" if kind is None else "stopped"
        self.note(f"  {end} at step {self._step}: {self._facts()}, {clock(time.monotonic() - self._began)}")

    def update(self, step: int, phase: str, loss: float, moved: int, metrics: str | None = None) -> None:
        """Shows where the run is.

        Args:
            step: optimizer steps done.
            phase: of the method, such as warm-up or dynamic.
            loss: recent training loss; NaN keeps the last one.
            moved: ranks moved so far.
            metrics: an evaluation, in words.
        """
        if self._first is None:
            self._first = (step, time.monotonic())
        news = phase != self._phase or metrics is not None
        self._reading = ""
        self._step, self._phase, self._moved = step, phase, moved
        if not math.isnan(loss):
            self._loss = loss
        if metrics is not None:
            self._metrics = metrics
        if self._live is None and news:
            shown = f", {metrics}" if metrics else ""
            self.note(f"  {phase}, step {step}/{self.total}: {self._facts()}{shown}")

    def reading(self, split: str, done: int, total: int) -> None:
        """Shows on the live line how far an evaluation is; `total` batches, of which `done` are read."""
        self._reading = f"reading {split} {done}/{total}  "

    def note(self, line: str) -> None:
        """Writes one line that stays, above the live one."""
        self._safely(lambda: self.console.print(line, markup=False, highlight=False, soft_wrap=True))

    def _line(self) -> RenderableType:
        """The live line: a bar and the figures, the least important last because narrow terminals cut there."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        text = Text(no_wrap=True, overflow="ellipsis")
        text.append(f"{self._phase or 'starting'} ", style="bold cyan")
        text.append(f"{self._step}/{self.total}  {self._reading}{self._facts()}  ")
        text.append(f"{self._left()} left  ", style="green")
        text.append(self._metrics, style="magenta")
        grid = Table.grid(padding=(0, 1))
        grid.add_row(ProgressBar(total=self.total, completed=self._step, width=16), text)
        return grid

    def _facts(self) -> str:
        loss = "-" if math.isnan(self._loss) else f"{self._loss:.3f}"
        return f"loss {loss}, {self._moved} ranks moved"

    def _left(self) -> str:
        """Time to the last step at the pace since this attempt's first update."""
        if self._first is None or self._step <= self._first[0]:
            return "-:--"
        pace = (time.monotonic() - self._first[1]) / (self._step - self._first[0])
        return clock(pace * (self.total - self._step))

    def _safely(self, action: Callable[[], object]) -> None:
        """Does one thing with the console, unless it is broken."""
        if self._broken:
            return
        try:
            action()
        except (OSError, ValueError, SystemExit):  # ValueError: closed; SystemExit: rich's own answer to a closed pipe
            self._broken = True


def stderr_console() -> Console:
    from rich.console import Console

    class Quiet(Console):
        """A console that falls silent when its pipe is closed, where rich would end the process."""

        def on_broken_pipe(self) -> None:
            self.quiet = True

    return Quiet(stderr=True, highlight=False, force_terminal=as_terminal(sys.stderr), force_jupyter=False)


def as_terminal(stream: TextIO | None) -> bool | None:
    """rich's `force_terminal` for a stream: False where a line cannot be redrawn, None (rich looks) elsewhere.

    rich alone would take for a terminal whatever FORCE_COLOR says, which notebooks and CI set for log files too, and
    the pseudo-terminal that a notebook gives a `!` command, which keeps every state of a redrawn line.
    """
    notebook = os.environ.get("TERM") == "xterm-color" and os.environ.get("GIT_PAGER") == "cat"  # ipykernel's own
    try:
        there = stream is not None and stream.isatty()
    except ValueError:  # closed
        there = False
    return None if there and not notebook else False


def silent_console() -> Console:
    from rich.console import Console

    return Console(quiet=True)


def tracked(items: Sequence[Item], what: str) -> Iterable[Item]:
    """The items, with a progress bar while they are worked through, where a terminal shows one.

    Args:
        items: what the caller loops over.
        what: words before the bar, such as "tokenising train".
    """
    console = stderr_console()
    if not console.is_terminal:
        return items
    from rich.progress import track

    return track(items, what, console=console, transient=True)


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
