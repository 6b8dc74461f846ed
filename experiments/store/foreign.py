"""Reads the files of a run store, which may come from a stranger: what is read is data and nothing else.

Only regular files of bounded size are read. A FIFO or a device would hang or never end, and a symbolic link could lead
a private file of this machine into a table or a compact store, so neither is opened; folders of a store may be links.
JSON and YAML hold plain values: no NaN, no aliases, which could grow a small file without limit, and no tags.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from elalora.errors import first_line
from experiments.runtime.text import DEPTH

if TYPE_CHECKING:
    import pyarrow

MIB = 1 << 20
LARGEST = {".yaml": MIB, ".json": 16 * MIB, ".jsonl": 512 * MIB, ".parquet": 1024 * MIB}  # bytes of a file
GROWTH = 200  # bytes in memory for each byte of a parquet file; compact stores of real runs have 12
ALWAYS_ALLOWED = 64 * MIB  # in memory, however small the file
# what reading and checking a damaged or hostile file may raise
DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Opens a regular file for reading.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: it is a link or no regular file, or larger than `LARGEST`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError(f"{path.name} is a symbolic link, which is not followed") from error
        raise
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path.name} is not a regular file")
        if status.st_size > (most := LARGEST[path.suffix]):
            raise ValueError(f"{path.name} has {status.st_size // MIB} MiB; at most {most // MIB} MiB are allowed")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def read_bytes(path: Path) -> bytes:
    """The content of a regular file; raises as `open_regular`."""
    with open_regular(path) as file:
        return file.read(os.fstat(file.fileno()).st_size)  # a larger bound would be allocated whole


def read_text(path: Path) -> str:
    """The content of a UTF-8 file; raises as `open_regular`."""
    return read_bytes(path).decode("utf-8")


def read_json(path: Path) -> Any:
    """The value of a JSON file; raises as `open_regular`, or RecursionError for one that is nested too deeply."""
    return json.loads(read_text(path), parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def read_yaml(path: Path) -> Any:
    """The value of a YAML file; raises as `open_regular` and `parse_yaml`."""
    return parse_yaml(read_text(path))


def parse_yaml(text: str) -> Any:
    """The value of a YAML text of plain values.

    Raises:
        ValueError: it is no YAML, has an alias or another tag, or is nested too deeply.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    try:
        for event in yaml.parse(text, loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEPTH:
                raise ValueError(f"it is nested deeper than {DEPTH} levels")
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("it has an alias (*NAME), which no stored run has")
        return yaml.load(text, loader)
    except (yaml.YAMLError, *DAMAGE) as error:  # damaged dates and numbers raise whatever their constructors do
        raise ValueError(first_line(error)) from error


def read_tail(path: Path, size: int) -> bytes:
    """The last bytes of a regular file; raises as `open_regular`."""
    with open_regular(path) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - size))
        return file.read(size)


def allowed(size: int) -> int:
    """Bytes that the content of a compressed file of this size may take."""
    return max(ALWAYS_ALLOWED, GROWTH * size)


def read_table(path: Path, columns: list[str]) -> pyarrow.Table:
    """Columns of a parquet file that does not grow beyond reason in memory.

    The footer bounds numbers and the length of texts before anything is unpacked. A short text that a dictionary
    repeats is not in that length, so texts are first read as dictionaries and their repetitions added up.

    Raises:
        ValueError: it would take more than is `allowed`.
        OSError, pyarrow.ArrowException: it is damaged, lacks a column, or as in `open_regular`.
    """
    import pyarrow
    from pyarrow import parquet

    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        limit, threads = allowed(size), size > MIB  # threads cost more time than they save on the files of a run
        source = file if threads else pyarrow.BufferReader(file.read(size))
        footer = parquet.ParquetFile(source, pre_buffer=False)
        groups = [footer.metadata.row_group(number) for number in range(footer.metadata.num_row_groups)]
        _check_growth(path, limit, sum(group.total_byte_size for group in groups))
        footer.scan_contents()  # raises where a footer is damaged; asking it for a column would end the process
        chunks = [group.column(place) for group in groups for place in range(group.num_columns)]
        chunks = [chunk for chunk in chunks if f"{chunk.path_in_schema}.".startswith(tuple(f"{c}." for c in columns))]
        texts = {chunk.path_in_schema for chunk in chunks if chunk.physical_type == "BYTE_ARRAY"}
        if any(chunk.physical_type == "FIXED_LEN_BYTE_ARRAY" for chunk in chunks):
            raise ValueError(f"{path.name} has values of a type that no run has")
        _check_growth(path, limit, sum(max(8 * c.num_values, c.total_uncompressed_size) for c in chunks))
        if sum(c.num_values * c.total_uncompressed_size for c in chunks if c.path_in_schema in texts) > limit:
            source.seek(0)
            short = parquet.ParquetFile(source, read_dictionary=sorted(texts), pre_buffer=False)
            short = short.read(columns, use_threads=threads)
            _check_growth(path, limit, sum(_expanded(column) for column in short.columns))
        return footer.read(columns, use_threads=threads, use_pandas_metadata=False)


def _check_growth(path: Path, limit: int, size: int) -> None:
    if size > limit:
        raise ValueError(
            f"{path.name} would take {size / MIB:.0f} MiB; for a file of its size at most {limit / MIB:.0f} MiB are "
            "allowed"
        )


def _expanded(column: Any) -> int:
    """Bytes of the texts of a column of dictionaries, each counted as often as it is repeated."""
    import pyarrow as pa
    from pyarrow import compute

    total = 0
    for chunk in column.chunks:
        while pa.types.is_list(chunk.type) or pa.types.is_large_list(chunk.type):
            chunk = chunk.flatten()
        if pa.types.is_dictionary(chunk.type):
            lengths = compute.binary_length(chunk.dictionary).cast(pa.int64())
            total += compute.sum(lengths.take(chunk.indices)).as_py() or 0
        else:
            total += chunk.nbytes
    return total
