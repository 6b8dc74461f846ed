"""One process at a time works on a run, and a process that lost its folder stops before it writes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from elalora.errors import UserError
from experiments.store import lock
from experiments.store.folder import RunFolder
from experiments.store.lock import Busy, Lost


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system on which flock succeeds and holds nothing."""
    monkeypatch.setattr(lock.fcntl, "flock", lambda *_: None)


@pytest.fixture
def other_process() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.communicate(b"\n")


def owned_by(folder: Path, pid: int, **changes: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / ".lock").write_text(json.dumps(lock._process(pid) | {"token": "x"} | changes))


@pytest.mark.usefixtures("no_locks")
def test_a_living_owner_on_this_machine_is_respected_where_locks_do_nothing(
    tmp_path: Path, other_process: subprocess.Popen[bytes]
) -> None:
    with RunFolder(tmp_path / "a").working(), pytest.raises(Busy), RunFolder(tmp_path / "a").working():
        pass
    owned_by(tmp_path / "b", other_process.pid)
    with pytest.raises(Busy, match=f"process {other_process.pid} of "), RunFolder(tmp_path / "b").working():
        pass


@pytest.mark.parametrize("changes", [{"started": "1"}, {"boot": "another"}, {"host": "another"}])
def test_the_lock_of_a_dead_owner_is_free(
    changes: dict[str, str], tmp_path: Path, other_process: subprocess.Popen[bytes]
) -> None:
    owned_by(tmp_path / "run", other_process.pid, **changes)
    with RunFolder(tmp_path / "run").working():
        pass


@pytest.mark.usefixtures("no_locks")
def test_an_owner_that_was_replaced_writes_nothing_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(Lost, match="taken over by process 1 of elsewhere"), folder.working():
        folder.append("metrics.jsonl", {"step": 0})
        owned_by(tmp_path / "run", 1, host="elsewhere")  # a sweep on another machine
        (tmp_path / "run" / "status.json").write_text('{"state": "theirs"}')
        folder.append("metrics.jsonl", {"step": 1})
    assert folder.lines("metrics.jsonl") == [{"step": 0}]
    assert folder.status() == {"state": "theirs"} and "elsewhere" in (tmp_path / "run" / ".lock").read_text()
    assert "status.json cannot be written" in capsys.readouterr().err


def test_a_folder_deleted_during_its_run_is_no_finished_run(tmp_path: Path) -> None:
    for write in (lambda f: f.append("metrics.jsonl", {}), lambda f: f.sync(), lambda f: f.line_sums()):
        folder = RunFolder(tmp_path / "run")
        with pytest.raises(Lost, match="was deleted or moved while its run was at work"), folder.working():
            shutil.rmtree(tmp_path / "run")
            write(folder)
        assert not (tmp_path / "run").exists()


def test_lines_that_something_else_wrote_or_removed_stop_the_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(Lost, match="metrics.jsonl was changed"), folder.working():
        folder.append("metrics.jsonl", {"step": 0})
        (tmp_path / "run" / "metrics.jsonl").unlink()
        folder.append("metrics.jsonl", {"step": 1})


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_named_and_the_run_goes_on(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with RunFolder(tmp_path / "run").working():
        pass
    assert RunFolder(tmp_path / "run").status()["state"] == "done"
    assert f"({os.strerror(number)}); run one sweep at a time" in capsys.readouterr().err


def test_a_run_that_another_process_has_just_finished_counts_no_attempt(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run").working():
        (tmp_path / "run" / "result.json").write_text("{}")
    with RunFolder(tmp_path / "run").working():
        assert RunFolder(tmp_path / "run").status()["state"] == "done"
    assert RunFolder(tmp_path / "run").status()["attempts"] == 1


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_lock_that_is_no_file_is_refused_and_nothing_is_written_through_it(kind: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "private").write_text("mine")
    if kind == "link":
        (tmp_path / "run" / ".lock").symlink_to(tmp_path / "private")
    else:
        os.mkfifo(tmp_path / "run" / ".lock")
    with pytest.raises(UserError, match="cannot be written"), RunFolder(tmp_path / "run").working():
        pass
    assert (tmp_path / "private").read_text() == "mine"
