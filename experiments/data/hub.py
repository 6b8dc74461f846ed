"""Reads official data sets: parquet files in data.root, or else those of one commit on the hub.

`datasets.load_dataset` is not used for the hub: when it cannot reach a commit, it takes the newest copy in its cache,
whatever that copy's commit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from elalora.errors import UserError
from experiments.config.task import DataConfig, TaskConfig
from experiments.data.content import data_root
from experiments.data.image_files import inside
from experiments.data.shards import numbered, official_tables
from experiments.data.tables import Columns, joined, read_parquet, read_table
from experiments.runtime.hub import snapshot


def read_official(
    task: TaskConfig, data: DataConfig, below: str, splits: Iterable[str], columns: Sequence[str] | None = None
) -> tuple[dict[str, Columns], str]:
    """The splits of a data set by name, and their source.

    Args:
        task: names the data set on the hub; without a hub_id it must be in data.root.
        data: where to look first.
        below: the data set's folder in data.root; each split is SPLIT.parquet, or shards named as on the hub.
        splits, columns: names of those to read; None reads all columns.

    Raises:
        UserError: data are missing, cannot be read, or lack a column.
    """
    root, splits = data_root(data), list(splits)
    if root is not None and (root / below).is_dir():
        tables = {}
        for name in splits:
            label, files = f"{below}/{name}.parquet in data.root", official_tables(root / below, name)
            if not files:
                raise UserError(
                    f"{label} is missing; put the official split there, or type data.root=null to read the hub"
                )
            parts = [read_parquet(file, f"{below}/{file.name} in data.root", columns) for file in files]
            tables[name] = joined(parts)
        return tables, f"local folder {below}"
    instead = f"put {' and '.join(f'{name}.parquet' for name in splits)} into FOLDER/{below}/ and type data.root=FOLDER"
    if task.hub_id is None:
        raise UserError(f"task {task.name}: no folder {below} in data.root={data.root}; {instead}")
    return read_hub(task, splits, columns, instead)


def read_hub(
    task: TaskConfig, splits: Sequence[str], columns: Sequence[str] | None, instead: str,
    setting: str = "task.hub_revision",
) -> tuple[dict[str, Columns], str]:  # fmt: skip
    """The splits of a data set on the hub, and their source.

    Args:
        task: its hub_id, hub_name and hub_revision; setting: by which the user gives the last.
        splits, columns: see `read_official`.
        instead: what a user may do where the hub cannot be read, for errors.

    Raises:
        UserError: see `read_official`.
    """
    on_hub, commit = _hub_files(task, splits, instead, setting)
    source = f"hub {task.hub_id} ({task.hub_name or 'default'}) @{commit}"
    return {name: _read_shards(task, on_hub[name], columns) for name in splits}, source


def read_hub_table(task: TaskConfig, file: str, columns: Sequence[str], instead: str) -> tuple[Columns, str]:
    """One table of a repository on the hub whose format is not parquet, and the commit.

    Args:
        task, columns, instead: see `read_hub`.
        file: its path in the repository.

    Raises:
        UserError: no commit is pinned, the hub cannot be read, or the commit has no such file.
    """
    _require_commit(task, instead, "task.hub_revision", "")
    try:
        folder = snapshot(str(task.hub_id), [file], task.hub_revision, "dataset")
    except UserError as error:
        raise _unread(task, instead, error) from error
    if not (folder / file).is_file():
        raise UserError(f"task {task.name}: {task.hub_id} has no file {file} at {task.hub_revision}; {instead}")
    return read_table(folder / file, f"{file} of {task.hub_id}", columns), folder.name


def local_files(root: str | None, below: str, splits: Iterable[str]) -> dict[str, dict[str, Path]]:
    """Split -> its parquet file or files in data.root, where there are some."""
    folder = Path(root or "", below).expanduser()
    found = {name: official_tables(folder, name) for name in splits} if root else {}
    return {name: numbered(files) for name, files in found.items() if files}


def _require_commit(task: TaskConfig, instead: str, setting: str, more: str) -> None:
    if task.hub_revision is None:
        raise UserError(
            f"task {task.name}: the commit of {task.hub_id} on the hub is not pinned; {instead}, or type "
            f"{setting}=COMMIT{more}"
        )


def _unread(task: TaskConfig, instead: str, error: UserError) -> UserError:
    return UserError(f"task {task.name}: {task.hub_id} cannot be read from the hub; {instead} ({error})")


def _hub_files(
    task: TaskConfig, splits: Sequence[str], instead: str, setting: str
) -> tuple[dict[str, list[Path]], str]:
    """The parquet files of each split in the hub's cache, and their commit; what is missing is fetched.

    Raises:
        UserError: no commit is pinned, the hub cannot be read, or the commit has no such files.
    """
    copy = f"{setting}=refs/convert/parquet"
    _require_commit(task, instead, setting, f" ({copy} follows the hub's own parquet copy)")
    try:
        folder = snapshot(str(task.hub_id), ["README.md", ".gitattributes"], task.hub_revision, "dataset")
        described = _described(folder / "README.md", task.hub_name)
        choices = {split: described.get(split) or _usual(split, task.hub_name) for split in splits}
        wanted = [pattern for choice in choices.values() for patterns in choice for pattern in patterns]
        snapshot(str(task.hub_id), wanted, folder.name, "dataset")  # at the commit that a branch had a moment ago
    except UserError as error:
        raise _unread(task, instead, error) from error
    files = {split: _first(folder, choices[split]) for split in splits}
    if missing := [split for split in splits if not files[split]]:
        raise UserError(
            f"task {task.name}: {task.hub_id} has no parquet files of {missing[0]} at {task.hub_revision}, and a "
            f"loading script is never run; {instead}, or type {copy}, the hub's own "
            "parquet copy"
        )
    return files, folder.name


def _described(readme: Path, name: str | None) -> Mapping[str, list[list[str]]]:
    """Split -> the patterns of its files as one choice, for a configuration that the data set's page describes."""
    from huggingface_hub import metadata_load
    from yaml import YAMLError

    try:
        configs = (metadata_load(readme) or {})["configs"] if readme.is_file() else []
        [config] = [config for config in configs if config["config_name"] == (name or "default")]
        return {entry["split"]: [_inside(entry["path"])] for entry in config["data_files"]}
    except (YAMLError, ValueError, KeyError, TypeError, AttributeError):  # it describes none, or in another form
        return {}


def _inside(paths: str | list[str]) -> list[str]:
    return [inside(path, "README.md") for path in ([paths] if isinstance(paths, str) else paths)]


def _usual(split: str, name: str | None) -> list[list[str]]:
    """Choices of patterns where the page does not name the files, the hub's own parquet copy among them."""
    folders = [f"{name}/"] if name else ["data/", "default/", ""]
    return [[f"{folder}{split}{end}"] for folder in folders for end in ("-*.parquet", "/*.parquet", ".parquet")]


def _first(folder: Path, choices: Iterable[list[str]]) -> list[Path]:
    """The parquet files of the first choice that has some, by name."""
    found = ({file for pattern in patterns for file in folder.glob(pattern)} for patterns in choices)
    parquet = (sorted(file for file in files if file.suffix == ".parquet") for files in found)
    return next((files for files in parquet if files), [])


def _read_shards(task: TaskConfig, files: Sequence[Path], columns: Sequence[str] | None) -> Columns:
    """The rows of all files, in order."""
    return joined([read_parquet(file, f"task {task.name}: {file.name} of {task.hub_id}", columns) for file in files])
