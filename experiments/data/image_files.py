"""Reads image files that are named by list files or sorted into class folders, without decoding them.

A path in a list file must stay below the folder of the list.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from elalora.errors import UserError
from experiments.runtime.display import tracked

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".tif", ".tiff", ".webp")
WHOLE = re.compile(r"\d{1,18}")  # a number that fits into 64 bits
MANY = 2_000  # images from which reading shows a progress bar


def read_list(file: Path, label: str) -> list[tuple[str, int]]:
    """Path and label of every line of a list file ("images/a b.png 3"; blank lines are skipped).

    Raises:
        UserError: a line does not end in a whole number, or a path leads out of the folder.
    """
    entries = []
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise UserError(f"{label} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{label} is not UTF-8 text; expected lines: relative/path label") from error
    for row, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        path, number = [*line.rsplit(None, 1), ""][:2]
        if not WHOLE.fullmatch(number):
            raise UserError(f"{label}: line {row} is {line.strip()!r}; expected: relative/path label")
        entries.append((inside(path.strip(), f"{label}: line {row}"), int(number)))
    return entries


def inside(path: str, label: str) -> str:
    """The path unchanged, if it stays below the folder that it is relative to.

    Raises:
        UserError: the path is absolute, leads out of the folder or is not a valid file name.
    """
    pure = PurePosixPath(path.replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts or pure.parts and pure.parts[0].endswith(":"):  # C:
        raise UserError(f"{label} names {path}, which leads out of the folder")
    if "\0" in path:
        raise UserError(f"{label} names {path}, which is not a valid file name")
    return path


def class_folders(folder: Path, label: str) -> dict[str, list[str]]:
    """Class name -> its images as paths relative to `folder`, both sorted.

    Raises:
        UserError: there is no class folder, or one contains other files than images.
    """
    classes: dict[str, list[str]] = {}
    for entry in sorted(folder.iterdir()):
        if not entry.is_dir() or entry.name.startswith("."):
            continue
        names = sorted(path.name for path in entry.iterdir() if not path.name.startswith("."))
        if other := [name for name in names if Path(name).suffix.lower() not in SUFFIXES]:
            raise UserError(f"{label}/{entry.name}/{other[0]} is not an image; allowed: {', '.join(SUFFIXES)}")
        classes[entry.name] = [f"{entry.name}/{name}" for name in names]
    if not classes:
        raise UserError(f"{label} has no class folders; expected: {label}/CLASS/IMAGE")
    return classes


def class_ids(names: Iterable[str], labels: Sequence[str] | None, num_labels: int, label: str) -> dict[str, int]:
    """The id of every class name: its index in `labels`; else the number it spells; else its sorted position.

    Raises:
        UserError: a name is not in `labels`, or the number of names to sort is not num_labels.
    """
    distinct = sorted(set(names))
    if labels is not None:
        if unknown := [name for name in distinct if name not in labels]:
            raise UserError(f"{label}: unknown class {unknown[0]}; task.labels allows {', '.join(labels)}")
        return {name: list(labels).index(name) for name in distinct}
    if all(WHOLE.fullmatch(name) for name in distinct):
        return {name: int(name) for name in distinct}
    if len(distinct) != num_labels:
        shown = ", ".join(distinct[:8]) + (", ..." if len(distinct) > 8 else "")
        raise UserError(
            f"{label} has {len(distinct)} classes ({shown}), but task.num_labels={num_labels}; "
            f"type task.num_labels={len(distinct)}, or name all classes with task.labels=[...]"
        )
    return {name: number for number, name in enumerate(distinct)}


def read_images(folder: Path, paths: Sequence[str], label: str) -> list[bytes]:
    """The bytes of the files; shows a progress bar for many files on a terminal.

    Raises:
        UserError: a file is missing or cannot be read.
    """
    contents = []
    for path in tracked(paths, f"reading {label}") if len(paths) >= MANY else paths:
        try:
            contents.append((folder / path).read_bytes())
        except OSError as error:
            raise UserError(f"{label} names {path}, which cannot be read: {error.strerror}") from error
    return contents
