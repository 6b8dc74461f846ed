"""A hub on this machine: a small server that speaks to the real client libraries in the hub's own protocol.

It covers what huggingface_hub, transformers and datasets ask for when they load: the info of a repository, its files as
a tree, and `resolve` with ETags, commits, byte ranges, relative redirects for small files and redirects of large files
to another host, the CDN. A test chooses what goes wrong: gated repositories, slow answers, errors and cut transfers.
The client reads HF_ENDPOINT when it is imported: commands run in a process of their own, with `Hub.environment`, and a
quick test moves this process to the hub with `Hub.use`.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".bin", ".safetensors", ".parquet", ".model", ".h5")  # in git LFS on the hub, and so on the CDN
TOKEN, STRANGER = "hf_a_secret_that_no_file_may_hold", "hf_of_an_account_without_access"


@dataclass(frozen=True)
class Repo:
    """A repository.

    Attributes:
        id: owner/name; kind: "models" or "datasets".
        commits: commit -> file -> content.
        refs: branch -> commit.
        gated: whether its files need `TOKEN`.
    """

    id: str
    commits: Mapping[str, Mapping[str, bytes]]
    kind: str = "models"
    refs: Mapping[str, str] = field(default_factory=dict)
    gated: bool = False

    def commit(self, revision: str) -> str | None:
        """The commit that a branch or a commit's name stands for."""
        revision = self.refs.get(revision, revision)
        return revision if revision in self.commits else None


class Hub:
    """The server's state.

    Attributes:
        url: its address, for HF_ENDPOINT; cdn: that of the CDN.
        repos: (kind, id) -> repository.
        requests: (method, path, token sent or None, first byte asked for) of every request to the hub or the CDN.
        delay: seconds before each answer of the CDN.
        cut: file name -> bytes after which each of its next transfers breaks off, one entry a transfer.
        status: an answer to all requests to the hub, such as 503; None answers them properly.
    """

    def __init__(self) -> None:
        self.url = self.cdn = ""
        self.repos: dict[tuple[str, str], Repo] = {}
        self.requests: list[tuple[str, str, str | None, int]] = []
        self.delay = 0.0
        self.cut: dict[str, list[int]] = {}
        self.status: int | None = None

    def add(self, *repos: Repo) -> None:
        """Serves repositories."""
        self.repos |= {(repo.kind, repo.id): repo for repo in repos}

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """Variables of a process that knows this hub and no other, with its caches in an own folder."""
        return {
            "HF_ENDPOINT": self.url, "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": "",
            "ELALORA_CACHE": str(home / "elalora"), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1",
            **more,
        }  # fmt: skip

    def use(self, patch: Any, home: Path) -> None:
        """Makes this process a client of this hub alone, with empty caches, until pytest's `patch` is undone."""
        from huggingface_hub import constants

        for name, value in self.environment(home).items():
            patch.setenv(name, value)
        patch.setattr(constants, "ENDPOINT", self.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", self.url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_URL_HOSTS", constants.HF_URL_HOSTS | {"127.0.0.1"})
        patch.setattr(constants, "HF_HUB_CACHE", str(home / "hf" / "hub"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(home / "hf" / "token"))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)

    def asked(self, part: str) -> int:
        """How many requests had this in their path."""
        return sum(part in path for _, path, _, _ in self.requests)


@contextmanager
def serving(*repos: Repo) -> Iterator[Hub]:
    """A hub with these repositories, until the end of the block."""
    hub = Hub()
    hub.add(*repos)
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), type("Of", (cls,), {"hub": hub})) for cls in (_HubPort, _CdnPort)]
    hub.url, hub.cdn = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    threads = [threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()


class Refused(Exception):
    """An error answer.

    Args:
        status: of HTTP.
        code: the hub's name for it.
        message: the sentence that goes with it.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class _Port(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Silent: `Hub.requests` has them."""

    def do_GET(self) -> None:
        self._serve(body=True)

    def do_HEAD(self) -> None:
        self._serve(body=False)

    def do_POST(self) -> None:
        self._serve(body=True)

    def _serve(self, body: bool) -> None:
        url = urlsplit(self.path)
        self.posted = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        sent = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        self.first, self.last = self._range()
        self.hub.requests.append((self.command, unquote(url.path), sent, self.first))
        try:
            self.reply(unquote(url.path), url.query, sent, body)
        except Refused as refused:
            headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
            self.send(refused.status, json.dumps({"error": refused.message}).encode(), headers, body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    @abstractmethod
    def reply(self, path: str, query: str, token: str | None, body: bool) -> None:
        """Answers one request."""

    def _range(self) -> tuple[int, int | None]:
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        return (int(found[1]), int(found[2]) + 1 if found[2] else None) if found else (0, None)

    def send(self, status: int, content: bytes, headers: Mapping[str, str], body: bool, cut: int | None = None) -> None:
        """One answer; `cut` bytes of it, then the connection ends."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content[:cut])
        if cut is not None:
            self.close_connection = True

    def send_file(self, name: str, content: bytes, headers: Mapping[str, str], body: bool) -> None:
        """A file, or the part of it that was asked for."""
        part, status = content[self.first : self.last], 200
        if "Range" in self.headers:
            status = 206
            headers = {
                **headers,
                "Content-Range": f"bytes {self.first}-{self.first + len(part) - 1}/{len(content)}",
            }
        cuts = self.hub.cut.get(name, []) if body else []
        self.send(status, part, {"Accept-Ranges": "bytes", **headers}, body, cuts.pop(0) if cuts else None)


class _CdnPort(_Port):
    """Files by their sha256, for everyone: what allows a download is the address."""

    def reply(self, path: str, query: str, token: str | None, body: bool) -> None:
        time.sleep(self.hub.delay)
        found = {
            name: content
            for repo in self.hub.repos.values()
            for files in repo.commits.values()
            for name, content in files.items()
            if path == f"/{_sha256(content)}"
        }
        for name in sorted(found, key=lambda name: name not in self.hub.cut):  # equal files have one address
            return self.send_file(name, found[name], {"ETag": f'"{path[1:33]}"'}, body)
        raise Refused(403, "", "Access denied")


class _HubPort(_Port):
    def reply(self, path: str, query: str, token: str | None, body: bool) -> None:
        if self.hub.status is not None:
            raise Refused(self.hub.status, "", "Internal Error")
        if token not in (None, TOKEN, STRANGER):
            raise Refused(401, "", "Invalid credentials in Authorization header")
        if found := re.fullmatch(r"/api/resolve-cache/(models|datasets)/([^/]+/[^/]+)/([^/]+)/(.+)", path):
            return self._small(*found.groups(), body=body)
        if found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            return self._json(self._info(*self._at(*found.groups())), body)
        if found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/(tree|paths-info)/([^?]+)", path):
            kind, name, what, rest = found.groups()
            repo, commit, below = self._split(kind, name, rest)
            listed = self._tree(repo, commit, below, query) if what == "tree" else self._paths(repo, commit)
            return self._json(listed, body)
        if found := re.fullmatch(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/(.+)", path):
            repo, commit, file = self._split(found[1] or "models", found[2], found[3])
            return self._resolve(repo, commit, file, token, body)
        raise Refused(404, "", "Not Found")

    def _json(self, value: Any, body: bool) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"}, body)

    def _at(self, kind: str, name: str, revision: str | None) -> tuple[Repo, str]:
        repo = self.hub.repos.get((kind, name))
        if repo is None:
            raise Refused(401, "RepoNotFound", "Invalid username or password.")  # as the hub says without a login
        commit = repo.commit(revision or "main")
        if commit is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repo, commit

    def _split(self, kind: str, name: str, rest: str) -> tuple[Repo, str, str]:
        """A revision, which may have slashes of its own, and the path after it."""
        repo = self.hub.repos.get((kind, name))
        known = [ref for ref in repo.refs if f"{rest}/".startswith(f"{ref}/")] if repo else []
        revision = known[0] if known else rest.partition("/")[0]
        return (*self._at(kind, name, revision), rest[len(revision) :].strip("/"))

    def _info(self, repo: Repo, commit: str) -> dict[str, Any]:
        files = repo.commits[commit]
        return {
            "_id": "0" * 24, "id": repo.id, "sha": commit, "private": False, "disabled": False, "tags": [],
            "gated": "auto" if repo.gated else False, "downloads": 0, "likes": 0,
            "lastModified": "2024-01-01T00:00:00.000Z", "createdAt": "2022-03-02T23:29:04.000Z",
            "siblings": [{"rfilename": name} for name in files],
        }  # fmt: skip

    def _entry(self, name: str, content: bytes) -> dict[str, Any]:
        entry = {"type": "file", "oid": _git(content), "size": len(content), "path": name}
        if name.endswith(LARGE):
            entry["lfs"] = {"oid": _sha256(content), "size": len(content), "pointerSize": 134}
        return entry

    def _tree(self, repo: Repo, commit: str, below: str, query: str) -> list[dict[str, Any]]:
        recursive = parse_qs(query).get("recursive", ["false"])[0].lower() in ("true", "1")
        start = f"{below}/" if below else ""
        found: dict[str, dict[str, Any]] = {}
        for name, content in repo.commits[commit].items():
            if not name.startswith(start):
                continue
            folders = name[len(start) :].split("/")[:-1]
            for depth in range(1, len(folders) + 1 if recursive else min(len(folders), 1) + 1):
                path = start + "/".join(folders[:depth])
                found[path] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": path}
            if recursive or not folders:
                found[name] = self._entry(name, content)
        if below and not found:
            raise Refused(404, "EntryNotFound", f"{below} does not exist on {commit!r}")
        return list(found.values())

    def _paths(self, repo: Repo, commit: str) -> list[dict[str, Any]]:
        if self.headers.get("Content-Type", "").startswith("application/json"):
            asked = json.loads(self.posted)["paths"]
        else:
            asked = parse_qs(self.posted.decode()).get("paths", [])
        entries = {entry["path"]: entry for entry in self._tree(repo, commit, "", "recursive=true")}
        return [entries[path] for path in asked if path in entries]

    def _resolve(self, repo: Repo, commit: str, file: str, token: str | None, body: bool) -> None:
        if repo.gated and token != TOKEN:
            raise Refused(403 if token else 401, "GatedRepo", f"Access to {repo.id} is restricted.")
        content = repo.commits[commit].get(file)
        if content is None:
            self.send(404, b"Entry not found", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, body)
        elif file.endswith(LARGE):
            headers = {
                "X-Repo-Commit": commit, "X-Linked-Etag": f'"{_sha256(content)}"', "X-Linked-Size": str(len(content)),
                "Location": f"{self.hub.cdn}/{_sha256(content)}",
            }  # fmt: skip
            self.send(302, b"", headers, body)
        else:
            place = f"/api/resolve-cache/{repo.kind}/{repo.id}/{commit}/{file}"
            headers = {"X-Repo-Commit": commit, "X-Linked-Etag": f'"{_git(content)}"', "Location": place}
            self.send(307, b"", headers, body)

    def _small(self, kind: str, name: str, commit: str, file: str, body: bool) -> None:
        content = self.hub.repos[kind, name].commits[commit][file]
        self.send_file(file, content, {"X-Repo-Commit": commit, "ETag": f'"{_git(content)}"'}, body)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git(content: bytes) -> str:
    """The name that git gives a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
