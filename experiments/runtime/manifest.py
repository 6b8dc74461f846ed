"""What a run ran on: versions, machine, threads and commit. Not part of its identity; holds no secrets."""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from experiments.runtime.distributed import world_size
from experiments.runtime.places import CHECKOUT

PACKAGES = ("torch", "transformers", "datasets", "accelerate", "numpy", "scipy", "scikit-learn", "tokenizers", "peft")


class Code(NamedTuple):
    """The state of a git checkout.

    Attributes:
        commit: None outside a checkout.
        dirty: whether tracked files differ from the commit.
        changes: SHA-256 of these differences, None without any.
    """

    commit: str | None
    dirty: bool | None = None
    changes: str | None = None

    def __str__(self) -> str:
        return f"{(self.commit or 'unknown')[:10]}{' with changes' if self.dirty else ''}"


def manifest(step: int = 0, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The manifest as plain JSON: names and numbers only, no environment variables.

    Args:
        step: from which this process trains.
        before: the manifest of the attempt that trained the steps before, if any.
    """
    import torch

    now = {
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in PACKAGES}},
        **loaded_code()._asdict(),
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
        "from_step": step,
    }
    return now | {"earlier": _earlier(step, before or {})}


def _earlier(step: int, before: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The manifests of the attempts whose steps count in a run that resumes from `step`."""
    attempts = [*before.get("earlier", ()), {k: v for k, v in before.items() if k != "earlier"}]
    return [attempt for attempt in attempts if attempt.get("from_step", step) < step]


def resumed_under(manifest: Mapping[str, Any]) -> list[str]:
    """What changed between the attempts of a run: "code", "versions", "host"."""
    parts = {"code": Code._fields, "versions": ("versions",), "host": ("host",)}
    earlier = manifest["earlier"]
    return [
        part for part, keys in parts.items() if any(old.get(key) != manifest[key] for old in earlier for key in keys)
    ]


@cache
def loaded_code() -> Code:
    """The code that this process runs: called first when the process starts, it never looks again."""
    return code_now()


def code_now() -> Code:
    """The code on disk."""
    return code_of(CHECKOUT)


def warn_if_changed(then: Sequence[Any], when: str) -> None:
    """Warns on stderr if the code on disk is not the code from which the runs were started.

    Args:
        then: `code_now` at that moment.
        when: the event, such as "the job was submitted".
    """
    now = code_now()
    if list(now) != list(then):
        print(f"elalora: the code is {now}, {when} from {Code(*then)}", file=sys.stderr, flush=True)


def code_of(folder: Path) -> Code:
    """The state of a folder's checkout."""

    def git(*words: str) -> bytes:
        return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, check=True).stdout.strip()

    try:
        commit, dirty = git("rev-parse", "HEAD").decode(), bool(git("status", "--porcelain", "--untracked-files=no"))
        return Code(commit, dirty, hashlib.sha256(git("diff", "HEAD")).hexdigest() if dirty else None)
    except (OSError, subprocess.CalledProcessError):
        return Code(None)


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
