"""One folder per run: the files are the truth, everything else mirrors them.

A run is done when its result.json is there; that file is written last and moved into place whole. Lines are
appended to metrics, timing and ranks as they come, and cut back to the step of the checkpoint when a run
resumes, so that a resumed run leaves the same files as an undisturbed one.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from elalora.errors import UserError

SCHEMA = 1
LINES = ("metrics.jsonl", "timing.jsonl", "ranks.jsonl")


class Busy(RuntimeError):
    """Another process works on this run."""


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that a reader sees the old content or the new, never a part."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def dump(value: Any, indent: int | None = 1) -> str:
    """JSON with sorted keys; refuses NaN and infinity, which are no numbers in a result."""
    return json.dumps(value, sort_keys=True, indent=indent, allow_nan=False) + ("\n" if indent else "")


class RunFolder:
    """The files of one run.

    Args:
        path: created when the run starts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def done(self) -> bool:
        """Whether a result is there."""
        return (self.path / "result.json").is_file()

    def result(self) -> dict[str, Any]:
        """The stored result.

        Raises:
            UserError: it was written by a newer version, or is damaged.
        """
        path = self.path / "result.json"
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}); move the folder away and run again") from error
        if not isinstance(result, dict):
            raise UserError(f"{path} is damaged (no JSON object); move the folder away and run again")
        if result.get("schema") != SCHEMA:
            raise UserError(f"{path} has schema {result.get('schema')}, this version reads {SCHEMA}")
        return result

    @contextmanager
    def working(self) -> Iterator[None]:
        """Holds the run for this process and keeps status.json true, whatever happens inside.

        Raises:
            Busy: another process holds it.
            UserError: the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("w")
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({error.strerror}); type store.root=FOLDER") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Busy(f"{self.path} is being worked on by another process") from None
            self._attempts = self.status().get("attempts", 0) + 1
            self.beat("running")
            try:
                yield
            except BaseException as error:
                self._failed(error)
                raise
            self.beat("done")

    def _failed(self, error: BaseException) -> None:
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        preempted = isinstance(error, KeyboardInterrupt)
        kind = "preempted" if preempted else getattr(error, "failure", "crash")
        trace = "".join(traceback.format_exception(error))
        try:
            self.beat("preempted" if preempted else "failed", failure=kind, error=line, traceback=trace)
        except OSError as full:  # a full disk must not hide what went wrong
            print(f"elalora: {self.path}/status.json cannot be written ({full.strerror})", file=sys.stderr)

    def beat(self, state: str, **more: Any) -> None:
        """Writes status.json with the time of this heartbeat."""
        status = {"state": state, "attempts": self._attempts, "heartbeat": time.time(), "pid": os.getpid()}
        write_whole(self.path / "status.json", dump(status | more))

    def status(self) -> dict[str, Any]:
        """The last written status, empty when there is none or it is unreadable."""
        try:
            return json.loads((self.path / "status.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def append(self, name: str, line: dict[str, Any]) -> None:
        """Appends one line to a .jsonl file in a single write."""
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, sort_keys=True) + "\n")

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The whole lines of a .jsonl file."""
        path = self.path / name
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        return [json.loads(line) for line in text.splitlines()]

    def cut_back(self, step: int) -> None:
        """Drops every line of a step at or after `step`, and a last line that was only half written."""
        for name in LINES:
            path = self.path / name
            if path.is_file():
                kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _before(line, step)]
                write_whole(path, "".join(line + "\n" for line in kept))

    def write(self, name: str, value: Any) -> None:
        """Writes a JSON file whole."""
        write_whole(self.path / name, dump(value))


def _before(line: str, step: int) -> bool:
    try:
        return json.loads(line)["step"] < step
    except (ValueError, KeyError, TypeError):
        return False


def find(roots: list[str], run_id: str) -> RunFolder | None:
    """The folder of a run's id in the first store that has a result for it."""
    for root in roots:
        for path in Path(root).glob(f"*/*-{run_id[:10]}"):
            folder = RunFolder(path)
            if folder.done and folder.result()["id"] == run_id:
                return folder
    return None
