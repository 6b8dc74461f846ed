"""The pictures of the report's page in docs/img: `python tests/support/page_pictures.py DEMO_STORE`.

The page of the measured study at desktop and phone width, light and dark, and the rank map of a store that `make demo`
made. It needs chromium.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from browser import Browser  # noqa: E402
from PIL import Image  # noqa: E402

from analysis.report import report  # noqa: E402
from experiments.runtime.places import CHECKOUT  # noqa: E402

IMAGES = CHECKOUT / "docs" / "img"
SIZES = {"desktop": (1360, 850), "phone": (390, 780)}
COLOURS = 128  # of a picture's palette: the pages have few


def save(shot: bytes, name: str, box: tuple[int, int, int, int] | None = None) -> None:
    """Writes a part of a screenshot as a small PNG."""
    image = Image.open(BytesIO(shot)).convert("RGB")
    image = (image.crop(box) if box else image).quantize(COLOURS, dither=Image.Dither.NONE)
    image.save(IMAGES / f"{name}.png", optimize=True)


def main(demo: str) -> None:
    demo = str(Path(demo).resolve())
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        out = Path(folder)
        words = {"study": "offline_main", "baseline": "elalora", "with_figures": False, "quiet": True}
        os.chdir(CHECKOUT)  # the page names its stores as they are given
        page = report(["analysis/measured"], out / "study", **words)[0]  # type: ignore[arg-type]
        with Browser(page, out / "profile") as browser:
            for name, size in SIZES.items():
                for scheme in ("light", "dark"):
                    browser.emulate(*size, scheme)
                    time.sleep(1)
                    save(browser.screenshot(), f"page-{name}-{scheme}")
        page = report([demo], out / "demo", with_figures=False, quiet=True)[0]
        with Browser(page, out / "second") as browser:
            browser.emulate(640, 900, "light")
            figure = 'document.querySelector("figure[data-kind=rank_map]")'
            browser.run(f"{figure}.scrollIntoView()")
            time.sleep(1)
            left, top, right = browser.run(f"(at => [at.left, at.top, at.right])({figure}.getBoundingClientRect())")
            bottom = browser.run(f"{figure}.querySelector('.drawing').getBoundingClientRect().bottom")
            save(browser.screenshot(), "demo-ranks", (int(left) - 8, int(top) - 4, int(right) + 8, int(bottom) + 8))


if __name__ == "__main__":
    main(sys.argv[1])
