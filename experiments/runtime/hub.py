"""Repositories of the Hugging Face hub, as folders of the hub's cache on this machine.

A repository is read at one commit, and every file of that commit comes from one folder, so that what is loaded is what
was checked. Files of a pinned commit that are in the cache are never asked for again. The library that fetches them
resumes a transfer that breaks off, and keeps HF_TOKEN to itself: no message here quotes a request.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from elalora.errors import UserError, first_line


def snapshot(repo: str, names: Iterable[str], revision: str | None = None, kind: str = "model") -> Path:
    """The folder, named after the commit, with those files of a repository that match one of the names or patterns.

    Args:
        repo: owner/name.
        names: of files; what the repository lacks is skipped.
        revision: a commit or branch; None takes the main branch.
        kind: "model" or "dataset".

    Raises:
        UserError: the reason alone, in a few words; the caller says what was to be read and what to type instead.
    """
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(
            repo, repo_type=kind, revision=revision, allow_patterns=list(names), tqdm_class=_bar()
        )
    except Exception as error:  # the errors of a broken connection have no common class with the rest
        raise UserError(_reason(error, revision)) from error
    return Path(folder)


def _bar() -> Any:
    """A progress bar that shows on terminals only, and leaves nothing behind: files in the cache have one too."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **more: Any) -> None:
            hidden = more.pop("disable", False) or not sys.stderr.isatty()
            super().__init__(*args, **more | {"disable": hidden, "leave": False})

    return Bar


def _reason(error: Exception, revision: str | None) -> str:
    """Why a repository cannot be read, from the error that the library raised or one of its causes."""
    from huggingface_hub import errors

    for one in _with_causes(error):
        status = getattr(getattr(one, "response", None), "status_code", None)
        if isinstance(one, errors.GatedRepoError):
            if status == 401:
                return "it is gated: accept its terms on its page, and set HF_TOKEN to a token of that account"
            return "it is gated, and the account of HF_TOKEN has no access: accept its terms on its page"
        if isinstance(one, errors.RevisionNotFoundError):
            return f"it has no commit {revision}"
        if isinstance(one, errors.RepositoryNotFoundError):
            return "the hub has none of that name, or it is private and needs HF_TOKEN"
        if isinstance(one, errors.OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE=1 forbids fetching, and the cache does not have all its files"
        if status == 401:
            return "the hub refuses HF_TOKEN: set a valid one, or none"
        if status is not None:
            return f"the hub answers with status {status}: try again later"
    last = [*_with_causes(error)][-1]
    kind, line = type(last).__name__, first_line(last).strip(".")
    what = "the hub cannot be reached" if kind.startswith("Connect") else "the transfer failed"
    return f"{what} ({kind}: {line}): run the same command again"


def _with_causes(error: Exception) -> Iterator[Exception]:
    yield error
    if isinstance(error.__cause__, Exception):
        yield from _with_causes(error.__cause__)
