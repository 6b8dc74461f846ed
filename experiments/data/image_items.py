"""Image items for the model: decoded, resized, cropped, rescaled and normalised.

There is no augmentation and no random crop (the VTAB-1k protocol uses none), so a batch is a pure function of its
items. Decoded images are cached as bytes if the split fits into MEMORY.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from elalora.errors import UserError
from experiments.data.pixels import as_rgb

if TYPE_CHECKING:
    from datasets import Dataset

MEMORY = 512 * 2**20  # largest split in bytes whose decoded images are cached


class ImageItems:
    """Items of an image task.

    Args:
        dataset: columns idx, image (the encoded file's bytes) and label.
        processor: has size (height, width), divisor, mean and std (3,), and makes bytes of that size by `fitted`
            (`experiments.models.images`).
    """

    truncated = 0

    def __init__(self, dataset: Dataset, processor: Any) -> None:
        self.files, self.processor = dataset.select_columns(["image"]), processor
        self.idx = torch.tensor(dataset["idx"][:], dtype=torch.int64)
        self.labels = torch.tensor(dataset["label"][:], dtype=torch.int64)
        self.mean = torch.tensor(processor.mean).view(3, 1, 1)
        self.std = torch.tensor(processor.std).view(3, 1, 1)
        height, width = processor.size
        self._decoded: dict[int, Tensor] | None = {} if 3 * height * width * len(self.idx) <= MEMORY else None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> np.ndarray:
        """Ones, (n,): all images cost the same."""
        return np.ones(len(self), dtype=np.int64)

    def weight(self, indices: Sequence[int]) -> float:
        """The number of images."""
        return float(len(indices))

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """pixel_values (b, 3, height, width) float32 and labels (b,).

        Raises:
            UserError: an image cannot be decoded.
        """
        stacked = torch.stack([self._pixels(i) for i in indices])  # uint8
        return {
            "pixel_values": (stacked.float() / self.processor.divisor - self.mean) / self.std,
            "labels": self.labels[torch.as_tensor(indices)],
        }

    def _pixels(self, index: int) -> Tensor:
        """(3, height, width) uint8."""
        if self._decoded is not None and index in self._decoded:
            return self._decoded[index]
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(io.BytesIO(self.files[index]["image"])) as image:
                fitted = self.processor.fitted(as_rgb(image))
        except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(f"image {int(self.idx[index])} cannot be decoded: {error}") from error
        pixels = torch.from_numpy(fitted)
        if self._decoded is not None:
            self._decoded[index] = pixels
        return pixels
