"""Digests of files, so that what is read is what was planned."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from elalora.errors import UserError

_digests: dict[Path, tuple[tuple[int, ...], str]] = {}  # path -> its stamp when it was read, and the digest


def sha256_of(file: Path, fresh: bool = False) -> str:
    """The sha256 of a file's content, read once per process while the file's stamp stays the same.

    Args:
        file: a regular file, or a link to one.
        fresh: read it again whatever its stamp says.

    Raises:
        UserError: it cannot be read.
    """
    try:
        stamp = _stamp(file)
        if fresh or _digests.get(file, ((), ""))[0] != stamp:
            with file.open("rb") as stream:
                _digests[file] = stamp, hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    return _digests[file][1]


@contextmanager
def unchanged(files: Iterable[Path], label: str) -> Iterator[None]:
    """Refuses what was read inside if one of the files was written, replaced or removed in the meantime.

    Raises:
        UserError: naming `label` and the file.
    """
    before = {file: _stamp(file) for file in files}
    yield
    for file, stamp in before.items():
        try:
            same = _stamp(file) == stamp
        except OSError:
            same = False
        if not same:
            raise UserError(f"{label}: {file.name} changed while it was being read; run the same command again")


def _stamp(file: Path) -> tuple[int, ...]:
    """Size, place and times of a file; its time of status change is set by no program, so it betrays every write."""
    stat = file.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
