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
        stamp = stamp_of(file)
        if fresh or not stamp or _digests.get(file, ((), ""))[0] != stamp:
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
    before = {file: stamp_of(file) for file in files}
    yield
    for file, stamp in before.items():
        if stamp_of(file) != stamp:
            raise UserError(f"{label}: {file.name} changed while it was being read; run the same command again")


def stamp_of(path: Path) -> tuple[int, ...]:
    """Size, place and times of a file or folder; empty if there is none.

    No program can set the time of the last status change, so it betrays every write.
    """
    try:
        stat = path.stat()
    except OSError:
        return ()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
