"""`python -m analysis --serve`: the page on this machine's loopback address, made again when the stores change.

Only files of the report are served, and only to a browser that names this machine as the host, so that no other site
can read them under a name of its own.
"""

from __future__ import annotations

import base64
import hashlib
import html
import sys
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from analysis.reading.folders import Unfinished, read_status, scan
from elalora.errors import UserError
from experiments.store.compact import opened

HOST = "127.0.0.1"
LOOK_SECONDS = 2.0  # between two looks at the stores; after a report at least three times what it took
STAMP = "/stamp"
TYPES = {".html": "text/html", ".svg": "image/svg+xml", ".png": "image/png"}  # anything else is shown as text
RELOAD = f"""
let known = null;
setInterval(async () => {{
  try {{
    const stamp = await (await fetch("{STAMP}", {{ cache: "no-store" }})).text();
    if (known !== null && stamp !== known) location.reload();
    known = stamp;
  }} catch {{ /* the server is gone; the page stays as it is */ }}
}}, {LOOK_SECONDS * 1000:.0f});
"""
WAITING = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src ">
<title>elalora: results</title><h1>No finished run yet</h1><p>{}</p><p>This page reloads when one has finished.</p>
</body>"""
State = tuple[list[tuple[Path, int, int]], list[Unfinished]]


class Pages:
    """What the server shows: the folder of the report, its files, and a stamp that changes with them."""

    def __init__(self) -> None:
        self.files: dict[str, Path] = {}
        self.waiting = ""
        self.stamp = "0"

    def show(self, files: Sequence[Path]) -> None:
        """Shows the files of a report, the page first."""
        self.files = {f"/{path.name}": path for path in files} | {"/": files[0]}
        self.waiting, self.stamp = "", str(time.time_ns())

    def wait(self, reason: str) -> None:
        """Shows why there is no report yet."""
        self.files, self.waiting, self.stamp = {}, WAITING.format(html.escape(reason)), str(time.time_ns())

    def content(self, address: str) -> tuple[str, bytes] | None:
        """Type and bytes of an address, None for one that is not part of the report."""
        address = address.partition("?")[0]
        if address == STAMP:
            return "text/plain", self.stamp.encode()
        if address == "/" and self.waiting:
            return "text/html", reloading(self.waiting).encode()
        if (path := self.files.get(address)) is None:
            return None
        kind = TYPES.get(path.suffix, "text/plain")
        return kind, reloading(path.read_text("utf-8")).encode() if kind == "text/html" else path.read_bytes()


def reloading(page: str) -> str:
    """The page with a script that reloads it when the stamp changes, and a policy that allows this one script."""
    digest = base64.b64encode(hashlib.sha256(RELOAD.encode()).digest()).decode()
    page = page.replace("script-src ", f"connect-src 'self'; script-src 'sha256-{digest}' ", 1)
    head, end, rest = page.rpartition("</body>")
    return f"{head}<script>{RELOAD}</script>{end}{rest}"


def listen(pages: Pages, port: int) -> ThreadingHTTPServer:
    """A server of the pages on the loopback address; port 0 takes a free one.

    Raises:
        UserError: the port is taken or not allowed.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = self.headers.get("Host", "").rpartition(":")[0]
            found = pages.content(self.path) if host in (HOST, "localhost") else None
            if found is None:
                self.send_error(HTTPStatus.NOT_FOUND if host in (HOST, "localhost") else HTTPStatus.FORBIDDEN)
                return
            kind, body = found
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Prints nothing."""

    try:
        return ThreadingHTTPServer((HOST, port), Handler)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or "allowed: 0 to 65535"
        raise UserError(
            f"--port {port} cannot be used on {HOST} ({reason}); type --port N with another number, 0 for any free one"
        ) from error


def state_of(roots: Sequence[str]) -> State:
    """What a report of these stores depends on: their results, and the states of runs without one."""
    stores = [scan(opened(root)) for root in roots]
    results = [path / "result.json" for store in stores for path in store.finished]
    stats = [path.stat() for path in results]
    finished = [(path, stat.st_mtime_ns, stat.st_size) for path, stat in zip(results, stats, strict=True)]
    return finished, [read_status(path) for store in stores for path in store.unfinished]


def serve(roots: Sequence[str], port: int, make: Callable[[], Sequence[Path]]) -> None:
    """Serves the report until Ctrl-C, and makes it again when the stores have changed.

    Args:
        roots: run stores.
        port: of the server; 0 takes a free one.
        make: writes the report and returns its files, the page first.

    Raises:
        UserError: the port cannot be used, a root is no folder, or there are finished runs that `make` refuses.
    """
    pages, seen = Pages(), state_of(roots)
    with listen(pages, port) as server:
        try:
            _make(pages, make, seen)
            Thread(target=server.serve_forever, daemon=True).start()
            print(f"The page is at http://{HOST}:{server.server_port}/ on this machine; Ctrl-C ends it.", flush=True)
            _watch(roots, pages, make, seen)
        except KeyboardInterrupt:
            print("\nThe server has ended; the page stays in its folder.")


def _watch(roots: Sequence[str], pages: Pages, make: Callable[[], Sequence[Path]], seen: State) -> None:
    """Makes the report again after every change; one that cannot be made leaves the page as it is."""
    pause = LOOK_SECONDS
    while True:
        time.sleep(pause)
        start = time.monotonic()
        try:
            if (now := state_of(roots)) == seen:
                continue
            _make(pages, make, seen := now)
            print(time.strftime("%H:%M:%S  the page is current"), flush=True)
        except (UserError, FileNotFoundError) as error:  # a run's folder may vanish while it is read
            print(f"analysis: {error}", file=sys.stderr, flush=True)
        pause = max(LOOK_SECONDS, 3 * (time.monotonic() - start))


def _make(pages: Pages, make: Callable[[], Sequence[Path]], state: State) -> None:
    """Makes the report; a store without a finished run is waited for."""
    try:
        pages.show(make())
    except UserError as error:
        if state[0]:
            raise
        pages.wait(str(error))
