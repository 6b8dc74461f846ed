"""`python -m analysis --serve`: the page on the loopback address, current while runs end, and gone after Ctrl-C."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest
from browser import Browser, installed

from analysis.__main__ import main
from analysis.serve import HOST, Pages, listen, state_of
from elalora.errors import UserError
from experiments.runtime.places import CHECKOUT
from experiments.standins.stored_runs import result, status, write_run


def test_a_taken_port_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "runs", result("lora", 0, 80.0))
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        words = [str(tmp_path / "runs"), "--serve", "--port", str(port), "--out", str(tmp_path / "out")]
        assert main(words) == 2
    line = capsys.readouterr().err.strip()
    assert line.count("\n") == 0 and f"--port {port} cannot be used on {HOST}" in line and "--port N" in line
    with pytest.raises(UserError, match="0 to 65535"):
        listen(Pages(), 70_000)


def test_a_port_without_the_server_and_a_store_that_is_no_folder_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), "--port", "1"]) == 2 and "without --serve" in capsys.readouterr().err
    assert main([str(tmp_path / "none"), "--serve"]) == 2 and "is not a folder" in capsys.readouterr().err


def test_only_files_of_the_report_are_served_and_the_page_may_run_its_reload(tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    page.write_text("<meta content=\"default-src 'none'; script-src 'sha256-x'\"><body></body>")
    (tmp_path / "table.csv").write_text("a,b")
    (tmp_path / "secret").write_text("s")
    pages = Pages()
    pages.show([page, tmp_path / "table.csv"])
    assert pages.content("/table.csv") == ("text/plain", b"a,b")
    for address in ("/secret", "/../secret", "/%2e%2e/secret", str(tmp_path / "secret")):
        assert pages.content(address) is None
    kind, body = pages.content("/") or ("", b"")
    assert kind == "text/html" and b"connect-src 'self'; script-src 'sha256-" in body and b"location.reload" in body
    assert "reload" not in page.read_text()


def test_a_heartbeat_is_no_change_and_a_result_or_another_state_is(tmp_path: Path) -> None:
    folder = write_run(tmp_path, result("lora", 0, 80.0))
    (folder / "result.json").rename(folder / "kept")
    states = []
    for text in ('{"state": "running", "heartbeat": 1}', '{"state": "running", "heartbeat": 2}', '{"state": "failed"}'):
        (folder / "status.json").write_text(text)
        states.append(state_of([str(tmp_path)]))
    (folder / "kept").rename(folder / "result.json")
    states.append(state_of([str(tmp_path)]))
    assert states[0] == states[1] != states[2] != states[3]


def hear_ctrl_c() -> None:
    """A shell has what it runs in the background ignore SIGINT, and the processes of tests inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def served(store: Path, out: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The command in a process of its own, and its port."""
    words = [sys.executable, "-m", "analysis", str(store), "--serve", "--port", "0", "--out", str(out)]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, cwd=CHECKOUT, stdout=pipe, stderr=pipe, text=True, preexec_fn=hear_ctrl_c) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(rf"http://{HOST}:(\d+)/", line)
            assert found, line
            yield process, int(found[1])
        finally:
            process.kill()


def get(port: int, host: str = "") -> tuple[int, str]:
    connection = HTTPConnection(HOST, port, timeout=20)
    connection.request("GET", "/", headers={"Host": host or f"{HOST}:{port}"})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def until(true, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.slow
def test_the_page_waits_for_the_first_run_follows_the_store_and_ends_on_ctrl_c(tmp_path: Path) -> None:
    store = tmp_path / "runs"
    folder = write_run(store, result("lora", 0, 80.0))
    (folder / "result.json").rename(folder / "kept")
    (folder / "status.json").write_text(str(status("running")).replace("'", '"'))
    with served(store, tmp_path / "out") as (process, port):
        assert "No finished run yet" in get(port)[1]
        assert get(port, host="example.org")[0] == 403
        (folder / "kept").rename(folder / "result.json")
        until(lambda: "<h1>elalora: results" in get(port)[1])
        if installed():
            blank = tmp_path / "blank.html"
            blank.write_text("")
            with Browser(blank, tmp_path / "profile") as browser:
                browser.run(f"location.href = 'http://{HOST}:{port}/'")
                rows = "document.querySelectorAll('[id=t0-0] tbody tr').length"
                until(lambda: browser.run(rows) == 2)
                time.sleep(5)  # two looks of the page at the stamp
                write_run(store, result("svd_lora", 0, 81.0))
                until(lambda: browser.run(rows) == 3)
                assert not [line for line in browser.complaints() if "Refused" in line or "exception" in line]
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
        assert process.stderr is not None and process.stderr.read() == ""
