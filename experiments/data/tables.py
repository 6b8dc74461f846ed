"""Reads parquet, CSV, TSV and JSON files as columns of plain Python values.

Every reader returns {column: values}, all of equal length, or refuses the file with the line at fault. Files are read
row by row, and only the columns that are asked for are kept. The values are checked later
(`experiments.data.checks`).
"""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from elalora.errors import UserError, first_line

Columns = dict[str, list[Any]]
UNREADABLE = (ValueError, OverflowError, KeyError)  # parquet values that Python lacks: bytes in a text, far years
DELIMITERS = ";\t|,"  # that a table may have instead of its suffix's
MOST_FIELD = 2**24  # characters of one CSV field; the module's own limit of 131,072 is too small for documents
EXPECTED = "expected one object per line, or one list of objects"  # of a JSON file
MOST_NAMES = 20  # column names that a message lists
COMPRESSED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError)


def read_table(
    file: Path, label: str, columns: Sequence[str], more: Sequence[str] = (), sep: str | None = None
) -> Columns:
    """Some columns of a table file, whose format is that of its suffix.

    Args:
        file: see `FORMATS`; all but parquet may be compressed (.gz, .bz2, .xz).
        label: how errors name the file.
        columns: the names of those to read.
        more: names of others to read where the file has them.
        sep: between the columns of a CSV or TSV file: one character, or "tab"; None takes that of the suffix.

    Raises:
        UserError: the file is missing, lacks a column, has an unknown suffix, or content that does not match it.
    """
    suffix = table_suffix(file)
    if suffix is None:
        raise UserError(
            f"{label} is not a supported table; allowed: {', '.join(FORMATS)}, all but parquet also with "
            f"{', '.join(COMPRESSED)}, or a folder of images"
        )
    if not file.is_file():
        raise UserError(f"{label} is missing; paths are relative to data.root, or to the current folder if it is null")
    return FORMATS[suffix](file, label, columns, more, sep)


def table_suffix(file: Path) -> str | None:
    """The key of `FORMATS` that a file's name ends in, in capitals or not, compressed or not; None for other files."""
    suffixes = [suffix.lower() for suffix in file.suffixes[-2:]]
    if len(suffixes) == 2 and suffixes[1] in COMPRESSED:
        return suffixes[0] if suffixes[0] in FORMATS and suffixes[0] != ".parquet" else None
    return suffixes[-1] if suffixes and suffixes[-1] in FORMATS else None


def read_parquet(file: Path, label: str, columns: Sequence[str] | None = None, more: Sequence[str] = ()) -> Columns:
    """Columns of a parquet file, by default all.

    Raises:
        UserError: the file cannot be read, or a column is missing.
    """
    import pyarrow.parquet as parquet
    from pyarrow import ArrowException

    try:
        if columns is not None:
            columns = wanted(label, parquet.read_schema(file).names, columns, more)
        return parquet.read_table(file, columns=columns).to_pydict()
    except (ArrowException, OSError, *UNREADABLE) as error:
        raise UserError(f"{label} is not a parquet file that can be read: {first_line(error)}") from error


def joined(parts: Sequence[Columns]) -> Columns:
    """The rows of several tables, in the columns that all of them have."""
    if len(parts) == 1:
        return parts[0]
    shared = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: list(chain.from_iterable(part[name] for part in parts)) for name in shared}


def _plain(name: Any) -> str:
    return " ".join(str(name).split()).lower()


def require_columns(label: str, present: Sequence[str], columns: Sequence[str]) -> None:
    """Refuses a table that lacks a column."""
    if missing := [name for name in columns if name not in present]:
        near = next((name for name in present if _plain(name) == _plain(missing[0])), None)
        hint = f" (did you mean {near!r}?)" if near is not None else ""
        raise UserError(f"{label}: no column {missing[0]!r} among {listed(present)}{hint}")


def wanted(label: str, present: Sequence[str], columns: Sequence[str], more: Sequence[str]) -> list[str]:
    """The columns to read, without repetition; refuses a table that lacks one of `columns`."""
    require_columns(label, present, columns)
    return list(dict.fromkeys([*columns, *(name for name in more if name in present)]))


def listed(names: Iterable[str]) -> str:
    """Names for a message, of many the first."""
    names = list(names)
    return ", ".join(map(repr, names[:MOST_NAMES])) + (f", ... ({len(names):,})" if len(names) > MOST_NAMES else "")


# -- CSV and TSV -------------------------------------------------------------------------------------------------


def _read_delimited(
    file: Path,
    label: str,
    columns: Sequence[str],
    more: Sequence[str],
    sep: str | None,
    default: str,
    **dialect: Any,
) -> Columns:
    delimiter = {None: default, "tab": "\t"}.get(sep, sep or default)
    csv.field_size_limit(MOST_FIELD)
    with _opened(file, label) as stream:
        lines = csv.reader(stream, delimiter=delimiter, **dialect)
        try:
            header = next(lines, None)
            if not header:
                raise UserError(f"{label} is empty; its first line must name the columns")
            _refuse_other_delimiter(label, header, delimiter)
            name, times = Counter(header).most_common(1)[0]
            if times > 1:
                raise UserError(f"{label}: column {name!r} is named twice in the first line")
            places = {name: header.index(name) for name in wanted(label, header, columns, more)}
            found: Columns = {name: [] for name in places}
            for row in lines:
                if len(row) == len(header):
                    for name, place in places.items():
                        found[name].append(row[place])
                elif row:  # empty lines are skipped
                    raise UserError(_ragged(label, lines.line_num, row, header, delimiter, dialect))
        except csv.Error as error:
            raise UserError(f"{label}: line {lines.line_num} cannot be read: {error}") from error
    return found


def _ragged(
    label: str, line: int, row: Sequence[str], header: Sequence[str], delimiter: str, dialect: dict[str, Any]
) -> str:
    advice = f"put fields with a {delimiter!r} in quotation marks"
    if "quoting" in dialect:
        advice = "a TSV has no quotation marks; if this one does, name it *.csv and type task.sep=tab"
    return f"{label}: line {line} has {len(row)} fields; the first line has {len(header)} ({listed(header)}); {advice}"


def _refuse_other_delimiter(label: str, header: Sequence[str], delimiter: str) -> None:
    """Refuses a first line of one field that another delimiter would split: a task needs two columns."""
    other = max(DELIMITERS, key=header[0].count)
    if len(header) == 1 and other in header[0]:
        names = {"\t": "tab", " ": "blank"}
        typed = "task.sep=tab" if other == "\t" else f"'task.sep=\"{other}\"'"
        raise UserError(
            f"{label}: the first line has no {names.get(delimiter, delimiter)!r} between columns but "
            f"{names.get(other, other)!r}; type {typed}"
        )


# -- JSON --------------------------------------------------------------------------------------------------------


def _read_json(file: Path, label: str, columns: Sequence[str], more: Sequence[str], sep: str | None) -> Columns:
    """Objects, one a line, or the elements of one list."""
    kept = (*columns, *more)
    found: Columns = {name: [] for name in kept}
    names: dict[str, None] = {}
    with _opened(file, label) as stream:
        for row in _json_rows(stream, label):
            names.update(dict.fromkeys(row))
            for name in kept:
                found[name].append(row.get(name))
    return {name: found[name] for name in wanted(label, list(names), columns, more)} if found[kept[0]] else found


def _json_rows(stream: TextIO, label: str) -> Iterator[dict[str, Any]]:
    """The objects of a file, each one parsed when it is asked for."""
    for number, line in enumerate(stream, start=1):
        text = line.strip()
        if not text:
            continue
        if text[0] == "[":
            yield from _elements(line + stream.read(), number, label)
            return
        where = f"{label}: line {number}"
        try:
            row, end = _decode(text, 0)
            if end < len(text):
                raise json.JSONDecodeError("Extra data", text, end)
        except (ValueError, RecursionError) as error:
            hint = f"; {EXPECTED}" if text == "{" else ""
            raise UserError(f"{where} is not JSON: {error}{hint}") from error
        if not isinstance(row, dict):
            raise UserError(f"{where} is {type(row).__name__}; {EXPECTED}")
        yield row


def _elements(text: str, first: int, label: str) -> Iterator[dict[str, Any]]:
    """The objects of one JSON list, which begins in line `first`."""

    def where(place: int) -> str:
        return f"{label}: line {first + text.count(chr(10), 0, place)}"

    place = _after_blanks(text, text.index("[") + 1)
    more = text[place : place + 1] != "]"
    while more:
        try:
            row, end = _decode(text, place)
        except (ValueError, RecursionError) as error:
            at, why = (error.pos, error.msg) if isinstance(error, json.JSONDecodeError) else (place, str(error))
            raise UserError(f"{where(at)} is not JSON: {why}") from error
        if not isinstance(row, dict):
            raise UserError(f"{where(place)} is {type(row).__name__}; {EXPECTED}")
        yield row
        place = _after_blanks(text, end)
        more = text[place : place + 1] == ","
        if more:
            place = _after_blanks(text, place + 1)
        elif text[place : place + 1] != "]":
            raise UserError(f"{where(place)} is not JSON: expected ',' or ']' after an element of the list")
    end = _after_blanks(text, place + 1)
    if end < len(text):
        raise UserError(f"{where(end)} is not JSON: the list has ended before; {EXPECTED}")


def _after_blanks(text: str, place: int) -> int:
    """The next place that is not white space."""
    while text[place : place + 1] in (" ", "\n", "\r", "\t"):
        place += 1
    return place


def _decode(text: str, start: int) -> tuple[Any, int]:
    """The JSON value that begins at `start`, and where it ends.

    Raises:
        ValueError: it is no JSON, or has half a surrogate pair.
        RecursionError: it is nested too deeply.
    """
    row, end = _DECODER.raw_decode(text, start)
    if text.find("\\u", start, end) >= 0:
        json.dumps(row, ensure_ascii=False).encode()
    return row, end


_DECODER = json.JSONDecoder()


# -- files -------------------------------------------------------------------------------------------------------


@contextmanager
def _opened(file: Path, label: str) -> Iterator[TextIO]:
    """A file as UTF-8 text, compressed or not, with its own line ends: a quoted field may hold some.

    Raises:
        UserError: it cannot be opened, or what is read inside is damaged or not UTF-8.
    """
    opened = partial(COMPRESSED.get(file.suffix.lower(), open), file)
    try:
        try:
            with opened("rt", encoding="utf-8-sig", newline="") as stream:
                yield stream
        except UnicodeDecodeError as error:
            with opened("rb") as stream:  # which may meet damage behind the line
                line = next((number for number, line in enumerate(stream, start=1) if not _is_utf8(line)), 1)
            raise UserError(f"{label}: line {line} is not UTF-8 text; save the file as UTF-8") from error
    except DAMAGED as error:
        raise UserError(f"{label} cannot be read: {getattr(error, 'strerror', None) or first_line(error)}") from error


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _parquet(file: Path, label: str, columns: Sequence[str], more: Sequence[str], sep: str | None) -> Columns:
    return read_parquet(file, label, columns, more)


FORMATS: dict[str, Callable[[Path, str, Sequence[str], Sequence[str], str | None], Columns]] = {
    ".parquet": _parquet,
    ".csv": partial(_read_delimited, default=",", strict=True),
    # as in GLUE's files, a quotation mark is an ordinary character
    ".tsv": partial(_read_delimited, default="\t", quoting=csv.QUOTE_NONE),
    ".jsonl": _read_json,
    ".json": _read_json,
    ".ndjson": _read_json,
}
