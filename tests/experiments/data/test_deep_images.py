"""Images of 16 and 32 bits: scaled as their format says, or refused; 8-bit images stay as Pillow reads them."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets_on_disk import own, task_config, write_parquet
from PIL import Image

from elalora.errors import UserError
from experiments.data.content import make_split
from experiments.data.image_items import ImageItems
from experiments.data.pixels import as_rgb

LEVELS = np.arange(0, 65_536, 13, dtype=np.uint16)[:5040].reshape(63, 80)


def png16(pixels: np.ndarray, colour: int) -> bytes:
    """A 16-bit PNG, written by the standard: (height, width) for colour 0 (grey), (height, width, 3) for 2 (RGB)."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def saved(pixels: np.ndarray, form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=form)
    return buffer.getvalue()


def tiff16(pixels: np.ndarray) -> bytes:
    """A big-endian TIFF, which Pillow opens in another mode than its own."""
    height, width = pixels.shape
    tags = [(256, width), (257, height), (258, 16), (259, 1), (262, 1), (273, 8), (277, 1), (278, height)]
    tags.append((279, 2 * pixels.size))
    entries = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in tags)
    body = pixels.astype(">u2").tobytes()
    return b"MM\0*" + struct.pack(">I", 8 + len(body)) + body + struct.pack(">H", len(tags)) + entries + b"\0" * 4


def pgm16(pixels: np.ndarray) -> bytes:
    return b"P5 %d %d 65535\n" % pixels.shape[::-1] + pixels.astype(">u2").tobytes()


def read(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(as_rgb(image))


DEEP = {"PNG": png16(LEVELS, 0), "TIFF": saved(LEVELS, "TIFF"), "big-endian TIFF": tiff16(LEVELS), "PGM": pgm16(LEVELS)}


@pytest.mark.parametrize("form", DEEP)
def test_a_16_bit_grey_image_keeps_its_levels(form: str) -> None:
    exact = LEVELS.astype(np.float64) / 65_535 * 255
    pixels = read(DEEP[form])
    assert pixels.dtype == np.uint8 and pixels.shape == (63, 80, 3)
    assert all(np.abs(pixels[..., channel] - exact).max() <= 0.5 for channel in range(3))


def test_a_16_bit_colour_image_keeps_its_levels_within_one() -> None:
    colours = np.stack([LEVELS, LEVELS[::-1], 65_535 - LEVELS], axis=-1)
    assert np.abs(read(png16(colours, 2)) - colours / 65_535 * 255).max() < 1  # Pillow takes the high byte


def test_a_16_bit_image_reaches_the_model_as_its_8_bit_copy_does() -> None:
    class Processor:
        """Takes images as they are, from -1 to 1."""

        size, divisor, mean, std = (63, 80), 255.0, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

        def fitted(self, image: Any) -> np.ndarray:
            return np.moveaxis(np.array(image), -1, 0).copy()

    shallow = (LEVELS // 257).astype(np.uint8)
    files = [png16(shallow.astype(np.uint16) * 257, 0), saved(shallow, "PNG")]
    rows = make_split(task_config("own_images"), {"idx": [0, 1], "image": files, "label": [0, 1]})
    deep, plain = ImageItems(rows, Processor()).batch([0, 1])["pixel_values"]
    assert (deep == plain).all() and deep.unique().numel() > 200


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_8_bit_images_are_what_pillow_makes_of_them(mode: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 4), dtype=np.uint8), "RGBA")
    image = noise.convert("RGB").convert(mode)
    assert as_rgb(image).tobytes() == image.convert("RGB").tobytes()


def test_32_bit_images_are_read_within_0_to_255_and_refused_beyond_with_their_row(tmp_path: Path) -> None:
    def load(*files: bytes) -> Any:
        write_parquet(tmp_path / "a.parquet", image=list(files), label=[0, 1])
        change = {"name": "own_images", "files": {"validation": "a.parquet"}, "num_labels": 2}
        return own(tmp_path, "a.parquet", None, **change)

    for kind in (np.int32, np.float32):
        inside, beyond = np.array([[0, 5, 255]], kind), np.array([[0, 5, 70_000]], kind)
        assert read(saved(inside, "TIFF"))[0, :, 0].tolist() == [0, 5, 255]
        load(saved(inside, "TIFF"), saved(inside, "TIFF"))
        with pytest.raises(UserError, match=r"row 2 .* its pixels are 32-bit numbers from 0 to 70000; save it with 8"):
            load(saved(inside, "TIFF"), saved(beyond, "TIFF"))
    with pytest.raises(UserError, match="row 1 .* 32-bit numbers from nan"):
        load(saved(np.array([[np.nan]], np.float32), "TIFF"), saved(inside, "TIFF"))
