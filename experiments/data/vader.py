"""The human-rated sentiment sets of VADER, read from inside a source distribution on PyPI.

Four sets of short texts, each rated from -4 (very negative) to 4 (very positive) by at least 20 people: Hutto &
Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text", ICWSM 2014. They lie in
an archive within the archive of vaderSentiment 3.3.2, which is downloaded once and verified. Both archives are read in
memory; nothing is unpacked to disk.

The source has no splits. Ours are determined by a hash of each group's name and thus independent of any library's
random numbers. Sentences of one document (amazon, nyt) or with one wording (movies, tweets) form a group that is never
split.
"""

from __future__ import annotations

import hashlib
import html
import importlib.util
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from elalora.errors import UserError
from experiments.config.task import DataConfig, TaskConfig
from experiments.data.content import data_root, make_split
from experiments.runtime.cache import cache_dir

if TYPE_CHECKING:
    from datasets import Dataset

SDIST = "vaderSentiment-3.3.2.tar.gz"
SDIST_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
REQUIREMENT = f"vaderSentiment==3.3.2 --hash=sha256:{SDIST_SHA256}\n"
INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
DOMAIN = 100_000  # between the numbers of rows of two domains; no set has as many rows
# The first salt for which the share of positive rows in validation and test lies within 5 points of train in all four
# sets. It was chosen from labels alone, without any model.
SPLIT_SALT = "elalora-vader-10"


@dataclass(frozen=True)
class Subset:
    """File and counts of one set, and whether its ids are document_sentence."""

    file: str
    rows: int
    positive: int
    negative: int
    by_document: bool


SUBSETS = {
    "movies": Subset("movieReviewSnippets", 10_605, 5_242, 5_326, by_document=False),
    "amazon": Subset("amazonReviewSnippets", 3_708, 2_128, 1_482, by_document=True),
    "nyt": Subset("nytEditorialSnippets", 5_190, 2_204, 2_742, by_document=True),
    "tweets": Subset("tweets", 4_200, 2_897, 1_299, by_document=False),
}


@dataclass(frozen=True)
class Row:
    """A rated text: row and id in the source file, mean intensity, and the text."""

    idx: int
    key: str
    score: float
    text: str


def load(task: TaskConfig, data: DataConfig) -> tuple[dict[str, Dataset], str]:
    """Train, validation and test of one set, and their source.

    Raises:
        UserError: unknown subset, archive not available, or counts that differ from the known ones.
    """
    names = task.domains or [task.subset]
    for name in names:
        if name not in SUBSETS:
            setting = f"task.domains={names}: {name}" if task.domains else f"task.subset={name}"
            raise UserError(f"{setting} is not a VADER set; type one of {', '.join(SUBSETS)}")
    inner = member(read_sdist(data), INNER)
    parts = []
    for number, name in enumerate(names):
        rows = parse(member(inner, f"hutto_ICWSM_2014/{SUBSETS[name].file}_GroundTruth.txt"))
        check_counts(name, rows)
        parts.append(make_splits(task, name, rows, number))
    return _together(parts), "vaderSentiment 3.3.2 source distribution"


def _together(parts: list[dict[str, Dataset]]) -> dict[str, Dataset]:
    """The splits of several sets, one after another."""
    from datasets import concatenate_datasets

    if len(parts) == 1:
        return parts[0]
    return {name: concatenate_datasets([part[name] for part in parts]) for name in parts[0]}


def read_sdist(data: DataConfig) -> bytes:
    """The verified source distribution, from data.root, the cache, or PyPI (then cached).

    Raises:
        UserError: it cannot be downloaded, or a file of that name is not the published one.
    """
    root = data_root(data)
    cached = cache_dir(data.cache) / SDIST
    if root is not None and (root / SDIST).is_file():
        return _verified(root / SDIST)
    if not cached.is_file():
        _fetch(cached)
    return _verified(cached)


def _verified(path: Path) -> bytes:
    content = path.read_bytes()
    checksum = hashlib.sha256(content).hexdigest()
    if checksum != SDIST_SHA256:
        raise UserError(
            f"{path} is not the published {SDIST} (sha256 {checksum}, expected {SDIST_SHA256}); remove it and run again"
        )
    return content


def _fetch(target: Path) -> None:
    """Downloads beside the target and moves the whole file into place."""
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=target.parent) as folder:
        # pip checks the hash before it runs the package's build script for metadata
        requirement = Path(folder, "requirement.txt")
        requirement.write_text(REQUIREMENT, encoding="utf-8")
        _pip_download(requirement, Path(folder))
        os.replace(Path(folder, SDIST), target)


def _pip_download(requirement: Path, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--retries", "2", "--timeout", "15"]
    command += ["--no-binary", "vaderSentiment", "--dest", str(folder), "-r", str(requirement)]
    # with setuptools installed pip need not download it to read the metadata
    attempts = [["--no-build-isolation"], []] if importlib.util.find_spec("setuptools") else [[]]
    for extra in attempts:
        done = subprocess.run(command + extra, capture_output=True, text=True, check=False)
        if (folder / SDIST).is_file():
            return
        if "metadata" not in done.stderr:
            break
    errors = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
    reason = next((line for line in errors if line.startswith("ERROR")), errors[-1])
    raise UserError(
        f"{SDIST} could not be fetched from PyPI (pip: {reason.strip()}); download it where there "
        "is a network (pip download --no-deps --no-binary :all: vaderSentiment==3.3.2), put it "
        "into a folder and type data.root=FOLDER"
    )


def member(archive: bytes, name: str) -> bytes:
    """One regular file of a tar archive, read in memory.

    Raises:
        UserError: no such file, or a member is a link, a device, or a path that leads out of the archive, so that it
            cannot be the published archive.
    """
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        match = None
        for item in tar:
            path = PurePosixPath(item.name)
            if path.is_absolute() or ".." in path.parts or not (item.isfile() or item.isdir()):
                raise UserError(f"the archive holds {item.name!r}, which is not a regular file inside it; refused")
            if item.isfile() and item.name == name:
                match = item
        stream = tar.extractfile(match) if match else None
        if stream is None:
            raise UserError(f"the archive has no file {name}")
        return stream.read()


def parse(raw: bytes) -> list[Row]:
    """Rows of a *_GroundTruth.txt file: id, mean intensity and text, separated by tabs and CRLF.

    The source escaped &, < and > for HTML in part of its texts; they are unescaped once.

    Raises:
        UserError: a line without three fields, or an intensity outside -4 to 4.
    """
    rows = []
    for idx, line in enumerate(raw.decode("utf-8").removesuffix("\r\n").split("\r\n")):
        fields = line.split("\t")
        if len(fields) != 3:
            raise UserError(f"line {idx + 1} has {len(fields)} fields; expected id, intensity, text")
        score = float(fields[1])
        if not -4 <= score <= 4:
            raise UserError(f"line {idx + 1} has intensity {score}, which is not between -4 and 4")
        rows.append(Row(idx, fields[0], score, html.unescape(fields[2]).strip()))
    return rows


def check_counts(subset: str, rows: list[Row]) -> None:
    """Refuses numbers of rows, positives and negatives that are not the known ones."""
    known = SUBSETS[subset]
    counts = (len(rows), sum(r.score > 0 for r in rows), sum(r.score < 0 for r in rows))
    if counts != (known.rows, known.positive, known.negative):
        raise UserError(
            f"VADER {subset} has {counts[0]} rows ({counts[1]} above zero, {counts[2]} below); "
            f"expected {known.rows} ({known.positive}, {known.negative})"
        )


def group_of(row: Row, by_document: bool) -> str:
    """The group that must stay in one split: the document, or all rows with the same wording."""
    return row.key.partition("_")[0] if by_document else " ".join(row.text.casefold().split())


def assign(subset: str, rows: list[Row]) -> list[str]:
    """The split of every row: 10 % test, 10 % validation, the rest train, by whole groups.

    Groups are taken in the order of a hash of their names until a split has its share, so test and validation exceed
    10 % by at most one group each.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for position, row in enumerate(rows):
        groups[group_of(row, SUBSETS[subset].by_document)].append(position)
    order = sorted(groups, key=lambda g: hashlib.sha256(f"{SPLIT_SALT}/{subset}/{g}".encode()).digest())
    splits = ["train"] * len(rows)
    quota = {"test": len(rows) / 10, "validation": len(rows) / 10}
    for group in order:
        name = next((name for name, left in quota.items() if left > 0), None)
        if name is None:
            break
        quota[name] -= len(groups[group])
        for position in groups[group]:
            splits[position] = name
    return splits


def make_splits(task: TaskConfig, subset: str, rows: list[Row], domain: int = 0) -> dict[str, Dataset]:
    """The three splits; binary tasks label by sign and drop zeros after splitting.

    A binary task and the regression on the same set therefore share rows, idx and splits.

    Args:
        task: determines input column and labels; subset: of the rows.
        domain: the subset's position in task.domains, which also keeps the numbers of rows apart.
    """
    binary = task.kind == "classification"
    splits = assign(subset, rows)
    result = {}
    for name in ("train", "validation", "test"):
        chosen = [row for row, split in zip(rows, splits, strict=True) if split == name]
        if binary:
            chosen = [row for row in chosen if row.score != 0]
        labels = [int(row.score > 0) if binary else row.score for row in chosen]
        texts = {task.text[0]: [row.text for row in chosen]}
        idx = [domain * DOMAIN + row.idx for row in chosen]
        result[name] = make_split(task, {"idx": idx, **texts, "label": labels, "domain": [domain] * len(chosen)})
    return result
