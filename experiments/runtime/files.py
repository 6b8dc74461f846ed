"""Atomic writes, so that a file is complete or absent, and checksums of files."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CHUNK = 1 << 20


@dataclass(frozen=True)
class FileSum:
    """Size in bytes and SHA-256 of a file, or of its beginning."""

    size: int
    sha256: str


class RunningSum:
    """The sum of a file that grows at its end."""

    def __init__(self) -> None:
        self._size, self._hash = 0, hashlib.sha256()

    def add(self, content: bytes) -> None:
        """Appends content."""
        self._size += len(content)
        self._hash.update(content)

    def value(self) -> FileSum:
        """The sum of everything that was added."""
        return FileSum(self._size, self._hash.hexdigest())


def sum_of(content: bytes) -> FileSum:
    """The sum of content in memory."""
    return FileSum(len(content), hashlib.sha256(content).hexdigest())


def running_sum(path: Path, size: int | None = None) -> RunningSum:
    """The sum of a file, or of its first `size` bytes; a missing file counts as empty."""
    total, left = RunningSum(), size
    if path.is_file():
        with path.open("rb") as file:
            while left != 0 and (content := file.read(CHUNK if left is None else min(CHUNK, left))):
                total.add(content)
                left = None if left is None else left - len(content)
    return total


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; what is written there replaces `path` at the end, in one rename.

    Readers see the old content or the new one, never a part. If writing fails, the temporary file is removed: on a full
    disk the next attempt needs its space.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill; at the end it becomes `folder` in one move, unless another process was first."""
    part = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        try:
            part.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_whole(path: Path, text: str) -> None:
    """Writes a text file completely or not at all."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def sync_folder(path: Path) -> None:
    """Makes the names in a folder durable, as fsync does for a file's content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
