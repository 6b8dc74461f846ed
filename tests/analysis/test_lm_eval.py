"""Sample files of lm-evaluation-harness become paired tests of items; the lines are those that lm_eval 0.4.13 wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.lm_eval import compare, main
from analysis.reading.lm_eval_samples import Key, paired, read_samples
from analysis.stats.items import mcnemar
from elalora.errors import UserError


def line(doc: int, metric: str, value: float, filter: str = "none", **more: Any) -> dict[str, Any]:
    whole = {
        "doc_id": doc, "doc": {"text": "a"}, "target": "1", "arguments": {"gen_args_0": {"arg_0": "a", "arg_1": " b"}},
        "resps": [[["-5.2", "False"]]], "filtered_resps": [["-5.2", "False"]], "filter": filter, "metrics": [metric],
        "doc_hash": f"{doc:064x}", "prompt_hash": "1", "target_hash": "2", metric: value,
    }  # fmt: skip
    return whole | more


def write(folder: Path, lines: list[dict[str, Any]], task: str = "arc_easy", day: str = "27") -> Path:
    place = folder / "org__model"
    place.mkdir(parents=True, exist_ok=True)
    file = place / f"samples_{task}_2026-11-{day}T19-18-04.335284.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return folder


def test_items_are_paired_by_number_and_content_whatever_their_order(tmp_path: Path):
    rng = np.random.default_rng(0)
    right = rng.random((2, 40)) < [[0.8], [0.5]]
    folders = []
    for name, values in zip(("arm", "base"), right, strict=True):
        lines = [line(i, "acc", float(v)) for i, v in enumerate(values)]
        folders.append(write(tmp_path / name, lines[:: 1 if name == "arm" else -1]))
    table = compare(folders[:1], folders[1:])
    [row] = table.frame.to_dict("records")
    assert row["difference"] == pytest.approx(100 * (right[0].mean() - right[1].mean()))
    assert row["p"] == f"{mcnemar(right[0], right[1]).p:.2g}" and row["items"] == 40


def test_both_filters_of_gsm8k_are_rows_of_their_own(tmp_path: Path):
    """Each item is in the file twice; counted together, the stricter filter would halve the score."""
    lines = [line(i, "exact_match", float(f == "flexible-extract"), f) for i in range(6)
             for f in ("strict-match", "flexible-extract")]  # fmt: skip
    folder = write(tmp_path, lines, "gsm8k")
    scores = {key.filter: list(values.values()) for key, values in read_samples(folder).items()}
    assert scores == {"strict-match": [0.0] * 6, "flexible-extract": [1.0] * 6}
    assert len(compare([folder], [folder]).rows) == 2


def test_the_newest_file_of_a_task_counts(tmp_path: Path):
    write(tmp_path, [line(0, "acc", 0.0)], day="26")
    write(tmp_path, [line(0, "acc", 1.0)], day="27")
    assert list(read_samples(tmp_path)[Key("arc_easy", "none", "acc")].values()) == [1.0]


def test_two_runs_a_side_have_an_interval_that_draws_runs_and_items(tmp_path: Path):
    arms = [write(tmp_path / f"a{s}", [line(i, "acc", float(i % 4 != s)) for i in range(20)]) for s in range(2)]
    bases = [write(tmp_path / f"b{s}", [line(i, "acc", float(i % 2)) for i in range(20)]) for s in range(2)]
    [row] = compare(arms, bases).rows
    assert row[6].startswith("+25.00 [") and len(row[7].split(", ")) == 2


def test_what_does_not_pair_is_refused(tmp_path: Path, capsys):
    folder = write(tmp_path / "a", [line(i, "acc", 1.0) for i in range(4)])
    fewer = write(tmp_path / "b", [line(i, "acc", 1.0) for i in range(3)])
    other = write(tmp_path / "c", [line(i, "acc", 1.0, doc_hash="f" * 64) for i in range(4)])
    samples = read_samples(folder)
    for wrong in (fewer, other):
        with pytest.raises(UserError, match="the folders have other items of it"):
            paired([samples], [read_samples(wrong)], next(iter(samples)))
    with pytest.raises(UserError, match="name one of each for every seed"):
        compare([folder, fewer], [folder])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="--log_samples"):
        read_samples(tmp_path / "empty")
    broken = write(tmp_path / "d", [{"doc_id": 0}])
    assert main(["--arm", str(broken), "--base", str(folder)]) == 2
    assert "is not a sample file" in capsys.readouterr().err
