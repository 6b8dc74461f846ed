"""The ViT pretrained on digits 0 to 4 and the task of the digits 5 to 9."""

from __future__ import annotations

import io
import json
import time

import numpy as np
import pandas
import pytest
import torch
import yaml
from PIL import Image
from sklearn.datasets import load_digits
from tiny_runs import ROOT, command

from experiments.config.compose import compose_run
from experiments.data import digits as task_digits
from experiments.models import digits

SETTINGS = ("trainer=standard", "trainer.max_steps=300", "trainer.lr=1e-2", "threads=1")


def test_the_task_is_the_digits_5_to_9_in_fixed_parts_that_share_no_image():
    config = compose_run(["task=digits", "model=vit_digits", "trainer=standard"])
    splits, _ = task_digits.load(config.task, config.data)
    assert {name: len(split) for name, split in splits.items()} == {"train": 179, "validation": 179, "test": 538}
    images, labels = load_digits(return_X_y=True)
    theirs = np.rint(images[labels >= 5].reshape(-1, 8, 8) * 255 / 16).astype(int)
    wanted = labels[labels >= 5] - 5
    rows = [i for split in splits.values() for i in split["idx"]]
    assert sorted(rows) == list(range(len(wanted)))
    for split in splits.values():
        assert set(split["label"]) == set(range(5))
        for i, file, label in zip(split["idx"], split["image"], split["label"], strict=True):
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(file))), theirs[i]) and label == wanted[i]


def test_the_models_version_enters_a_runs_identity():
    told = yaml.safe_load((ROOT / "conf" / "model" / "vit_digits.yaml").read_text(encoding="utf-8"))
    assert told["revision"] == str(digits.VERSION)


def test_the_same_weights_whatever_the_threads_and_a_damaged_model_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(digits, "STEPS", 4)
    monkeypatch.setenv("ELALORA_CACHE", str(tmp_path / "one"))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        weights = digits.pretrained() / "model.safetensors"
        first, made = weights.read_bytes(), weights.stat().st_mtime_ns
        digits.pretrained()
        assert weights.stat().st_mtime_ns == made
        weights.write_bytes(first[:-4] + b"\0\0\0\1")
        digits.pretrained()
        assert weights.read_bytes() == first
        monkeypatch.setenv("ELALORA_CACHE", str(tmp_path / "two"))
        torch.set_num_threads(2)
        assert (digits.pretrained() / "model.safetensors").read_bytes() == first
        assert torch.get_num_threads() == 2 and [p.name for p in (tmp_path / "two").glob("[!.]*")] == ["vit_digits-1"]
    finally:
        torch.set_num_threads(before)


def test_pretraining_shows_a_bar_on_a_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(digits, "STEPS", 2)
    monkeypatch.setenv("ELALORA_CACHE", str(tmp_path))
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    digits.pretrained()
    assert "pretraining a small ViT" in capsys.readouterr().err


@pytest.mark.full
def test_lora_beats_the_head_alone_by_three_points_and_its_adapter_is_what_stock_peft_loads(tmp_path):
    """At one rate and number of steps, over five seeds; made in well under two minutes by the first run."""
    cache = {"ELALORA_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    start = time.monotonic()
    made = command("model=vit_digits", "task=digits", "method=head", *SETTINGS, f"store.root={tmp_path}", env=cache)
    assert made.returncode == 0, made.stderr
    assert time.monotonic() - start < 120
    words = ("-m", "model=vit_digits", "task=digits", "method=lora,head", "seed=range(5)", *SETTINGS)
    done = command(*words, f"store.root={tmp_path}", env=cache)
    assert done.returncode == 0, done.stderr
    results = [json.loads(f.read_text(encoding="utf-8")) for f in (tmp_path / "digits").glob("*/result.json")]
    scores = {(r["method"], r["seed"]): r["readings"]["last"]["report"]["metrics"]["accuracy"] for r in results}
    gains = [scores["lora", seed] - scores["head", seed] for seed in range(5)]
    assert len(scores) == 10 and sum(gains) / 5 >= 3, gains

    import peft
    from transformers import ViTForImageClassification

    folder = next((tmp_path / "digits").glob("lora-r4-s0-*"))
    told = json.loads((folder / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    plain = ViTForImageClassification.from_pretrained(told["base_model_name_or_path"], num_labels=5)
    model = peft.PeftModel.from_pretrained(plain, folder / "adapter").eval()
    stored = pandas.read_parquet(folder / "predictions.parquet").sort_values("idx")
    images, labels = digits.digits(range(5, 10))
    rows = stored["idx"].to_numpy()
    with torch.no_grad():
        again = model(pixel_values=digits._pixels(images[rows])).logits.argmax(-1).numpy()
    assert np.array_equal(stored["label"].to_numpy(), labels[rows])
    assert np.array_equal(again, stored["prediction"].to_numpy())
