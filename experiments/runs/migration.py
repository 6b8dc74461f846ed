"""Brings stores of an older schema to this version's (`python -m experiments migrate STORE...`).

From schema 1 to 2, runs that compute the same share one identity (`experiments.runs.identity`), so ids change. Every
finished run gets its new id, its folder the new name, and settings that name another run the new id of that run. No
score, rank or prediction changes. Two runs that are one computation become one; the other is put aside. The originals
of everything that is changed or put aside lie in STORE/.migrated. A command that was killed is simply repeated.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from elalora.errors import UserError, first_line
from experiments.runtime.files import running_sum, write_whole
from experiments.store.compact import SUFFIX, read_rows
from experiments.store.finished import id_of
from experiments.store.folder import OLDEST, SCHEMA, dump
from experiments.store.foreign import DAMAGE, read_text
from experiments.store.name import RunName

ASIDE = ".migrated"  # hidden, so that no command takes it for a task
CHANGED = ("schema", "id", "identity", "migrated")  # values of result.json
SAME = ("readings", "ranks", "counts")  # repetitions of a run differ in time, commit and speed only
TEXTS = ("contributions.json", "config.yaml")  # name runs by their ids too
MODEL_PATH = re.compile(r"^model:\n(?:  .*\n)*?  path: (\S+)$", re.M)


@dataclass
class Stored:
    """A finished run of a store.

    Attributes:
        store, task, folder: where it is.
        result: content of result.json; id: as stored.
        texts: the files of `TEXTS` that it has.
        row: its row in a compact store.
        new: the migrated result; None while it is not migrated.
    """

    store: Path
    task: str
    folder: str
    result: dict[str, Any]
    texts: dict[str, str]
    row: dict[str, Any] | None = None
    new: dict[str, Any] | None = field(default=None)

    @property
    def id(self) -> str:
        return str(self.result["id"])

    @property
    def path(self) -> Path:
        """Its folder, or where that would be."""
        return self.store / self.task / self.folder

    @property
    def name(self) -> str:
        """Its folder's new name."""
        name = RunName.parse(self.folder)
        assert name is not None and self.new is not None
        return str(RunName.of(name.arm, name.seed, self.new["id"]))


class Migration:
    """The runs of some stores, migrated together because they may name each other.

    Args:
        stores: run stores and compact stores.

    Attributes:
        lines: for people: what was done, and what was left as it is.
    """

    def __init__(self, stores: Sequence[Path]) -> None:
        self.lines: list[str] = []
        self.stores = {store: list(self._read(store)) for store in stores}
        runs = [run for members in self.stores.values() for run in members]
        self._ids = {old: run.id for run in runs for old in (run.result.get("migrated") or {"ids": []})["ids"]}
        self._older = {run.id: run for run in runs if run.result["schema"] < SCHEMA}
        self._known = {run.id for run in runs}
        for run in runs:
            if run.result["schema"] == SCHEMA:
                run.new = run.result
        for run in self._older.values():
            self._migrate(run)
        for run in runs:  # two stores may hold the same run
            if run.new is None and (first := self._older.get(run.id)) is not None and first.new is not None:
                run.new = first.new | {key: run.result[key] for key in run.result if key not in CHANGED}

    def _read(self, store: Path) -> Iterator[Stored]:
        """The finished runs of a store that have this schema or an older one that can be migrated."""
        if not store.is_dir():
            raise UserError(f"{store} is not a folder of runs; type python -m experiments migrate FOLDER")
        for file in sorted(store.glob(f"*{SUFFIX}")):
            for row in read_rows(file):
                if row["result.json"] is not None:
                    texts = {name: row[name] for name in TEXTS if row[name] is not None}
                    yield from self._checked(store, row["task"], row["folder"], row["result.json"], texts, row)
        for path in sorted(store.glob("*/*/result.json")):
            folder = path.parent
            try:
                texts = {name: read_text(folder / name) for name in TEXTS if (folder / name).is_file()}
                text = read_text(path)
            except DAMAGE as error:
                self.lines.append(f"{folder}: left as it is, {first_line(error)}")
                continue
            yield from self._checked(store, folder.parent.name, folder.name, text, texts, None)

    def _checked(
        self, store: Path, task: str, folder: str, text: str, texts: dict[str, str], row: dict[str, Any] | None
    ) -> Iterator[Stored]:
        try:
            result = json.loads(text)
            if not OLDEST <= result["schema"] <= SCHEMA:
                raise ValueError(f"it has schema {result['schema']}")
            if RunName.parse(folder) is None:
                raise ValueError("its folder is not named as a run")
            if result["id"] != id_of(result["identity"]):
                raise ValueError("its id is not the hash of its identity")
            yield Stored(store, task, folder, result, texts, row)
        except DAMAGE as error:
            self.lines.append(f"{store / task / folder}: left as it is, {first_line(error)}")

    def _migrate(self, run: Stored) -> None:
        """Sets the new result, of the runs that this one names first."""
        from experiments.runs.identity import canonical

        if run.new is not None:
            return
        try:
            identity = json.loads(json.dumps(run.result["identity"]))
            for place, key in ((identity["method"], "ranks_from"), (identity, "init_from")):
                if place.get(key) is not None:
                    place[key] = self._new_id(place[key], key)
            path = MODEL_PATH.search(run.texts.get("config.yaml", ""))
            identity = json.loads(json.dumps(canonical(identity, path[1] if path else None)))
        except (UserError, *DAMAGE) as error:
            self.lines.append(f"{run.path}: left as it is, {first_line(error)}")
            return
        migrated = {"schema": run.result["schema"], "ids": [run.id]}
        run.new = run.result | {"schema": SCHEMA, "id": id_of(identity), "identity": identity, "migrated": migrated}
        run.new.setdefault("files", None)
        self._ids[run.id] = run.new["id"]

    def _new_id(self, old: str, key: str) -> str:
        if old in self._older:
            self._migrate(self._older[old])
        new = self._ids.get(old, old if old in self._known and old not in self._older else None)
        if new is None:
            raise ValueError(f"{key} names the run {old[:10]}, which no given store has: name its store too")
        return new

    def renamed(self, text: str) -> str:
        """A text with the new ids in place of the old ones."""
        return re.sub(r"\b[0-9a-f]{64}\b", lambda match: self._ids.get(match[0], match[0]), text)

    def groups(self, store: Path) -> Iterator[list[Stored]]:
        """The runs of a store that are one computation, the one that stays first."""
        alike: dict[tuple[str, str], list[Stored]] = defaultdict(list)
        for run in self.stores[store]:
            if run.new is not None:
                alike[run.task, run.new["id"]].append(run)
        for members in alike.values():
            members.sort(
                key=lambda run: (run.result["schema"] < SCHEMA, "contributions.json" not in run.texts, run.folder)
            )
            new = members[0].new
            if new is not None and members[0].result["schema"] < SCHEMA:
                # all of them, so that runs that name one find it when the command is repeated
                new["migrated"] = new["migrated"] | {"ids": [run.id for run in members]}
            yield members


def migrate(stores: Sequence[str | Path]) -> list[str]:
    """Migrates stores and compact stores, in place.

    Returns:
        A line for each run that was put aside or left as it is, and a summary of each store.

    Raises:
        UserError: a store is not a folder, is being migrated by another process, or cannot be written.
    """
    paths = list(dict.fromkeys(map(Path, stores)))
    try:
        migration = Migration(paths)
        for store in paths:
            runs = [run for run in migration.stores[store] if run.new is not None]
            if all(run.result["schema"] == SCHEMA and run.folder == run.name for run in runs):
                migration.lines.append(f"{store}: nothing to migrate")
                continue
            with _alone(store):
                _migrate_folders(migration, store)
                _migrate_compact(migration, store)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be written ({error.strerror}); make it writable") from error
    return migration.lines


@contextmanager
def _alone(store: Path) -> Iterator[None]:
    (store / ASIDE).mkdir(exist_ok=True)
    with (store / ASIDE / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{store} is being migrated by another process") from None
        yield


def _migrate_folders(migration: Migration, store: Path) -> None:
    count = 0
    for first, *others in migration.groups(store):
        if first.row is not None:
            continue
        if first.result["schema"] < SCHEMA:
            _write(migration, first)
        if first.folder != first.name:
            first.path.rename(first.path.with_name(first.name))
        count += first.result["schema"] < SCHEMA
        for other in others:
            aside = store / ASIDE / other.task / other.folder
            shutil.rmtree(aside, ignore_errors=True)
            aside.parent.mkdir(parents=True, exist_ok=True)
            other.path.rename(aside)
            migration.lines.append(f"{_one_computation(first, other)}; it lies in {aside}")
    open_runs = sum(not (path.parent / "result.json").exists() for path in store.glob("*/*/status.json"))
    if count or open_runs:
        left = f"; {open_runs} runs without a result keep their folders and start anew" if open_runs else ""
        migration.lines.append(f"{store}: {count} runs migrated to schema {SCHEMA}{left}")


def _write(migration: Migration, run: Stored) -> None:
    """Writes the files of a run that change, result.json last: until then the command starts over with this run."""
    assert run.new is not None
    aside = run.store / ASIDE / run.task / run.folder
    for name in ("result.json", *run.texts):
        if not (aside / name).exists():
            write_whole(_below(aside) / name, read_text(run.path / name))
    for name, text in run.texts.items():
        if (renamed := migration.renamed(text)) != text:
            write_whole(run.path / name, renamed)
            if (run.new["files"] or {}).get(name):
                run.new["files"][name]["sha256"] = running_sum(run.path / name).value().sha256
    write_whole(run.path / "result.json", dump(run.new))


def _below(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _migrate_compact(migration: Migration, store: Path) -> None:
    from experiments.store.compaction import write_rows

    chosen: dict[str, list[Stored]] = defaultdict(list)
    for first, *others in migration.groups(store):
        if first.row is not None:
            chosen[first.task].append(first)
            for other in others:
                migration.lines.append(f"{_one_computation(first, other)}; it lies in {store / ASIDE}")
    for file in sorted(store.glob(f"*{SUFFIX}")):
        runs = chosen[file.name.removesuffix(SUFFIX)]
        listed = {run.folder for run in migration.stores[store] if run.new is not None and run.row is not None}
        rows = [row for row in read_rows(file) if row["folder"] not in listed]  # failed, or left as they are
        for run in runs:
            assert run.row is not None and run.new is not None
            texts = {name: migration.renamed(text) for name, text in run.texts.items()}
            rows.append(run.row | texts | {"folder": run.name, "result.json": dump(run.new)})
        if not (store / ASIDE / file.name).exists():
            shutil.copy2(file, store / ASIDE / f".{file.name}")
            os.replace(store / ASIDE / f".{file.name}", store / ASIDE / file.name)
        migration.lines.append(write_rows(file, rows))


def _one_computation(first: Stored, other: Stored) -> str:
    """The line of a run that is put aside, with its score where the two differ."""
    assert first.new is not None
    differ = [key for key in SAME if first.result.get(key) != other.result.get(key)]
    scores = [run.result["readings"]["last"]["report"]["metrics"] for run in (first, other)]
    agree = "scores, ranks and counts are equal" if not differ else f"{', '.join(differ)} DIFFER ({scores})"
    return f"{other.task}/{other.folder} is the same computation as {first.folder}, now {first.name}: {agree}"


def add_to(commands: Any) -> None:
    """Adds `migrate` to the command line."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "migrate",
        help="bring a store of an older version to this one",
        description="Gives the finished runs of stores and compact stores the ids of this version, in place; scores "
        f"stay. Originals of what changes lie in STORE/{ASIDE}. Name stores whose runs name each other together.",
        epilog="example: python -m experiments migrate runs",
    )
    parser.add_argument("stores", nargs="+", metavar="STORE", help="run stores or compact stores")
    parser.set_defaults(command=_run)


def _run(args: argparse.Namespace) -> int:
    print("\n".join(migrate(args.stores)))
    return 0
