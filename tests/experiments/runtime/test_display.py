"""The progress display: what a terminal shows, what a log keeps, and that a broken console costs nothing."""

from __future__ import annotations

import io
import math
import subprocess
import sys

import pytest
from rich.console import Console

from experiments.runtime import display
from experiments.runtime.display import RunDisplay
from experiments.runtime.places import CHECKOUT

ROOT = CHECKOUT


def log() -> Console:
    return Console(file=io.StringIO(), width=100)


def terminal(**settings: object) -> Console:
    console = {"file": io.StringIO(), "width": 100, "force_terminal": True, "color_system": "standard"}
    return Console(**(console | settings))  # type: ignore[arg-type]


def written(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined]


def train(shown: RunDisplay, steps: int) -> None:
    for step in range(1, steps + 1):
        shown.update(step, "warm-up" if step <= 10 else "dynamic", 1 / step, step // 10)


def test_a_log_gets_one_line_for_each_phase_and_evaluation_and_none_for_each_step():
    console = log()
    with RunDisplay("movies/elalora-r4-s0", 40, console) as shown:
        train(shown, 40)
        shown.update(40, "dynamic", math.nan, 4, "validation accuracy 81.5")
    lines = written(console).splitlines()
    assert lines[:4] == [
        "movies/elalora-r4-s0: 40 steps",
        "  warm-up, step 1/40: loss 1.000, 0 ranks moved",
        "  dynamic, step 11/40: loss 0.091, 1 ranks moved",
        "  dynamic, step 40/40: loss 0.025, 4 ranks moved, validation accuracy 81.5",
    ]
    assert lines[4].startswith("  trained at step 40: loss 0.025, 4 ranks moved, 0:0")
    assert len(lines) == 5 and "\x1b" not in written(console)


def test_a_terminal_shows_phase_step_loss_moves_and_time_left(monkeypatch: pytest.MonkeyPatch):
    seconds = 0.0
    monkeypatch.setattr(display.time, "monotonic", lambda: seconds)
    shown = RunDisplay("run", 100, terminal())
    seconds = 30
    shown.update(10, "warm-up", 0.7, 0)
    seconds = 60
    shown.update(20, "dynamic", 0.61, 12)
    with shown.console.capture() as caught:
        shown.console.print(shown.progress)  # 3 s a step, 80 steps left
    text = caught.get()
    for part in ("dynamic", "20/100", "loss 0.610", "12 ranks moved", "4:00 left"):
        assert part in text


def test_an_evaluation_shows_how_far_it_is_and_writes_no_line_of_its_own():
    shown = RunDisplay("run", 100, terminal())
    shown.update(20, "dynamic", 0.61, 12)
    shown.reading("validation", 3, 40)
    with shown.console.capture() as caught:
        shown.console.print(shown.progress)
    assert "reading validation 3/40" in caught.get()
    shown.update(21, "dynamic", 0.6, 12)
    with shown.console.capture() as caught:
        shown.console.print(shown.progress)
    assert "reading" not in caught.get()
    file = log()
    with RunDisplay("run", 100, file) as quiet:
        quiet.reading("validation", 3, 40)
    assert "reading" not in written(file)


def test_the_live_line_is_gone_at_the_end_and_the_notes_stay():
    console = terminal()
    with RunDisplay("run", 10, console) as shown:
        shown.update(5, "dynamic", 0.5, 1)
        shown.note("a note [not markup]")
    text = written(console)
    assert "a note [not markup]" in text and "trained at step 5" in text
    assert "\x1b[2K" in text.split("trained")[0]  # the live line was erased before the last one


def test_a_narrow_terminal_gets_one_line():
    shown = RunDisplay("run", 100, terminal(width=60))
    shown.update(50, "stabilisation", 0.5, 100, "validation accuracy 81.5, validation f1 80.2")
    with shown.console.capture() as caught:
        shown.console.print(shown.progress)
    assert caught.get().count("\n") == 1 and "50/100" in caught.get()


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NO_COLOR", "1")
    shown = RunDisplay("run", 10, terminal())
    shown.update(5, "dynamic", 0.5, 1)
    with shown.console.capture() as caught:
        shown.console.print(shown.progress)
    assert "\x1b[3" not in caught.get() and "\x1b[1;3" not in caught.get()


def test_a_failure_inside_is_told_and_passed_on():
    console = log()
    with pytest.raises(RuntimeError, match="boom"), RunDisplay("run", 10, console):
        raise RuntimeError("boom")
    assert "stopped at step 0: loss -" in written(console)


class Broken(io.StringIO):
    """A stream of which the other side is gone."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(28, "No space left on device"), ValueError("closed")])
@pytest.mark.parametrize("live", [False, True])
def test_a_broken_console_does_not_stop_the_run(error: Exception, live: bool):
    console = Console(file=Broken(error), force_terminal=live)
    console.on_broken_pipe = lambda: None  # type: ignore[method-assign]  # rich's own would close this test's stdout
    done = 0
    with RunDisplay("run", 30, console) as shown:
        for step in range(1, 31):
            shown.update(step, "dynamic", 0.5, 1, "accuracy 80")
            done += 1
        shown.note("a note")
    assert done == 30


def test_a_closed_pipe_on_the_real_error_stream_does_not_stop_the_run():
    program = (
        "import os, time\n"
        "from experiments.runtime.display import RunDisplay\n"
        "with RunDisplay('run', 3) as shown:\n"
        "    time.sleep(0.2)\n"
        "    [shown.update(step, f'phase {step}', 0.5, 0) for step in range(1, 4)]\n"
        "print('finished')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None and process.stdout is not None
    process.stderr.close()
    assert process.stdout.read() == "finished\n"
    process.stdout.close()
    assert process.wait() == 0


def test_only_a_terminal_that_redraws_is_taken_for_one(monkeypatch: pytest.MonkeyPatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert display.as_terminal(Terminal()) is None
    assert display.as_terminal(io.StringIO()) is False and display.as_terminal(None) is False
    assert not Console(file=io.StringIO(), force_terminal=display.as_terminal(io.StringIO())).is_terminal
    monkeypatch.setenv("TERM", "xterm-color")  # what ipykernel gives its children
    monkeypatch.setenv("GIT_PAGER", "cat")
    assert display.as_terminal(Terminal()) is False
