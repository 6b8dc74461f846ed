"""A model's image processor: transformers resizes and crops, the arithmetic on the pixels is done here.

The classes of transformers know what `preprocessor_config.json` means: a shortest edge and a central crop in DINOv2 and
CLIP, an edge and a share of it in ConvNeXt, height and width in ViT and Swin. They work on bytes, by PIL, which also
keeps the cache of decoded images small. Rescaling and normalising follow in float32.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from elalora.errors import UserError, first_line
from experiments.config.schema import ModelConfig

SETTINGS = "preprocessor_config.json"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BICUBIC = 3  # PIL's number
PROBES = ((61, 47), (47, 61))  # height and width of images that are tried at load
TOLERANCE = 1e-5  # between float32 here and what the class computes


@dataclass(frozen=True)
class ImageProcessor:
    """The input format of an image model.

    Attributes:
        processor: that of transformers, which resizes and crops.
        size: (height, width) of what it makes.
        divisor: of the bytes, 255 for values in 0..1.
        mean, std: of each channel, after dividing.
        resample: number of a PIL filter.
    """

    processor: Any
    size: tuple[int, int]
    divisor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: int

    def fitted(self, image: Any) -> np.ndarray:
        """A PIL image in RGB, resized and cropped: (3, height, width) uint8."""
        done = self.processor(image, do_rescale=False, do_normalize=False, resample=self.resample, return_tensors="np")
        return np.ascontiguousarray(done["pixel_values"][0])


def image_processor(model: ModelConfig, folder: Path, imagenet: bool) -> ImageProcessor:
    """The image processor of a model folder.

    Args:
        model: for messages.
        folder: has preprocessor_config.json, and config.json, which names the class where the former does not.
        imagenet: resample and normalise as ElaLoRA's image code does, whatever the checkpoint was trained with.

    Raises:
        UserError: it does not load, makes images of several sizes, or does more than resize, crop, rescale and
            normalise.
    """
    made = _described(_loaded(model, folder))
    shapes = {made.fitted(_noise(*probe)).shape for probe in PROBES}
    if len(shapes) > 1:
        raise UserError(
            f"model.path={model.path}: its {SETTINGS} makes images of several sizes; set a size of height and width, "
            "or do_center_crop with a crop_size"
        )
    channels, height, width = shapes.pop()
    made = replace(made, size=(height, width))
    image = _noise(*PROBES[0])
    theirs = made.processor(image, return_tensors="np")["pixel_values"][0]
    mean, std = (np.reshape(values, (3, 1, 1)) for values in (made.mean, made.std))
    ours = (made.fitted(image) / made.divisor - mean) / std
    if channels != 3 or not np.allclose(ours, theirs, atol=TOLERANCE * max(1.0, float(np.abs(theirs).max()))):
        raise UserError(
            f"model.path={model.path}: {type(made.processor).__name__} does more than resize, crop, rescale and "
            "normalise, which is not supported; choose another image model"
        )
    if imagenet:
        return replace(made, divisor=255.0, mean=IMAGENET_MEAN, std=IMAGENET_STD, resample=BICUBIC)
    return made


def _loaded(model: ModelConfig, folder: Path) -> Any:
    """The class of transformers with these settings, from its two files alone."""
    from transformers import AutoImageProcessor
    from transformers.utils import logging

    logging.set_verbosity_error()
    try:
        with tempfile.TemporaryDirectory() as alone:  # transformers would also read files that the identity lacks
            for name in (SETTINGS, "config.json"):
                shutil.copyfile(folder / name, Path(alone) / name)
            return AutoImageProcessor.from_pretrained(alone, backend="pil", trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise UserError(f"model.path={model.path}: its {SETTINGS} does not load ({first_line(error)})") from error


def _described(processor: Any) -> ImageProcessor:
    divisor = 1 / processor.rescale_factor if processor.do_rescale else 1.0
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ((0.0,) * 3, (1.0,) * 3)
    resample = getattr(processor, "resample", None)
    return ImageProcessor(
        processor, (0, 0), divisor, tuple(map(float, mean)), tuple(map(float, std)),
        BICUBIC if resample is None else int(resample),
    )  # fmt: skip


def _noise(height: int, width: int) -> Any:
    from PIL import Image

    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
