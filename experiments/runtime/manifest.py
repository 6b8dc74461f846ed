"""What a run ran on: versions, machine, threads and commit. Not part of its identity; holds no secrets."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from experiments.runtime.distributed import world_size
from experiments.runtime.places import CHECKOUT

PACKAGES = ("torch", "transformers", "datasets", "accelerate", "numpy", "scipy", "scikit-learn", "tokenizers", "peft")


def manifest() -> dict[str, Any]:
    """The manifest as plain JSON: names and numbers only, no environment variables."""
    import torch

    commit, dirty = code_now()
    return {
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in PACKAGES}},
        "commit": commit,
        "dirty": dirty,
        "host": {
            "system": platform.system(),
            "machine": platform.machine(),
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "processes": world_size(),
        },
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def code_now() -> tuple[str | None, bool | None]:
    """The commit of this code, and whether tracked files differ from it."""
    return commit_of(CHECKOUT)


def warn_if_changed(then: Sequence[Any], when: str) -> None:
    """Warns on stderr if the code on disk is not the code from which the runs were started.

    Args:
        then: `code_now` at that moment.
        when: the event, such as "the job was submitted".
    """
    now = code_now()
    if list(now) != list(then):
        print(f"elalora: the code is {_code(now)}, {when} from {_code(then)}", file=sys.stderr, flush=True)


def _code(commit: Sequence[Any]) -> str:
    return f"{(commit[0] or 'unknown')[:10]}{' with changes' if commit[1] else ''}"


def commit_of(folder: Path) -> tuple[str | None, bool | None]:
    """(commit, whether tracked files differ from it), (None, None) outside a git checkout."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return None, None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    """The processor's model, if the system knows it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
