"""Lets one process at a time work on a run's folder, also on file systems whose locks do not hold.

The file .lock is locked with flock and contains its owner. Where flock fails or does nothing, an owner that is alive
on this machine is refused, and an owner that was replaced or whose folder is gone notices before its next write.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from elalora.errors import UserError

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)


class Busy(RuntimeError):
    """Another process is working on this run."""


class Lost(RuntimeError):
    """The run's folder was deleted, moved, changed or taken over while this process was working on it."""


class Lock:
    """The lock of one folder.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / ".lock"
        self._owner: str | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Creates the folder and holds its lock.

        Raises:
            Busy: another process holds it.
            UserError: the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = open(self.path, "a+", encoding="utf-8", opener=_regular)
        except OSError as error:
            raise UserError(f"{self.folder} cannot be written ({error.strerror}); type store.root=FOLDER") from error
        with file:
            if not _locked(file):
                raise Busy(f"{self.folder} is being worked on by another process")
            if (other := self._read()) and _alive(other):
                raise Busy(f"{self.folder} is being worked on by process {other['pid']} of {other['host']}")
            self._owner = json.dumps(_process(os.getpid()) | {"token": secrets.token_hex(8)})
            self.path.write_text(self._owner, encoding="utf-8")
            try:
                yield
            finally:
                with suppress(Lost, OSError):
                    self.check()
                    self.path.write_text("", encoding="utf-8")
                self._owner = None

    def check(self) -> None:
        """Raises Lost unless this process still owns the folder; does nothing while no lock is held."""
        if self._owner is None:
            return
        try:
            owner = self.path.read_text(encoding="utf-8")
        except OSError as error:
            raise Lost(f"{self.folder} was deleted or moved while its run was at work; run again") from error
        if owner != self._owner:
            other = self._read()
            by = f"process {other.get('pid')} of {other.get('host')}" if other else "another process"
            raise Lost(
                f"{self.folder} was taken over by {by}: file locks do not hold in this store, so run one sweep at a "
                "time there, or type store.root=FOLDER on another file system"
            )

    def _read(self) -> dict[str, Any]:
        """The owner in the file, empty without one."""
        try:
            owner = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return owner if isinstance(owner, dict) else {}


def _regular(path: str, flags: int) -> int:
    """Opens a file, but no link and no pipe, which `.lock` may be in a stranger's store."""
    handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return handle
    os.close(handle)
    raise OSError(errno.EINVAL, ".lock is not a file")


def _locked(file: TextIO) -> bool:
    """Whether no other process has the lock; True, too, where the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        print(f"elalora: no file locks in {Path(file.name).parent} ({error.strerror}); run one sweep at a time there",
              file=sys.stderr)  # fmt: skip
    return True


def _alive(owner: dict[str, Any]) -> bool:
    """Whether the owner runs on this machine; of another machine only flock knows."""
    pid = owner.get("pid")
    return isinstance(pid, int) and owner.get("started") is not None and _process(pid).items() <= owner.items()


def _process(pid: int) -> dict[str, Any]:
    """A process of this machine; `started` tells it from a later one with the same number, None if there is none."""
    boot = started = None
    with suppress(OSError, IndexError):  # no such process, or a system without /proc
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        started = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    return {"host": socket.gethostname(), "boot": boot, "pid": pid, "started": started}
