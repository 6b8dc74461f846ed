"""Loaded data and their fingerprint.

The fingerprint covers the content (order, idx, text or image bytes, labels) and not the files around it, so the same
data have the same fingerprint from parquet, the hub or a text archive, under any version of any library.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elalora.errors import UserError
from experiments.config.task import OPTIONS, DataConfig, TaskConfig

if TYPE_CHECKING:
    from datasets import Dataset

IMAGES_PER_CHUNK = 1_000
ROWS_PER_BATCH = 1_000  # read at once; images may be large


@dataclass(frozen=True)
class TaskData:
    """A task's loaded data, before a protocol assigns the splits.

    Attributes:
        config: the task.
        splits: name -> rows with columns idx (int64), the inputs, and label. Classification and regression: the task's
            text columns, label int64 or float32. Summarization: the document, label (the summary that is trained on),
            references (all summaries, at least one). Image: image (the encoded file's bytes), label int64. Causal: as
            classification, with the options as classes (or a column of each row's options, of which label is the
            number), or as summarization (`experiments.config.task.rows_as`).
        fingerprint: sha256 of the content of all splits.
        source: where the data came from, without paths of this machine.
        verified: whether counts and content were compared with the known official ones.
        remarks: flags that every result on these data carries.
    """

    config: TaskConfig
    splits: dict[str, Dataset]
    fingerprint: str
    source: str
    verified: bool = True
    remarks: Sequence[str] = ()


def data_root(data: DataConfig) -> Path | None:
    """The local data folder, or None if data.root is null.

    Raises:
        UserError: data.root is not a folder.
    """
    if data.root is None:
        return None
    root = Path(data.root).expanduser()
    if not root.is_dir():
        raise UserError(f"data.root={data.root} is not a folder; name an existing one, or type data.root=null")
    return root


def inputs(task: TaskConfig) -> list[str]:
    """Input columns of a loaded split; for images always "image"."""
    return ["image"] if task.kind == "image" else list(task.text)


def reference_list(given: Any) -> Any:
    """One reference as a list of one; other values unchanged, a blank text as None."""
    return ([given] if given.strip() else None) if isinstance(given, str) else given


def make_split(task: TaskConfig, columns: Mapping[str, Sequence[Any]]) -> Dataset:
    """A data set with the columns and types that the rest of the project relies on.

    Args:
        task: determines input columns and label type.
        columns: at least idx, label and the inputs, for summaries also references, of equal length.
    """
    import pyarrow
    from datasets import Dataset, Features, List, Value, concatenate_datasets
    from datasets.fingerprint import generate_random_fingerprint

    label_types = {"regression": "float32", "summarization": "string"}
    types: dict[str, Any] = {"idx": Value("int64")}
    types |= dict.fromkeys(inputs(task), Value("binary" if task.kind == "image" else "string"))
    types["label"] = Value(label_types.get(task.kind, "int64"))
    if task.kind == "summarization":
        types["references"] = List(Value("string"))
    if task.options_column is not None:
        types[OPTIONS] = List(Value("string"))
    if task.domains:
        types["domain"] = Value("int64")
    schema, count = Features(types).arrow_schema, len(columns["idx"])
    if task.kind == "regression":
        columns = {**columns, "label": list(map(float, columns["label"]))}  # Arrow refuses long whole numbers
    # an Arrow array of bytes is limited to 2 GiB, so images are split over several
    chunk = IMAGES_PER_CHUNK if task.kind == "image" else max(count, 1)
    parts = [
        # without a given fingerprint the library pickles the whole table for one
        Dataset(
            pyarrow.table({name: columns[name][i : i + chunk] for name in types}, schema=schema),
            fingerprint=generate_random_fingerprint(),
        )
        for i in range(0, max(count, 1), chunk)
    ]
    return parts[0] if len(parts) == 1 else concatenate_datasets(parts)


def content_hash(splits: Mapping[str, Dataset], task: TaskConfig) -> str:
    """sha256 over split names, idx, inputs and labels, in order.

    Every text and image is preceded by its length, so that moving a character from one column to the next changes the
    hash. Real labels are hashed in single precision, as they are stored; all references of a summary are hashed.
    """
    digest = hashlib.sha256()
    names = inputs(task)
    columns = ["idx", "label", *names, *(["references"] if task.kind == "summarization" else [])]
    columns += ["domain"] if task.domains else []
    columns += [OPTIONS] if task.options_column is not None else []
    for name in sorted(splits):
        digest.update(f"{name}\n{len(splits[name])}\n{len(names)}\n".encode())
        for rows in splits[name].iter(batch_size=ROWS_PER_BATCH):
            cells = (map(_packed, rows[column]) for column in columns)
            digest.update(b"".join(chain.from_iterable(zip(*cells, strict=True))))
    return digest.hexdigest()


def _packed(value: Any) -> bytes:
    """A value as it is hashed; texts, images and lists behind their length."""
    if isinstance(value, str):
        value = value.encode("utf-8")
    if isinstance(value, bytes):
        return _INTEGER(len(value)) + value
    if isinstance(value, int):
        return _INTEGER(value)
    if isinstance(value, float):
        return struct.pack("<f", value)
    return _INTEGER(len(value)) + b"".join(map(_packed, value))


_INTEGER = struct.Struct("<q").pack
