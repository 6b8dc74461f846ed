"""Image processors of every common family, against those of transformers and against PIL by hand."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
import transformers as tf
from architectures import random_model
from datasets import Dataset
from PIL import Image
from transformers import AutoImageProcessor
from transformers.utils import is_torchvision_available

from elalora import UserError
from experiments.config.schema import ModelConfig
from experiments.config.task import TaskConfig
from experiments.data.image_items import ImageItems
from experiments.models.fit import fit
from experiments.models.images import IMAGENET_MEAN, IMAGENET_STD, image_processor

NORMAL = {"image_mean": [0.48, 0.45, 0.4], "image_std": [0.26, 0.25, 0.27], "do_normalize": True, "do_resize": True}
CROP = {"do_center_crop": True, "crop_size": {"height": 28, "width": 28}}
CLIP = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 28}, "resample": 3, **CROP, **NORMAL}
FAMILIES = {  # the sizes of the published files over 8: 256 and 224 pixels are 32 and 28
    "dinov2": {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 32}, "resample": 3}
    | CROP | NORMAL,
    "clip": CLIP,
    "clip of old": CLIP | {"feature_extractor_type": "CLIPFeatureExtractor", "size": 28, "crop_size": 28},
    "convnext": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 28}, "crop_pct": 0.875}
    | NORMAL,
    "convnext at 384": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}} | NORMAL,
    "swin": {"image_processor_type": "ViTImageProcessor", "size": {"height": 28, "width": 28}, "resample": 3} | NORMAL,
    "vit of old": {"feature_extractor_type": "ViTFeatureExtractor", "size": 28, "resample": 2} | NORMAL,
    "deit": {"image_processor_type": "DeiTImageProcessor", "size": {"height": 32, "width": 32}, "resample": 3}
    | CROP | NORMAL,
    "not square": {"image_processor_type": "ViTImageProcessor", "size": {"height": 24, "width": 40}} | NORMAL,
}  # fmt: skip
CHANGES = {
    "as published": {},
    "not normalised": {"do_normalize": False},
    "bytes": {"do_rescale": False},
    "another factor": {"rescale_factor": 1 / 127.5},
    "no crop": {"do_center_crop": False, "size": {"height": 28, "width": 28}},
    "nearest": {"resample": 0},
}


def processor(folder, settings, kind="vit", imagenet=False):
    folder.mkdir(exist_ok=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    return image_processor(ModelConfig(name="m", path=str(folder)), folder, imagenet)


def pictures():
    """Wide, high, square, smaller than the model's size, and exactly of it; in colour and grey."""
    rng = np.random.default_rng(0)
    shapes = [(50, 90, 3), (77, 41, 3), (64, 64, 3), (20, 23, 3), (28, 28, 3), (60, 45)]
    return [Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes]


def batch(made):
    files = []
    for image in pictures():
        buffer = io.BytesIO()
        image.save(buffer, "png")
        files.append(buffer.getvalue())
    rows = {"idx": list(range(len(files))), "image": files, "label": [0] * len(files)}
    return ImageItems(Dataset.from_dict(rows), made).batch(range(len(files)))["pixel_values"]


def theirs(folder, backend):
    library = AutoImageProcessor.from_pretrained(folder, backend=backend)
    return torch.cat([library(i.convert("RGB"), return_tensors="pt")["pixel_values"] for i in pictures()])


CASES = (
    [(family, "as published") for family in FAMILIES]
    + [("dinov2", c) for c in CHANGES]
    + [("swin", c) for c in CHANGES]
)


@pytest.mark.parametrize(("family", "change"), dict.fromkeys(CASES))
def test_pixels_are_those_of_transformers(family, change, tmp_path):
    made = processor(tmp_path, FAMILIES[family] | CHANGES[change])
    ours, expected = batch(made), theirs(tmp_path, "pil").float()
    assert ours.dtype == torch.float32 and tuple(ours.shape[2:]) == made.size
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not is_torchvision_available(), reason="fast image processors need torchvision")
@pytest.mark.parametrize("family", FAMILIES)
def test_pixels_are_those_of_the_fast_image_processors_but_for_rounding(family, tmp_path):
    made = processor(tmp_path, FAMILIES[family])
    levels = (batch(made) - theirs(tmp_path, "torchvision").float()).abs() * 255 * min(made.std)
    assert levels.max() < 6 and levels.mean() < 0.5  # of 255; most in noise, where bicubic overshoots


def test_a_shortest_edge_and_a_central_crop_are_what_pil_does_by_hand(tmp_path):
    made = processor(tmp_path, FAMILIES["dinov2"])
    for image, ours in zip(pictures(), batch(made), strict=True):
        width, height = image.size
        scale = 32 / min(width, height)
        small = image.convert("RGB").resize((int(width * scale), int(height * scale)), Image.Resampling.BICUBIC)
        left, top = (small.width - 28) // 2, (small.height - 28) // 2
        pixels = np.asarray(small.crop((left, top, left + 28, top + 28)), dtype=np.float64) / 255
        expected = (pixels - NORMAL["image_mean"]) / np.array(NORMAL["image_std"])
        np.testing.assert_allclose(ours.numpy(), expected.transpose(2, 0, 1), atol=1e-5)


def test_vit_is_bit_for_bit_what_it_was(tmp_path):
    """Resized by PIL to height and width, and in float32 (bytes / 255 - mean) / std."""
    made = processor(tmp_path, FAMILIES["vit of old"])
    mean, std = (torch.tensor(NORMAL[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))
    for image, ours in zip(pictures(), batch(made), strict=True):
        bytes_ = torch.from_numpy(np.array(image.convert("RGB").resize((28, 28), Image.Resampling.BILINEAR)))
        assert torch.equal(ours, (bytes_.permute(2, 0, 1).float() / 255 - mean) / std)


def test_the_format_of_elaloras_code_replaces_the_checkpoints(tmp_path):
    made = processor(tmp_path, FAMILIES["vit of old"] | {"do_rescale": False, "do_normalize": False}, imagenet=True)
    assert (made.mean, made.std, made.divisor, made.resample) == (IMAGENET_MEAN, IMAGENET_STD, 255.0, 3)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (FAMILIES["dinov2"] | {"do_center_crop": False}, "makes images of several sizes; set a size of"),
        (FAMILIES["swin"] | {"do_resize": False}, "makes images of several sizes"),
        ({"image_processor_type": "EfficientNetImageProcessor", "size": {"height": 28, "width": 28},
          "rescale_offset": True, "rescale_factor": 1 / 127.5}, "EfficientNetImageProcessorPil does more than resize"),
        ({"image_processor_type": "MartianImageProcessor"}, "its preprocessor_config.json does not load"),
        (FAMILIES["swin"] | {"size": {"height": 28}}, "its preprocessor_config.json does not load"),
    ],
    ids=["edge only", "not resized", "an offset", "unknown", "no width"],
)  # fmt: skip
def test_formats_that_cannot_be_obeyed_are_refused_in_one_line(settings, line, tmp_path):
    with pytest.raises(UserError, match=line) as caught:
        processor(tmp_path, settings)
    assert "\n" not in str(caught.value)


IMAGE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
TEXT = IMAGE | {"vocab_size": 40, "bos_token_id": 1, "eos_token_id": 2}
NETWORKS = {  # and whether it takes 28 x 28 pixels although its configuration names 56
    "dinov2": (tf.Dinov2Config(**IMAGE, image_size=56, patch_size=14), True),
    "convnext": (tf.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, image_size=56), True),
    "swin": (
        tf.SwinConfig(image_size=56, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=7),
        True,
    ),
    "vit": (tf.ViTConfig(**IMAGE, image_size=56, patch_size=14), False),
    "clip": (tf.CLIPConfig(vision_config=IMAGE | {"image_size": 56, "patch_size": 14}, text_config=TEXT), False),
}


@pytest.mark.parametrize("family", NETWORKS)
def test_a_model_takes_the_size_that_its_forward_pass_takes(family, tmp_path):
    settings, fits = NETWORKS[family]
    network = random_model(tf.AutoModelForImageClassification.from_config, settings)
    made = processor(tmp_path, FAMILIES["dinov2"])
    task = TaskConfig(name="t", source="files", subset="t", kind="image", text=["image"])
    own = ModelConfig(name="m", path="here")
    if fits:
        fit(own, task, network.train(), made)
        assert network.training and network(pixel_values=batch(made)).logits.isfinite().all()
    else:
        with pytest.raises(UserError, match="model.path=here expects images of 56, its .* makes 28 x 28"):
            fit(own, task, network, made)


def test_code_and_other_files_of_the_folder_are_not_read(tmp_path):
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {"size": 8}}))
    (tmp_path / "own.py").write_text("raise RuntimeError('run')")
    auto = {"auto_map": {"AutoImageProcessor": "own.Own"}}
    assert processor(tmp_path, FAMILIES["swin"] | auto).size == (28, 28)
