"""Rank figures of the papers' models: 16 matrix types of BART, 12 layers of DeBERTa; short names, nothing cut off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from drawn import catch, cut_off

from analysis.output.figure import WIDEST
from analysis.sections import rank_maps as figures
from analysis.sections import rank_study_figures as rank_figures
from analysis.sections.matrix_types import layer_map, layers_and_types
from elalora.names import place

ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
ENCODER = [f"self_attn.{part}" for part in ATTENTION] + ["fc1", "fc2"]
DECODER = ENCODER + [f"encoder_attn.{part}" for part in ATTENTION]
BART = [
    f"model.{side}.layers.{layer}.{kind}"
    for side, kinds in (("encoder", ENCODER), ("decoder", DECODER))
    for layer in range(6)
    for kind in kinds
]
PARTS = (*(f"attention.self.{part}_proj" for part in ("query", "key", "value")), "attention.output.dense")
DEBERTA = [
    f"deberta.encoder.layer.{layer}.{kind}"
    for layer in range(12)
    for kind in (*PARTS, "intermediate.dense", "output.dense")
]


def ranks(names: list[str]) -> pd.DataFrame:
    """A map of ranks 0 to 11 in the order of types that figures have."""
    places = {name: place(name) for name in names}
    return layer_map({name: i % 12 for i, name in enumerate(names)}, places)


def test_the_matrices_of_an_encoder_and_decoder_have_short_names_in_the_order_of_the_layer() -> None:
    assert (len(BART), len(DEBERTA)) == (96, 72)
    cells = layers_and_types({name: place(name) for name in BART})
    assert len(set(cells.values())) == 96
    assert cells["model.decoder.layers.3.encoder_attn.v_proj"] == (3, "cross value")
    assert list(ranks(BART).columns) == [
        *(f"enc {kind}" for kind in ("query", "key", "value", "attn out", "ffn in", "ffn out")),
        *(f"dec {kind}" for kind in ("query", "key", "value", "attn out", "ffn in", "ffn out")),
        *(f"cross {kind}" for kind in ("query", "key", "value", "attn out")),
    ]
    assert list(ranks(DEBERTA).columns) == ["query", "key", "value", "attn out", "ffn in", "ffn out"]


def test_matrices_of_images_and_of_decoders_have_the_names_of_an_encoder_s() -> None:
    vit = [*(f"attention.{part}_proj" for part in "kovq"), "mlp.fc1", "mlp.fc2"]
    llama = [*(f"self_attn.{part}_proj" for part in "kovq"), *(f"mlp.{part}_proj" for part in ("down", "gate", "up"))]
    plain = ["query", "key", "value", "attn out", "ffn in", "ffn out"]
    assert list(ranks([f"vit.layers.{i}.{kind}" for i in range(2) for kind in vit]).columns) == plain
    gated = [*plain[:4], "ffn gate", *plain[4:]]
    assert list(ranks([f"model.layers.{i}.{kind}" for i in range(2) for kind in llama]).columns) == gated


@pytest.mark.parametrize("names", [BART, DEBERTA], ids=["bart", "deberta"])
@pytest.mark.slow
def test_maps_and_courses_fit_a_screen_and_cut_nothing_off(
    names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = catch(monkeypatch, figures, rank_figures)
    shown = ranks(names)
    figures.draw_rank_maps(dict.fromkeys(("ElaLoRA (paper)", "LoRA"), shown), 4.0, tmp_path / "ranks", "A title")
    rank_figures.draw_rounds({f"step {i}": shown for i in range(3)}, 4.0, tmp_path / "rounds", "A title", "A source")
    columns = pd.MultiIndex.from_tuples(
        [(kind, layer) for kind in shown.columns for layer in shown.index], names=["type", "layer"]
    )
    course = pd.DataFrame(np.arange(3)[:, None] + np.zeros((3, len(columns))), index=[0, 50, 2000], columns=columns)
    figures.draw_trajectories({"seed 0": course}, tmp_path / "courses", "A title")
    for figure in made:
        assert cut_off(figure) == []
        assert figure.get_size_inches()[0] < WIDEST + 2
    drawn = [axis for axis in made[2].axes if axis.get_visible()]
    assert [axis.get_title() for axis in drawn] == list(shown.columns)
    bars = [axis for axis in made[0].axes + made[1].axes if "rank (white: 4)" in axis.get_ylabel()]
    assert len(bars) == 2 and all(axis.get_ylim()[0] == 0 for axis in bars)  # no colour for a rank below 0


@pytest.mark.parametrize(
    ("layers", "rounds"),
    [pytest.param(12, 8, marks=pytest.mark.slow), pytest.param(12, 300, marks=pytest.mark.slow), (6, 40), (1, 64)],
)
def test_moves_of_many_matrices_and_rounds_fit_a_screen(
    layers: int, rounds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = catch(monkeypatch, rank_figures)
    rows = [f"{kind} {layer}" for kind in ranks(BART).columns for layer in range(layers)]
    drawn = np.random.default_rng(0).integers(-1, 2, (len(rows), rounds))
    net = pd.DataFrame(drawn, index=rows, columns=range(20, 20 + 10 * rounds, 10))
    rank_figures.draw_events(net, (net > 0).astype(float), tmp_path / "moves", "A title", "A source")
    (figure,) = made
    assert cut_off(figure) == []
    width, height = figure.get_size_inches()
    assert width < WIDEST + 2 and height < 13
    panels = figure.axes[:-1]  # the last is the colour bar
    assert [label.get_text() for axis in panels for label in axis.get_yticklabels()] == rows
    kinds = [{label.get_text().rpartition(" ")[0] for label in axis.get_yticklabels()} for axis in panels]
    assert sum(map(len, kinds)) == 16  # no type is torn apart
    shown = np.concatenate([axis.images[0].get_array().filled() for axis in panels])
    assert shown.sum(axis=1) == pytest.approx(net.to_numpy().sum(axis=1))  # joined rounds lose no move
    steps = [label.get_text() for label in panels[0].get_xticklabels()]
    assert steps[0].startswith("20") and steps[-1].endswith(str(10 + 10 * rounds))


def test_sixteen_types_look_different(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = catch(monkeypatch, rank_figures)
    kinds = list(ranks(BART).columns)
    points = pd.DataFrame({"measure": "loss", "panel": "an arm", "type": kinds, "rank": range(16), "rise": 0.1})
    rank_figures.draw_relation(points, tmp_path / "relation", "A title", "A source")
    assert cut_off(made[0]) == []
    looks = {(line.get_marker(), line.get_markerfacecolor(), line.get_color()) for line in made[0].axes[0].lines[:16]}
    assert len(looks) == 16
