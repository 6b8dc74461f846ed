"""The folder of one run: its files are the record, everything else mirrors them.

A run is done when result.json exists; that file is written last and moved into place whole. Lines are appended to
metrics, timing and ranks during training, and truncated to their length at the checkpoint when a run resumes, so that
a resumed run leaves the same files as an undisturbed one.
"""

from __future__ import annotations

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

from elalora.errors import UserError, first_line
from experiments.runtime.files import FileSum, RunningSum, running_sum, sync_folder, write_whole
from experiments.store.finished import LINES, check_result, covered
from experiments.store.foreign import DAMAGE, read_json, read_tail, read_text
from experiments.store.lock import Lock, Lost

SCHEMA = 2
SCHEMA_LINE = re.compile(r'^ "schema": (\d{1,9}),?$', re.M)  # as `dump` writes it
OLDEST = 1  # of the schemas that `python -m experiments migrate` reads
ALWAYS = ("config.yaml", "manifest.json", "predictions.parquet")  # files of every finished run


def dump(value: Any, indent: int | None = 1) -> str:
    """JSON with sorted keys; raises ValueError for NaN and infinity."""
    return json.dumps(value, sort_keys=True, indent=indent, allow_nan=False) + ("\n" if indent else "")


def other_schema(schema: Any, store: Path) -> str:
    """What to say of a result of another schema than this version's, and what to type."""
    line = f"has schema {schema}, this version reads schema {SCHEMA}; "
    older = older_schema(json.dumps({"schema": schema})) is not None
    return line + (f"type python -m experiments migrate {store}" if older else "read it with the version that wrote it")


def older_schema(text: str) -> int | None:
    """The schema in the text of a result.json, or in its end, if `python -m experiments migrate` brings it up."""
    match = SCHEMA_LINE.search(text)
    try:
        schema = int(match[1]) if match else json.loads(text)["schema"]
    except DAMAGE:
        return None
    return schema if type(schema) is int and OLDEST <= schema < SCHEMA else None


class RunFolder:
    """The files of one run.

    Args:
        path: the folder, created when the run starts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = Lock(path)
        self._sums: dict[str, RunningSum] = {}  # of the .jsonl files while this process appends to them
        self._attempts = 0
        self._progress: tuple[int, int] | None = None

    @property
    def done(self) -> bool:
        """Whether the run has a result."""
        return (self.path / "result.json").is_file()

    @property
    def older(self) -> int | None:
        """The schema of its result, if that is an older one; it stands near the end of the file."""
        path = self.path / "result.json"
        try:
            end = read_tail(path, 2000).decode(errors="ignore")
            return older_schema(end if SCHEMA_LINE.search(end) else read_text(path))
        except (OSError, ValueError):
            return None

    def result(self) -> dict[str, Any]:
        """The stored result.

        Raises:
            UserError: the file is damaged, was written by another version, or does not fit the files beside it.
        """
        path = self.path / "result.json"
        try:
            result = read_json(path)
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path} is damaged ({error}); move the folder away and run again") from error
        if not isinstance(result, dict):
            raise UserError(f"{path} is damaged (not a JSON object); move the folder away and run again")
        if result.get("schema") != SCHEMA:
            raise UserError(f"{path} {other_schema(result.get('schema'), self.path.parent.parent)}")
        try:
            check_result(self.path, result)
        except DAMAGE as error:
            raise UserError(
                f"{path} is damaged or changed ({first_line(error)}); move the folder away and run again"
            ) from error
        return result

    @contextmanager
    def working(self) -> Iterator[None]:
        """Locks the run for this process and keeps status.json up to date, also when the block raises.

        Raises:
            Busy: another process holds the lock.
            UserError: the folder cannot be written.
        """
        with self._held() as before:
            if not self.done:  # else another process has just finished it
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
        with self._lock.held():
            self._drop_parts()
            before = self.status()
            attempts = before.get("attempts")
            self._attempts = attempts if isinstance(attempts, int) else 0
            self._sums.clear()
            try:
                yield before
            finally:
                self._sums.clear()

    def _failed(self, error: BaseException) -> None:
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        kind = "preempted" if isinstance(error, KeyboardInterrupt) else getattr(error, "failure", "crash")
        state = "preempted" if kind == "preempted" else "failed"
        trace = "".join(traceback.format_exception(error))
        more = {} if self._progress is None else dict(zip(("step", "total"), self._progress, strict=True))
        try:
            self.beat(state, **more, failure=kind, error=line, traceback=trace)
        except (OSError, Lost) as other:  # must not hide what went wrong
            print(f"elalora: {self.path}/status.json cannot be written ({other})", file=sys.stderr)

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
        self._lock.check()
        status = {"state": state, "attempts": self._attempts, "heartbeat": time.time(), "pid": os.getpid()}
        write_whole(self.path / "status.json", dump(status | more))

    def progress(self, step: int, total: int) -> None:
        """Writes a heartbeat with the current step."""
        self._progress = (step, total)
        self.beat("running", step=step, total=total)

    def status(self) -> dict[str, Any]:
        """The last written status; empty if missing or unreadable."""
        try:
            status = read_json(self.path / "status.json")
        except (OSError, ValueError, RecursionError):
            return {}
        return status if isinstance(status, dict) else {}

    def append(self, name: str, line: dict[str, Any]) -> None:
        """Appends one line to a .jsonl file in a single write.

        Raises:
            Lost: something else changed the file or took the folder.
        """
        self._lock.check()
        total, content = self._sum(name), (json.dumps(line, sort_keys=True) + "\n").encode()
        with (self.path / name).open("ab") as file:
            if file.tell() != total.value().size:
                raise Lost(f"{self.path / name} was changed while its run was at work; run again")
            file.write(content)
        total.add(content)

    def _sum(self, name: str) -> RunningSum:
        if name not in self._sums:
            self._sums[name] = running_sum(self.path / name)
        return self._sums[name]

    def lines(self, name: str, size: int | None = None) -> list[dict[str, Any]]:
        """The lines of a .jsonl file, or those in its first `size` bytes."""
        path = self.path / name
        content = path.read_bytes()[:size] if path.is_file() else b""
        return [json.loads(line) for line in content.splitlines()]

    def line_sums(self) -> dict[str, FileSum]:
        """Sums of the .jsonl files as written, after fsync: a checkpoint must not outlive the lines before it."""
        self._lock.check()
        for name in LINES:
            self._sync(self.path / name)
        return {name: self._sum(name).value() for name in LINES}

    def begins_with(self, sums: dict[str, FileSum]) -> bool:
        """Whether the .jsonl files begin with the lines that have these sums."""
        return all(running_sum(self.path / name, lines.size).value() == lines for name, lines in sums.items())

    def cut_back(self, sums: dict[str, FileSum]) -> None:
        """Truncates the .jsonl files to these sums; the rest, half-written lines included, is written again."""
        for name in LINES:
            path = self.path / name
            if path.is_file():
                os.truncate(path, sums[name].size if name in sums else 0)
        self._sums.clear()

    def sync(self) -> dict[str, FileSum]:
        """Calls fsync on every file of a run that is about to be done, and returns their sums for result.json.

        Raises:
            Lost: a file is missing, or has other lines than the run wrote.
        """
        self._lock.check()
        for folder in (self.path, self.path / "adapter"):
            for file in folder.iterdir():
                self._sync(file)
            sync_folder(folder)
        sums = {name: running_sum(self.path / name).value() for name in covered(self.path)}
        if missing := [name for name in ALWAYS if name not in sums]:
            raise Lost(f"{self.path / missing[0]} was deleted while its run was at work; run again")
        for name in LINES:
            if name in sums and sums[name] != self._sum(name).value():
                raise Lost(f"{self.path / name} was changed while its run was at work; run again")
        return sums

    def _sync(self, path: Path) -> None:
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())

    def write(self, name: str, value: Any) -> None:
        """Writes a JSON file whole."""
        write_whole(self.path / name, dump(value))
