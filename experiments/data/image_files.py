"""Images named by list files or sorted into class folders, read into memory as the bytes of their files.

Nothing is decoded here and nothing is unpacked. A name in a list file can point only below the list's own folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from elalora.errors import UserError
from experiments.runtime.display import tracked

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".tif", ".tiff", ".webp")
WHOLE = re.compile(r"\d{1,18}")  # a label or number that 64 bits hold
MANY = 2_000  # images that take long enough to read for a progress bar


def read_list(file: Path, where: str) -> list[tuple[str, int]]:
    """Path and label of every line of a list file ("images/a b.png 3"; blank lines are skipped).

    Raises:
        UserError: a line without a whole number at its end, or a path that is absolute or leads out of the folder.
    """
    entries = []
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 text; lines are: relative/path label") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        path, label = [*line.rsplit(None, 1), ""][:2]
        if not WHOLE.fullmatch(label):
            raise UserError(f"{where}: line {number} is {line.strip()!r}; wanted: relative/path label")
        entries.append((inside(path.strip(), f"{where}: line {number}"), int(label)))
    return entries


def inside(path: str, where: str) -> str:
    """The path, if it stays below the folder it is relative to.

    Raises:
        UserError: it is absolute or goes up, or can name no file.
    """
    pure = PurePosixPath(path.replace("\\", "/"))
    drive = bool(pure.parts) and pure.parts[0].endswith(":")
    if pure.is_absolute() or ".." in pure.parts or drive:
        raise UserError(f"{where} names {path}, which leads out of the folder: refused")
    if "\0" in path:
        raise UserError(f"{where} names {path}, which is no name of a file")
    return path


def class_folders(folder: Path, where: str) -> dict[str, list[str]]:
    """Class name -> its images, as paths relative to `folder`, both in sorted order.

    Raises:
        UserError: no class folder, or one that holds anything but images.
    """
    found: dict[str, list[str]] = {}
    for entry in sorted(folder.iterdir()):
        if not entry.is_dir() or entry.name.startswith("."):
            continue
        names = sorted(path.name for path in entry.iterdir() if not path.name.startswith("."))
        if other := [name for name in names if Path(name).suffix.lower() not in SUFFIXES]:
            raise UserError(f"{where}/{entry.name}/{other[0]} is no image; allowed: {', '.join(SUFFIXES)}")
        found[entry.name] = [f"{entry.name}/{name}" for name in names]
    if not found:
        raise UserError(f"{where} has no class folders; wanted: {where}/CLASS/IMAGE")
    return found


def class_ids(names: Iterable[str], labels: Sequence[str] | None, num_labels: int, where: str) -> dict[str, int]:
    """The id of every class name: its place in `labels`; else itself where all are whole numbers; else sorted.

    Raises:
        UserError: a name that is not in `labels`, or other than num_labels names to be sorted.
    """
    distinct = sorted(set(names))
    if labels is not None:
        if unknown := [name for name in distinct if name not in labels]:
            raise UserError(f"{where}: {unknown[0]} is no class; task.labels allows {', '.join(labels)}")
        return {name: list(labels).index(name) for name in distinct}
    if all(WHOLE.fullmatch(name) for name in distinct):
        return {name: int(name) for name in distinct}
    if len(distinct) != num_labels:
        shown = ", ".join(distinct[:8]) + (", ..." if len(distinct) > 8 else "")
        raise UserError(
            f"{where} has {len(distinct)} classes ({shown}), but task.num_labels={num_labels}; "
            f"type task.num_labels={len(distinct)}, or name all classes with task.labels=[...]"
        )
    return {name: number for number, name in enumerate(distinct)}


def read_images(folder: Path, paths: Sequence[str], where: str) -> list[bytes]:
    """The files' bytes, with a progress bar where there are many and a terminal shows it.

    Raises:
        UserError: a file is not there or cannot be read.
    """
    contents = []
    for path in tracked(paths, f"reading {where}") if len(paths) >= MANY else paths:
        try:
            contents.append((folder / path).read_bytes())
        except OSError as error:
            raise UserError(f"{where} names {path}, which cannot be read: {error.strerror}") from error
    return contents
