"""Reads parquet, CSV, TSV and JSON Lines files as columns of plain Python values.

Every reader returns {column: values}, all of equal length, or refuses the file with the line at fault. The values are
checked later (`experiments.data.checks`).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from elalora.errors import UserError, first_line

Columns = dict[str, list[Any]]
UNREADABLE = (ValueError, OverflowError, KeyError)  # parquet values that Python lacks: bytes in a text, far years
DELIMITERS = ";\t|,"  # that a table may have instead of its suffix's
MOST_FIELD = 2**24  # characters of one CSV field; the module's own limit of 131,072 is too small for documents


def read_table(file: Path, label: str, sep: str | None = None) -> Columns:
    """All columns of a table file, by its suffix.

    Args:
        file: *.parquet, *.csv, *.tsv, *.jsonl or *.json (one object a line).
        label: how errors name the file.
        sep: between the columns of a CSV or TSV file: one character, or "tab"; None takes that of the suffix.

    Raises:
        UserError: the file is missing, has an unknown suffix, or content that does not match its suffix.
    """
    readers: dict[str, Callable[[Path, str], Columns]] = {
        ".parquet": read_parquet,
        ".csv": partial(_read_delimited, delimiter=_character(sep, ","), strict=True),
        # as in GLUE's files, a quotation mark is an ordinary character
        ".tsv": partial(_read_delimited, delimiter=_character(sep, "\t"), quoting=csv.QUOTE_NONE),
        ".jsonl": _read_json_lines,
        ".json": _read_json_lines,
    }
    if file.suffix not in readers:
        raise UserError(f"{label} is not a supported table; allowed: {', '.join(readers)}, or a folder of images")
    if not file.is_file():
        raise UserError(f"{label} is missing; paths are relative to data.root, or to the current folder if it is null")
    return readers[file.suffix](file, label)


def read_parquet(file: Path, label: str, columns: Sequence[str] | None = None) -> Columns:
    """Columns of a parquet file, by default all.

    Raises:
        UserError: the file cannot be read, or a column is missing.
    """
    import pyarrow.parquet as parquet
    from pyarrow import ArrowException

    try:
        if columns is not None:
            require_columns(label, parquet.read_schema(file).names, columns)
        return parquet.read_table(file, columns=columns).to_pydict()
    except (ArrowException, OSError, *UNREADABLE) as error:
        raise UserError(f"{label} is not a parquet file that can be read: {first_line(error)}") from error


def require_columns(label: str, present: Sequence[str], columns: Sequence[str]) -> None:
    """Refuses a table that lacks a column."""
    if missing := [name for name in columns if name not in present]:
        near = next((name for name in present if str(name).strip().lower() == missing[0].strip().lower()), None)
        hint = f" (did you mean {near!r}?)" if near is not None else ""
        raise UserError(f"{label}: no column {missing[0]!r} among {', '.join(map(repr, present))}{hint}")


def _character(sep: str | None, default: str) -> str:
    return {None: default, "tab": "\t"}.get(sep, sep or default)


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


def _read_delimited(file: Path, label: str, **dialect: Any) -> Columns:
    csv.field_size_limit(MOST_FIELD)
    lines = csv.reader(io.StringIO(_text(file, label), newline=""), **dialect)
    try:
        header = next(lines, None)
        if not header:
            raise UserError(f"{label} is empty; its first line must name the columns")
        _refuse_other_delimiter(label, header, dialect["delimiter"])
        if twice := [name for name in header if header.count(name) > 1]:
            raise UserError(f"{label}: column {twice[0]!r} is named twice in the first line")
        rows = []
        for row in lines:
            if len(row) != len(header) and row:  # empty lines are skipped
                raise UserError(
                    f"{label}: line {lines.line_num} has {len(row)} fields; the first line has {len(header)} "
                    f"({', '.join(map(repr, header))}); put fields with a {dialect['delimiter']!r} in quotation marks"
                )
            rows += [row] if row else []
    except csv.Error as error:
        raise UserError(f"{label}: line {lines.line_num} cannot be read: {error}") from error
    return {name: [row[i] for row in rows] for i, name in enumerate(header)}


def _read_json_lines(file: Path, label: str) -> Columns:
    rows = []
    for number, line in enumerate(_text(file, label).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if "\\u" in line:
                json.dumps(row, ensure_ascii=False).encode()  # refuses half a surrogate pair
        except (ValueError, RecursionError) as error:
            hint = _as_lines(file) if line.strip() in ("[", "{") else ""
            raise UserError(f"{label}: line {number} is not JSON: {error}{hint}") from error
        if not isinstance(row, dict):
            hint = _as_lines(file) if isinstance(row, list) else ""
            raise UserError(f"{label}: line {number} is {type(row).__name__}; expected one object per line{hint}")
        rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _as_lines(file: Path) -> str:
    """How to write a file that is one JSON list as one object a line."""
    code = f"import pandas; pandas.read_json('{file.name}').to_json('NEW.jsonl', orient='records', lines=True)"
    return f'; to write a list as lines, type python -c "{code}"'


def _text(file: Path, label: str) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")  # with the line ends that a quoted field may hold
    except OSError as error:
        raise UserError(f"{label} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{label}: line {line} is not UTF-8 text; save the file as UTF-8") from error
