"""Opened images as 8-bit RGB."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

DEEP = 65_535  # white of 16 bits


def as_rgb(image: Image) -> Image:
    """An image in 8-bit RGB; 16-bit grey is scaled, where Pillow's own conversion turns all above 255 white.

    Raises:
        ValueError: pixels of 32 bits that are not within 0 to 255, so that their white is unknown.
    """
    from PIL import Image as images

    if image.mode.startswith("I;16") or image.mode == "I" and image.format in ("PNG", "PPM"):
        deep = np.asarray(image).astype(np.float64)
        image = images.fromarray(np.round(deep * (255 / DEEP)).astype(np.uint8))
    elif image.mode in ("I", "F"):
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 255):
            raise ValueError(
                f"its pixels are 32-bit numbers from {values.min():g} to {values.max():g}; save it with 8 or 16 bits"
            )
    return image.convert("RGB")
