"""The folder of one run: its files are the record, everything else mirrors them.

A run is done when result.json exists; that file is written last and moved into place whole. Lines are appended to
metrics, timing and ranks during training, and truncated to their length at the checkpoint when a run resumes, so that
a resumed run leaves the same files as an undisturbed one.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from elalora.errors import UserError
from experiments.runtime.files import sync_folder, write_whole

SCHEMA = 1
LINES = ("metrics.jsonl", "timing.jsonl", "ranks.jsonl")


class Busy(RuntimeError):
    """Another process is working on this run."""


def dump(value: Any, indent: int | None = 1) -> str:
    """JSON with sorted keys; raises ValueError for NaN and infinity."""
    return json.dumps(value, sort_keys=True, indent=indent, allow_nan=False) + ("\n" if indent else "")


def _wrong(result: dict[str, Any]) -> str | None:
    """The first value that is missing or of a wrong type, among those that other runs and commands read."""
    kinds = {
        "id": str, "metric": str, "commit": str | None, "identity.method.name": str, "identity.model.name": str | None,
        "identity.budget": str | None, "readings.last.report.split": str, "readings.last.report.metrics": dict,
        "ranks.final": dict,
    }  # fmt: skip
    values: dict[str, Any] = {}
    for name, kind in kinds.items():
        value: Any = result
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None if value is None else ...
        if not isinstance(value, kind):
            return f"{name} is"
        values[name] = value
    score = values["readings.last.report.metrics"].get(result["metric"])
    if isinstance(score, bool) or not isinstance(score, int | float) or not abs(score) < 1e15:
        return f"the score {result['metric']} is"
    ranks = values["ranks.final"].values()
    return None if all(type(rank) is int for rank in ranks) else "a rank is"


class RunFolder:
    """The files of one run.

    Args:
        path: the folder, created when the run starts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._attempts = 0
        self._progress: tuple[int, int] | None = None

    @property
    def done(self) -> bool:
        """Whether the run has a result."""
        return (self.path / "result.json").is_file()

    def result(self) -> dict[str, Any]:
        """The stored result.

        Raises:
            UserError: the file is damaged, or was written by another version.
        """
        path = self.path / "result.json"
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path} is damaged ({error}); move the folder away and run again") from error
        if not isinstance(result, dict):
            raise UserError(f"{path} is damaged (not a JSON object); move the folder away and run again")
        if result.get("schema") != SCHEMA:
            raise UserError(f"{path} has schema {result.get('schema')}; this version reads schema {SCHEMA}")
        if (wrong := _wrong(result)) is not None:
            raise UserError(
                f"{path} is damaged ({wrong} missing or of a wrong type); move the folder away and run again"
            )
        return result

    @contextmanager
    def working(self) -> Iterator[None]:
        """Locks the run for this process and keeps status.json up to date, also when the block raises.

        Raises:
            Busy: another process holds the lock.
            UserError: the folder cannot be written.
        """
        with self._held() as before:
            self._attempts += 1
            self.beat("running")
            try:
                yield
            except UserError:
                self._as_before(before)
                raise
            except BaseException as error:
                self._failed(error)
                raise
            self.beat("done")

    def refuse(self, line: str, config: str) -> None:
        """Records that the run was refused before its first step, without counting an attempt; a finished run stays.

        Args:
            line: the reason.
            config: the text of config.yaml.

        Raises:
            Busy, UserError: as in `working`.
            OSError: the disk is full.
        """
        with self._held():
            if not self.done:
                write_whole(self.path / "config.yaml", config)
                self.beat("failed", failure="refused", error=line)

    @contextmanager
    def _held(self) -> Iterator[dict[str, Any]]:
        """Creates and locks the folder; yields the previous status."""
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
            self._drop_parts()
            before = self.status()
            attempts = before.get("attempts")
            self._attempts = attempts if isinstance(attempts, int) else 0
            yield before

    def _failed(self, error: BaseException) -> None:
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        kind = "preempted" if isinstance(error, KeyboardInterrupt) else getattr(error, "failure", "crash")
        state = "preempted" if kind == "preempted" else "failed"
        trace = "".join(traceback.format_exception(error))
        more = {} if self._progress is None else dict(zip(("step", "total"), self._progress, strict=True))
        try:
            self.beat(state, **more, failure=kind, error=line, traceback=trace)
        except OSError as full:  # a full disk must not hide what went wrong
            print(f"elalora: {self.path}/status.json cannot be written ({full.strerror})", file=sys.stderr)

    def _as_before(self, status: dict[str, Any]) -> None:
        """Restores the status: a user's mistake does not count as an attempt."""
        if status:
            self.write("status.json", status)
        else:
            (self.path / "status.json").unlink(missing_ok=True)

    def _drop_parts(self) -> None:
        """Removes half-written files of a killed process; the lock is held, so none of them is in use."""
        for path in self.path.glob(".*"):
            if re.fullmatch(r"\..+\.\d+", path.name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def beat(self, state: str, **more: Any) -> None:
        """Writes status.json with the current time as heartbeat."""
        status = {"state": state, "attempts": self._attempts, "heartbeat": time.time(), "pid": os.getpid()}
        write_whole(self.path / "status.json", dump(status | more))

    def progress(self, step: int, total: int) -> None:
        """Writes a heartbeat with the current step."""
        self._progress = (step, total)
        self.beat("running", step=step, total=total)

    def status(self) -> dict[str, Any]:
        """The last written status; empty if missing or unreadable."""
        try:
            status = json.loads((self.path / "status.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return status if isinstance(status, dict) else {}

    def append(self, name: str, line: dict[str, Any]) -> None:
        """Appends one line to a .jsonl file in a single write."""
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, sort_keys=True) + "\n")

    def lines(self, name: str, size: int | None = None) -> list[dict[str, Any]]:
        """The lines of a .jsonl file, or those in its first `size` bytes."""
        path = self.path / name
        content = path.read_bytes()[:size] if path.is_file() else b""
        return [json.loads(line) for line in content.splitlines()]

    def sizes(self) -> dict[str, int]:
        """Bytes of every .jsonl file, after fsync: a checkpoint must not outlive the lines before it."""
        return {name: self._synced(self.path / name) for name in LINES}

    def _synced(self, path: Path) -> int:
        if not path.is_file():
            return 0
        with path.open("rb") as file:
            os.fsync(file.fileno())
        return path.stat().st_size

    def has(self, sizes: dict[str, int]) -> bool:
        """Whether every .jsonl file has at least the given size and a line ends there."""
        return all(_line_ends(self.path / name, size) for name, size in sizes.items())

    def cut_back(self, sizes: dict[str, int]) -> None:
        """Truncates every .jsonl file to the given size; the rest, half-written lines included, is written again."""
        for name in LINES:
            path = self.path / name
            if path.is_file():
                os.truncate(path, sizes.get(name, 0))

    def sync(self) -> None:
        """Calls fsync on every file of the run, before the result is written."""
        for path in (self.path, self.path / "adapter"):
            for file in path.iterdir():
                if file.is_file():
                    self._synced(file)
            sync_folder(path)

    def write(self, name: str, value: Any) -> None:
        """Writes a JSON file whole."""
        write_whole(self.path / name, dump(value))


def _line_ends(path: Path, size: int) -> bool:
    if not path.is_file() or not 0 < size <= path.stat().st_size:
        return size == 0
    with path.open("rb") as file:
        file.seek(size - 1)
        return file.read(1) == b"\n"
