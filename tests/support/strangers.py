"""A run of a stranger: folders with everything a run has, and a watch over what reading them does."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from tiny_runs import config as composed

from experiments.standins.stored_runs import moved_run

SECRET = "SECRET_TOKEN"


def stranger(root: Path, seed: int = 0, **changes: Any) -> Path:
    """A finished run with all its files; `changes` as in `stored_runs.result`."""
    from omegaconf import OmegaConf

    scores = {"accuracy": 100.0, "f1": 100.0}  # of the predictions below
    folder = moved_run(root, seed, 100.0, readings__last__report__metrics=scores, data__report_items=40, **changes)
    settings = composed("task=vader_movies", "method=elalora", "budget=r4", f"seed={seed}")
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(settings, resolve=True))
    items = {"idx": range(40), "label": [i % 2 for i in range(40)], "prediction": [0, 1] * 20, "score": [0.5] * 40}
    pd.DataFrame(items).to_parquet(folder / "predictions.parquet")
    whole = json.loads((folder / "result.json").read_text())
    rises = {"schema": 1, "id": whole["id"], "asked": 500, "split": "validation", "items": 9, "loss": 1.0}
    (folder / "contributions.json").write_text(
        json.dumps(rises | {"rises": dict.fromkeys(whole["ranks"]["final"], 0.1)})
    )
    line = {"step": 10, "split": "train", "metric": "loss", "value": 0.5 + seed}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    return folder


def planted(value: Any, text: Callable[[str], str]) -> Any:
    """A nested value with every text in it changed, except the keys."""
    if isinstance(value, dict):
        return {key: planted(inner, text) for key, inner in value.items()}
    if isinstance(value, list):
        return [planted(inner, text) for inner in value]
    return text(value) if isinstance(value, str) else value


def plant(folder: Path, text: Callable[[str], str]) -> None:
    """Changes every text in every file of a run."""
    for path in folder.iterdir():
        if path.suffix == ".json":
            path.write_text(json.dumps(planted(json.loads(path.read_text()), text)))
        elif path.suffix == ".jsonl":
            lines = [planted(json.loads(line), text) for line in path.read_text().splitlines()]
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        elif path.suffix == ".yaml":
            path.write_text(yaml.safe_dump(planted(yaml.safe_load(path.read_text()), text)))


@dataclass
class Watch:
    """What happened while it was on: variables read, addresses, programs, files opened."""

    variables: set[str] = field(default_factory=set)
    network: list[str] = field(default_factory=list)
    programs: list[str] = field(default_factory=list)
    files: set[str] = field(default_factory=set)


_watches: list[Watch] = []
_hooked: list[bool] = []


def _hook(event: str, args: tuple[Any, ...]) -> None:
    for watch in _watches:
        if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
            watch.network.append(f"{event} {args[1:]}")
        elif event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
            watch.programs.append(f"{event} {args}")
        elif event == "open" and isinstance(args[0], str) and not (args[2] & os.O_NOFOLLOW and os.path.islink(args[0])):
            watch.files.add(os.path.realpath(args[0]))


class _Environment(dict[str, str]):
    """Remembers which variables are read by name."""

    watch: Watch

    def __getitem__(self, key: str) -> str:
        self.watch.variables.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.watch.variables.add(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self.watch.variables.add(str(key))
        return super().__contains__(key)


@contextmanager
def watched() -> Iterator[Watch]:
    """Watches this process: its environment, network, programs and opened files."""
    if not _hooked:
        sys.addaudithook(_hook)  # an audit hook cannot be removed
        _hooked.append(True)
    watch, before = Watch(), os.environ
    environment = _Environment(before)
    environment.watch = watch
    os.environ = environment  # type: ignore[assignment]  # noqa: B003
    _watches.append(watch)
    try:
        yield watch
    finally:
        _watches.remove(watch)
        os.environ = before  # noqa: B003


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Fails when the block takes longer, also when it waits for a FIFO."""

    def late(*_: object) -> None:
        raise AssertionError(f"still at work after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
