"""A report on a stranger's runs: any text is shown as text, and what is damaged costs a line and not the report."""

from __future__ import annotations

import csv
import io
import json
import time
from pathlib import Path

import pandas as pd
import pytest

from analysis.__main__ import main
from analysis.output.figure import new_figure, save_figure
from analysis.output.table import Table
from analysis.output.writers import to_csv
from analysis.reading.runs import load_runs
from analysis.reading.settings import command
from analysis.report import report
from analysis.sections import cost
from elalora.errors import UserError
from experiments.standins.stored_runs import modules, moved_run, result, write_run

STEERING = "\x1b[2J\x07\u202e\u2066\x9b\ud800"  # clears the screen, rings, reverses the text behind


def written(folder: Path) -> str:
    paths = [path for path in folder.iterdir() if path.suffix in (".md", ".csv", ".tex")]
    return "".join(path.read_text(encoding="utf-8") for path in paths)


@pytest.mark.parametrize("text", [r"$\foo$", r"\$", r"$\mathdefault{x$$"])
def test_a_name_with_dollar_signs_is_drawn_as_it_is(text: str, tmp_path: Path) -> None:
    figure = new_figure(3, 3)
    axis, other = figure.subplots(1, 2)
    axis.plot([1, 2], [1, 200], label=text)
    axis.set_yscale("log")
    axis.set_title(text)
    axis.set_xticks([1, 2], [text, text])
    axis.legend()
    figure.colorbar(other.imshow([[1.0]]), label=text)
    save_figure(figure, tmp_path / "figure", text, text, text)
    assert [label.get_text() for label in axis.get_xticklabels()] == [text, text] and axis.get_title() == text
    assert all(not label.get_parse_math() for label in (*axis.get_xticklabels(), axis.title, *axis.get_legend().texts))
    assert any(label.get_parse_math() for label in axis.get_yticklabels())  # powers of ten


def test_matrix_types_that_are_no_formula_do_not_end_the_report(tmp_path: Path) -> None:
    names = modules()
    places = {name: [layer, rf"$\foo{kind}$"] for name, (layer, kind) in names.items()}
    moved_run(tmp_path / "runs", 0, 81.0, ranks__places=places)
    files = report([tmp_path / "runs"], tmp_path / "out", quiet=True)
    page = files[0].read_text()
    assert any(file.suffix == ".png" for file in files) and "left out" not in page
    assert r"$\foo" in page


def test_a_section_that_fails_is_a_line_and_the_others_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(2):
        write_run(tmp_path / "runs", result("lora", seed, 80.0 + seed))

    def fails(*_: object) -> None:
        raise KeyError("\x1b[2Jsomething that one run lacks")

    monkeypatch.setattr(cost, "sections", fails)
    files = report([tmp_path / "runs"], tmp_path / "out", with_figures=False)
    assert "comparison.md" in {file.name for file in files} and not (tmp_path / "out" / "cost.md").exists()
    said = capsys.readouterr().out
    for text in (said, files[0].read_text()):
        assert "section cost: left out, KeyError" in text and "something that one run lacks" in text
        assert "\x1b[2J" not in text


def test_the_command_exits_with_1_where_a_section_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "runs", result("lora", 0, 80.0))
    words = [str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--no-figures"]
    assert main(words) == 0
    monkeypatch.setattr(cost, "sections", lambda *_: 1 / 0)
    assert main(words) == 1
    assert "analysis: section cost: left out, ZeroDivisionError" in capsys.readouterr().err
    assert (tmp_path / "out" / "comparison.md").is_file()


def test_a_disk_that_is_full_still_ends_the_report_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "runs", result("lora", 0, 80.0))

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cost, "sections", fails)
    with pytest.raises(UserError, match="No space left"):
        report([tmp_path / "runs"], tmp_path / "out", with_figures=False, quiet=True)


def test_no_text_of_a_store_steers_a_terminal_or_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"name": "lora", f"k{STEERING}": STEERING}
    texts = {"label": f"lora{STEERING}", "flags": [f"odd{STEERING}"], "data__citation": STEERING, "recipe": STEERING}
    texts |= {"identity__method": settings, "protocol": f"clean{STEERING}"}
    for seed in range(2):
        write_run(tmp_path / "runs", result("lora", seed, 80.0, **texts), versions={f"torch{STEERING}": STEERING})
        write_run(tmp_path / "runs", result("elalora", seed, 81.0))
    damaged = tmp_path / "runs" / "vader_movies" / "x\x1b[2J\u202e"
    for name, content in (("a", "{}"), ("b", '{"schema": "\x1b"}')):
        (damaged / name).mkdir(parents=True)
        (damaged / name / "result.json").write_text(content)
    (damaged / "c").mkdir()
    (damaged / "c" / "status.json").write_text(json.dumps({"state": STEERING, "error": STEERING, "failure": STEERING}))
    report([tmp_path / "runs"], tmp_path / "out", with_figures=False)
    for text in (capsys.readouterr().out, written(tmp_path / "out"), (tmp_path / "out" / "index.html").read_text()):
        assert not [c for c in STEERING if not c.isprintable() and c in text] and "x1b" in text and "u202e" in text
    assert len(load_runs(tmp_path / "runs")) == 4


def test_a_label_of_any_length_is_cut(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / "runs", result("lora", seed, 80.0, label="long " * 40_000, data__citation="c" * 200_000))
        write_run(tmp_path / "runs", result("elalora", seed, 81.0 + seed))
    began = time.perf_counter()
    report([tmp_path / "runs"], tmp_path / "out", quiet=True, with_figures=False)
    assert time.perf_counter() - began < 20
    assert "long " * 201 not in written(tmp_path / "out") and "c" * 1001 not in written(tmp_path / "out")
    assert max(len(row["label"]) for row in load_runs(tmp_path / "runs").to_dict("records")) < 1010


FORMULAS = ["=cmd|' /C calc'!A0", "+cmd", "-cmd|x", "@SUM(A1)", "\t=1", "\uff1d1", "-2+3+cmd|' /C calc'!A0"]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_text_is_no_formula_in_a_spreadsheet(text: str, tmp_path: Path) -> None:
    frame = pd.DataFrame({"name": [text, "lora"], "score": [-1.5, 2.0], text: [None, "-0.25 +0.50 -1e-05"]})
    (header, first, second) = csv.reader(io.StringIO(to_csv(Table("", [], [], [], frame)), newline=""))
    assert header == ["name", "score", "'" + text] and first == ["'" + text, "-1.5", ""]
    assert second == ["lora", "2.0", "-0.25 +0.50 -1e-05"]  # numbers stay numbers
    write_run(tmp_path / "runs", result("lora", 0, 80.0, label=text, data__citation=text, flags=[text]))
    report([tmp_path / "runs"], tmp_path / "out", quiet=True, with_figures=False)
    tables = [path.read_text(encoding="utf-8") for path in (tmp_path / "out").glob("*.csv")]
    cells = [cell for table in tables for row in csv.reader(io.StringIO(table)) for cell in row]
    assert not [cell for cell in cells if cell.strip() == text.strip()] and any(text.strip() in cell for cell in cells)


def test_the_command_of_a_foreign_setting_names_no_path_to_type() -> None:
    settings = {
        "method": {"name": "lora", "alpha": 16.0, "x; rm -rf": "/etc", "ranks_from": "/x/y"},
        "task": {"name": "rte", "hub_id": "evil/data"},
        "model": {"name": "minilm"},
        "data": {"root": "/etc", "train_items": 9},
    }
    typed, _, rest = command(settings, "r4", [0, 1]).partition(" (and, if you trust this store: ")
    assert typed.startswith("python run.py -m method=lora ") and "data.train_items=9" in typed and "seed=0,1" in typed
    assert not [word for word in ("/", "rm", "evil", "root") if word in typed]
    assert "data.root=/etc" in rest and "task.hub_id=evil/data" in rest


def test_a_command_names_places_where_the_identity_has_digests() -> None:
    settings = {
        "method": {"name": "lora"},
        "task": {"name": "own", "source": "files", "files": {"train": "d" * 64, "test": "e" * 64, "validation": None}},
        "model": {
            "name": "local",
            "sha256": "a" * 64,
            "files": {"config.json": "b" * 64, "model.safetensors": "c" * 64},
        },
    }
    line = command(settings, "r4", [0])
    assert not [digest for digest in "abde" if digest * 64 in line]
    assert all(word in line for word in ("model.path=FOLDER", "task.files.train=FILE", "task.files.test=FILE"))
