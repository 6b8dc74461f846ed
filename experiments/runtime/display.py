"""Shows a run's progress: one live line on a terminal, a few plain lines in a log.

The display never stops a run: when the console breaks (a closed pipe, a full disk), it falls silent.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, Task
    from rich.text import Text

Item = TypeVar("Item")


class RunDisplay:
    """Progress of one run: phase, step, loss, ranks moved, time left.

    On a terminal one line is redrawn; elsewhere each new phase and each evaluation adds a plain line. Both start with a
    line that names the run and end with one that says how it ended. rich leaves colours out if NO_COLOR is set.

    Args:
        title: the run's label.
        total_steps: optimizer steps of the whole run.
        console: where to write; None takes standard error.
        items: of what, such as "1,600 of 8,455 training items"; for the first line.
    """

    def __init__(self, title: str, total_steps: int, console: Console | None = None, items: str = "") -> None:
        self.title, self.total, self.items = title, total_steps, items
        self.console = console or stderr_console()
        self.progress = live_line(self.console, total_steps, self._line) if self.console.is_terminal else None
        self._broken = False
        self._evaluation = ""
        self._step, self._phase, self._loss, self._moved, self._metrics = 0, "", math.nan, 0, ""
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        self.note(f"{self.title}: {self.total} steps" + (f", {self.items}" if self.items else ""))
        if self.progress is not None:
            self._safely(self.progress.start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.progress is not None:
            self._safely(self.progress.stop)
        end = "trained" if kind is None else "stopped"
        self.note(f"  {end} at step {self._step}: {self._facts()}, {clock(time.monotonic() - self._began)}")

    def update(self, step: int, phase: str, loss: float, moved: int, metrics: str | None = None) -> None:
        """Shows the state after a step.

        Args:
            step: optimizer steps done.
            phase: of the method, such as warm-up or dynamic.
            loss: recent training loss; NaN keeps the last one.
            moved: ranks moved so far.
            metrics: the scores of an evaluation, as text.
        """
        has_news = phase != self._phase or metrics is not None
        self._evaluation = ""
        self._step, self._phase, self._moved = step, phase, moved
        if not math.isnan(loss):
            self._loss = loss
        if metrics is not None:
            self._metrics = metrics
        if self.progress is not None:
            self.progress.update(self.progress.task_ids[0], completed=step)
        elif has_news:
            scores = f", {metrics}" if metrics else ""
            self.note(f"  {phase}, step {step}/{self.total}: {self._facts()}{scores}")

    def reading(self, split: str, done: int, total: int) -> None:
        """Shows the progress of an evaluation on the live line: `done` of `total` batches."""
        self._evaluation = f"reading {split} {done}/{total}  "

    def note(self, line: str) -> None:
        """Writes a permanent line, above the live one."""
        self._safely(lambda: self.console.print(line, markup=False, highlight=False, soft_wrap=True))

    def _line(self, task: Task) -> Text:
        """The live line, the least important last: narrow terminals cut it there."""
        from rich.text import Text

        left = "-:--" if task.time_remaining is None else clock(task.time_remaining)
        return Text.assemble(
            (f"{self._phase or 'starting'} ", "bold cyan"),
            f"{self._step}/{self.total}  {self._evaluation}{self._facts()}  ",
            (f"{left} left  ", "green"),
            (self._metrics, "magenta"),
        )

    def _facts(self) -> str:
        loss = "-" if math.isnan(self._loss) else f"{self._loss:.3f}"
        return f"loss {loss}, {self._moved} ranks moved"

    def _safely(self, action: Callable[[], object]) -> None:
        """Uses the console, unless it is broken."""
        if self._broken:
            return
        try:
            action()
        except (OSError, ValueError, SystemExit):  # ValueError: closed; SystemExit: rich's own answer to a closed pipe
            self._broken = True


def live_line(console: Console, total: int, text: Callable[[Task], Text]) -> Progress:
    """A bar with one task, and a text that is made at every refresh.

    Args:
        console: a terminal.
        total: steps or runs until the end; update the task's `completed` to draw the bar.
        text: what to show behind the bar.
    """
    from rich.progress import BarColumn, Progress, ProgressColumn
    from rich.table import Column

    class Line(ProgressColumn):
        def render(self, task: Task) -> Text:
            return text(task)

    line = Line(Column(no_wrap=True, overflow="ellipsis"))
    progress = Progress(
        BarColumn(16), line, console=console, refresh_per_second=4, transient=True,
        get_time=time.monotonic, speed_estimate_period=math.inf,  # the pace of this attempt, evaluations included
    )  # fmt: skip
    progress.add_task("", total=total)
    return progress


def stderr_console() -> Console:
    from rich.console import Console

    class Quiet(Console):
        """A console that falls silent when its pipe is closed, where rich would end the process."""

        def on_broken_pipe(self) -> None:
            self.quiet = True

    return Quiet(stderr=True, highlight=False, force_terminal=as_terminal(sys.stderr), force_jupyter=False)


def as_terminal(stream: TextIO | None) -> bool | None:
    """rich's `force_terminal` for a stream: False if it cannot redraw a line, None to let rich decide.

    rich alone would follow FORCE_COLOR, which notebooks and CI set for log files too, and would accept the
    pseudo-terminal of a notebook's `!` command, which keeps every state of a redrawn line.
    """
    notebook = os.environ.get("TERM") == "xterm-color" and os.environ.get("GIT_PAGER") == "cat"  # ipykernel's own
    try:
        terminal = stream is not None and stream.isatty()
    except ValueError:  # closed
        terminal = False
    return None if terminal and not notebook else False


def silent_console() -> Console:
    from rich.console import Console

    return Console(quiet=True)


def tracked(items: Sequence[Item], what: str) -> Iterable[Item]:
    """The items, with a progress bar while the caller loops over them, on terminals only.

    Args:
        items: what the caller loops over.
        what: text before the bar, such as "tokenising train".
    """
    console = stderr_console()
    if not console.is_terminal:
        return items
    from rich.progress import track

    return track(items, what, console=console, transient=True)


def clock(seconds: float) -> str:
    """Seconds as M:SS or H:MM:SS."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
