"""A small ViT pretrained on the digits 0 to 4 of scikit-learn's set, to be adapted to 5 to 9.

Real images and real transfer anywhere, without a hub: 901 images of 8 x 8 pixels (Alpaydin and Kaynak, Optical
Recognition of Handwritten Digits, UCI 1998, as scikit-learn ships them). It is made on first use and kept in the cache.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

VERSION = 1  # raise it when the model changes
STEPS, BATCH, RATE = 600, 64, 1e-3
EDGE = 16  # pixels after enlarging


def pretrained() -> Path:
    """The folder of the model, made where it is missing or damaged."""
    from experiments.data.content import cache_dir

    folder = cache_dir(None) / f"vit-digits-{VERSION}"
    if not (folder / "preprocessor_config.json").is_file():
        part = folder.with_name(f"{folder.name}.{os.getpid()}")
        _make(part)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            part.rename(folder)  # whole or not at all
        except OSError:  # another process was first
            shutil.rmtree(part)
    return folder


def digits(classes: range) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 8, 8) of grey values 0..255 and labels (n,) counted from the first class, in the set's order."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    chosen = np.isin(labels, list(classes))
    grey = np.rint(images[chosen].reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    return grey, labels[chosen] - classes.start


def _make(folder: Path) -> None:
    import transformers

    tf: Any = transformers
    config = tf.ViTConfig(
        hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=128, image_size=EDGE,
        patch_size=4, num_labels=5,
    )  # fmt: skip
    images, labels = digits(range(5))
    pixels, targets = _pixels(images), torch.from_numpy(labels)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tf.ViTForImageClassification(config).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, STEPS)
        for _ in range(STEPS):
            chosen = torch.randint(len(targets), (BATCH,))
            loss = nn.functional.cross_entropy(model(pixel_values=pixels[chosen]).logits, targets[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.vit.save_pretrained(folder)
    told = {"size": {"height": EDGE, "width": EDGE}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(told) + "\n", encoding="utf-8")


def _pixels(images: np.ndarray) -> torch.Tensor:
    """(n, 3, EDGE, EDGE), enlarged and normalised as `experiments.data.images` does."""
    from PIL import Image

    large = [np.asarray(Image.fromarray(i).convert("RGB").resize((EDGE, EDGE), 2)) for i in images]
    return (torch.from_numpy(np.stack(large)).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
