"""What `python -m experiments examples` shows of a run."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from tiny_runs import config

from elalora import UserError
from experiments.__main__ import main
from experiments.examples import examples
from experiments.runs.plan import make_plan
from experiments.runs.run import run
from experiments.standins.folder import standins

QUICK = ["trainer.max_steps=6", "trainer.batch_size=8", "store.checkpoint_every=0", "method=lora"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A run on reviews of the user's own."""
    place = tmp_path_factory.mktemp("texts")
    for name, rows in (("train", 40), ("validation", 8), ("test", 12)):
        lines = [f"{'a good film' if i % 2 else 'a bad film'} {name} {i},{i % 2}" for i in range(rows)]
        (place / f"{name}.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    words = [f"task.files.{n}={place}/{n}.csv" for n in ("train", "validation", "test")]
    model = [
        "model=local",
        f"model.path={standins()}/models/bert",
        "task=own",
        "task.text=[text]",
        "task.max_length=32",
    ]
    plan = make_plan(
        config(*QUICK, *model, *words, "task.num_labels=2", "data.train_items=null", f"store.root={place}/r")
    )
    run(plan)
    return plan.folder.path


def test_items_come_with_their_text_label_and_prediction(texts, capsys):
    task, shown = examples(texts, count=5)
    assert len(shown) == 5 and all("film test" in row["text"] for row in shown)
    assert all(row["label"] == ("good" in row["text"]) for row in shown)
    assert main(["examples", str(texts), "--count", "3"]) == 0
    out = capsys.readouterr().out
    assert out.count("item ") == 3 and "prediction" in out and "text: a " in out


def test_only_wrong_ones_when_asked(texts):
    _, wrong = examples(texts, count=100, wrong=True)
    _, every = examples(texts, count=100)
    assert {row["idx"] for row in wrong} == {row["idx"] for row in every if row["label"] != row["prediction"]}
    assert len(every) == 12


def test_a_folder_that_is_no_run_is_one_line(tmp_path, capsys):
    assert main(["examples", str(tmp_path)]) == 2
    assert "is not the folder of a run" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text("task: {}\n")
    with pytest.raises(UserError, match="config.yaml"):
        examples(tmp_path, 3)


def test_images_are_a_grid_with_a_caption_each(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("validation", 2), ("test", 3)):
        for label, name in enumerate(("dark", "light")):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 100, (8, 8, 3)) + 150 * label
                buffer = io.BytesIO()
                Image.fromarray(pixels.astype(np.uint8)).save(buffer, "png")
                (folder / f"{i}.png").write_bytes(buffer.getvalue())
    words = [f"task.files.{n}={tmp_path}/pictures/{n}" for n in ("train", "validation", "test")]
    model = ["model=local", f"model.path={standins()}/models/vit", "task=own_images", "task.num_labels=2"]
    plan = make_plan(config(*QUICK, *model, *words, "data.train_items=null", f"store.root={tmp_path}/runs"))
    run(plan)
    out = tmp_path / "grid.png"
    assert main(["examples", str(plan.folder.path), "--out", str(out)]) == 0
    with Image.open(out) as image:
        assert image.width > 800 and image.height > 400 and len(image.convert("L").getcolors(256)) > 50
