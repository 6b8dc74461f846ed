"""A small ViT pretrained on the digits 0 to 4 of scikit-learn's set, to be adapted to 5 to 9.

Real images and real transfer without a hub: 901 images of 8 x 8 pixels (Alpaydin and Kaynak, Optical Recognition of
Handwritten Digits, UCI 1998, as scikit-learn ships them). The model is trained on first use and kept in the cache with
the checksums of its files. It is trained on one thread, because sums over several threads round differently: a
machine always produces the same weights, another kind of processor may not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from experiments.data.digits import digits
from experiments.models.kept import kept
from experiments.runtime.cache import cache_dir
from experiments.runtime.display import tracked

VERSION = 1  # raise when the model changes, also in conf/model/vit_digits.yaml, where it is part of a run's identity
STEPS, BATCH, RATE = 600, 64, 1e-3
EDGE = 16  # pixels after enlarging


def pretrained() -> Path:
    """The folder of the model, created if it is missing or damaged."""
    return kept(cache_dir(None) / f"vit_digits-{VERSION}", _make)


def _make(folder: Path) -> None:
    import transformers

    tf: Any = transformers
    tf.utils.logging.disable_progress_bar()
    config = tf.ViTConfig(
        hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=128, image_size=EDGE,
        patch_size=4, num_labels=5,
    )  # fmt: skip
    images, labels = digits(range(5))
    pixels, targets = _pixels(images), torch.from_numpy(labels)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tf.ViTForImageClassification(config).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, STEPS)
        for _ in tracked(range(STEPS), "pretraining a small ViT (once)"):
            chosen = torch.randint(len(targets), (BATCH,))
            loss = nn.functional.cross_entropy(model(pixel_values=pixels[chosen]).logits, targets[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    torch.set_num_threads(threads)
    model.vit.save_pretrained(folder)
    settings = {"size": {"height": EDGE, "width": EDGE}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings) + "\n", encoding="utf-8")


def _pixels(images: np.ndarray) -> torch.Tensor:
    """(n, 3, EDGE, EDGE), enlarged and normalised as `experiments.data.image_items` does."""
    from PIL import Image

    large = [np.asarray(Image.fromarray(i).convert("RGB").resize((EDGE, EDGE), 2)) for i in images]
    return (torch.from_numpy(np.stack(large)).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
