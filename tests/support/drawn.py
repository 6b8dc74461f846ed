"""What a figure shows once it is drawn, for tests that look at figures: texts that are cut off or lie on each other."""

from __future__ import annotations

from typing import Any

import pytest

import analysis.output.figure


def catch(monkeypatch: pytest.MonkeyPatch, *modules: Any) -> list[Any]:
    """Keeps every figure that the given modules make from now on."""
    made: list[Any] = []

    def kept(width: float, height: float) -> Any:
        made.append(new(width, height))
        return made[-1]

    new = analysis.output.figure.new_figure
    for module in modules:
        monkeypatch.setattr(module, "new_figure", kept)
    return made


def cut_off(figure: Any) -> list[str]:
    """Texts that are drawn and reach beyond the figure's edge by more than a pixel."""
    width, height = figure.bbox.width, figure.bbox.height
    return [
        text.get_text()
        for text, box in _texts(figure)
        if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1
    ]


def _texts(figure: Any) -> list[tuple[Any, Any]]:
    """Every text that is drawn, and its box in pixels; labels of ticks beyond an axis exist and are not drawn."""
    from matplotlib.text import Text

    drawn = []
    renderer = figure.canvas.get_renderer()
    with pytest.MonkeyPatch.context() as patch:
        draw = Text.draw
        patch.setattr(Text, "draw", lambda self, to: (drawn.append(self), draw(self, to)))
        figure.draw(renderer)
    return [(text, text.get_window_extent(renderer)) for text in drawn if text.get_text().strip()]
