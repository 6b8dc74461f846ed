"""docs/img/wings.svg, the wings of the packages drawn from their imports: `python -m analysis.docs_pages.wings`.

`WINGS` declares which wing stands on which; tests/project/test_wings.py holds the imports to it and draws the picture
again. An import inside a function, or for type checking only, counts like any other.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from experiments.runtime.pipes import as_command
from experiments.runtime.places import CHECKOUT

PICTURE = "docs/img/wings.svg"
PACKAGES = ("elalora", "baselines", "experiments", "analysis")  # each may import those before it
COMMANDS = "commands"  # the modules of a package that lie in no folder
# by package: levels from the top, each of which may import those below it; None leaves a place of the picture empty
WINGS: dict[str, tuple[tuple[str | None, ...], ...]] = {
    "elalora": ((COMMANDS,),),
    "baselines": ((COMMANDS,),),
    "experiments": (
        (None, COMMANDS, None, "tools"),
        ("bench", None, "studies", None),
        (None, "launch", None, None),
        (None, "runs", None, None),
        ("training", "models", None, "standins"),
        (None, "data", None, None),
        ("store", None, "config", None),
        (None, "runtime", None, None),
    ),
    "analysis": (
        ("docs_pages", "notebooks"),
        (COMMANDS,),
        ("sections",),
        ("reading",),
        ("stats", "output"),
    ),
}
Wing = tuple[str, str]  # package and name
Graph = Mapping[str, set[str]]  # what each module imports


def sources(package: str) -> list[Path]:
    """The Python files of a package."""
    return sorted((CHECKOUT / package).rglob("*.py"))


def imports_of(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, wherever in it; a.b of `from a import b`, whatever b is."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level or node.module is None:
                raise ValueError(f"{path}:{node.lineno}: relative import; name the package")
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def graph() -> Graph:
    """Every module of the four packages with the modules of theirs that it imports."""
    files = {_module(path): path for package in PACKAGES for path in sources(package)}
    edges: dict[str, set[str]] = {}
    for module, path in files.items():
        modules = {name if name in files else name.rpartition(".")[0] for name in imports_of(path)}
        edges[module] = modules & set(files) - {module}
    return edges


def _module(path: Path) -> str:
    return ".".join(path.relative_to(CHECKOUT).with_suffix("").parts).removesuffix(".__init__")


def wing_of(module: str) -> Wing:
    """The wing of a module: its folder in its package."""
    package, *rest = module.split(".")
    if rest and (CHECKOUT / package / rest[0]).is_dir():
        return package, rest[0]
    return package, COMMANDS


def level_of(wing: Wing) -> tuple[int, int]:
    """Where a wing stands: its package, and its level in the package; an import leads to a lower one.

    Raises:
        LookupError: WINGS does not declare it.
    """
    package, name = wing
    for number, names in enumerate(reversed(WINGS[package])):
        if name in names:
            return PACKAGES.index(package), number
    raise LookupError(f"{package}/{name} is not in WINGS of {__name__}; add it at its level")


@cache
def arrows() -> Mapping[Wing, set[Wing]]:
    """Which wings each wing imports."""
    edges: dict[Wing, set[Wing]] = {}
    for module, targets in graph().items():
        edges.setdefault(wing_of(module), set()).update(wing_of(target) for target in targets)
    return {wing: targets - {wing} for wing, targets in edges.items()}


def needed(wing: Wing) -> list[Wing]:
    """The arrows of a wing inside its package that do not follow from its other arrows."""
    targets = {target for target in arrows()[wing] if target[0] == wing[0]}
    implied = {further for target in targets for further in _below(target)}
    return sorted(targets - implied)


def _below(wing: Wing) -> set[Wing]:
    """All that a wing reaches; an arrow that leads up is not followed, so that a circle does not trap this."""
    lower = [target for target in arrows()[wing] if level_of(target) < level_of(wing)]
    return {further for target in lower for further in ({target} | _below(target))}


# -- the picture -------------------------------------------------------------------------------------------

WIDTH, HEIGHT, PITCH_X, PITCH_Y = 110, 46, 122, 84  # of a box, and from one to the next
PAD, HEAD, EDGE = 18, 36, 12  # inside a package's frame: around the boxes, for its name; around everything
LABELS = {"elalora": "library", "baselines": "methods", "experiments": "commands", "analysis": "report"}
STYLE = """
  text { font-family: Helvetica, Arial, sans-serif; text-anchor: middle; fill: #1f2937 }
  .package { font-size: 16px; font-weight: bold; text-anchor: start; fill: #4b5563 }
  .wing { font-size: 15px; font-weight: bold }
  .files { font-size: 12px; fill: #6b7280 }
  .frame { fill: #f3f4f6; stroke: #d1d5db }
  .box { fill: #ffffff; stroke: #6366f1; stroke-width: 1.5 }
  .arrow { fill: none; stroke: #6b7280; stroke-width: 1.4; marker-end: url(#tip) }
  .thick { fill: none; stroke: #a5b4fc; stroke-width: 7; marker-end: url(#thick) }
"""


@dataclass(frozen=True)
class Frame:
    """A package in the picture: its upper left corner and its size."""

    package: str
    x: float
    y: float
    width: float
    height: float


def frame(package: str, x: float, y: float) -> Frame:
    """A frame with room for the levels of a package."""
    levels = WINGS[package]
    width = (max(map(len, levels)) - 1) * PITCH_X + WIDTH + 2 * PAD
    return Frame(package, x, y, width, HEAD + (len(levels) - 1) * PITCH_Y + HEIGHT + PAD)


def strip(package: str, y: float, above: Frame) -> Frame:
    """A low frame, as wide as another, for a package of one wing; its name is beside the box."""
    return Frame(package, above.x, y, above.width, HEIGHT + 2 * EDGE)


def places(inside: Frame) -> dict[Wing, tuple[float, float]]:
    """Upper middle of the box of every wing that has files."""
    levels, middles = WINGS[inside.package], {}
    if levels == ((COMMANDS,),):
        return {(inside.package, COMMANDS): (inside.x + inside.width - PAD - WIDTH / 2, inside.y + EDGE)}
    for row, names in enumerate(levels):
        left = inside.x + inside.width / 2 - (len(names) - 1) * PITCH_X / 2
        for column, name in enumerate(names):
            if name is not None and (inside.package, name) in arrows():
                middles[inside.package, name] = (left + column * PITCH_X, inside.y + HEAD + row * PITCH_Y)
    return middles


def draw() -> str:
    """The picture as SVG."""
    analysis = frame("analysis", EDGE, EDGE)
    experiments = frame("experiments", analysis.x + analysis.width + 56, EDGE)
    bottom = experiments.y + experiments.height
    elalora = strip("elalora", bottom - HEIGHT - 2 * EDGE, analysis)
    baselines = strip("baselines", (analysis.y + analysis.height + elalora.y - elalora.height) / 2, analysis)
    frames = [analysis, experiments, baselines, elalora]
    middles = {wing: middle for one in frames for wing, middle in places(one).items()}
    width, height = experiments.x + experiments.width + EDGE, bottom + EDGE
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}">',
        "<title>The wings of the packages; an arrow leads from a wing to one that it imports</title>",
        f"<style>{STYLE}</style>",
        f"<defs>{_tip('tip', '#6b7280', 7)}{_tip('thick', '#a5b4fc', 2.6)}</defs>",
        f'<rect width="{width:g}" height="{height:g}" fill="#ffffff"/>',
    ]
    for one in frames:
        size = f'width="{one.width:g}" height="{one.height:g}"'
        name_y = one.y + (one.height / 2 + 5 if one in (baselines, elalora) else 24)
        lines.append(f'<rect class="frame" x="{one.x:g}" y="{one.y:g}" {size} rx="8"/>')
        lines.append(f'<text class="package" x="{one.x + PAD:g}" y="{name_y:g}">{one.package}/</text>')
    lines += _between(analysis, experiments, baselines, elalora)
    lines += _curves(middles)
    for wing, (x, y) in middles.items():
        lines += _box(wing, x, y)
    return "\n".join([*lines, "</svg>", ""])


def _tip(name: str, colour: str, size: float) -> str:
    return (
        f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="{size:g}" markerHeight="{size:g}" '
        f'orient="auto"><path d="M0 0 L10 5 L0 10 Z" fill="{colour}"/></marker>'
    )


def _between(analysis: Frame, experiments: Frame, baselines: Frame, elalora: Frame) -> list[str]:
    """The arrows from package to package; those that follow from them are left out."""
    left, right, middle = analysis.x + analysis.width, experiments.x, baselines.y + baselines.height / 2
    high = analysis.y + analysis.height / 2
    column = baselines.x + baselines.width / 2
    return [
        f'<path class="thick" d="M{left + 4:g} {high:g} H{right - 6:g}"/>',
        f'<path class="thick" d="M{right - 4:g} {middle:g} H{left + 6:g}"/>',
        f'<path class="thick" d="M{column:g} {baselines.y + baselines.height + 4:g} V{elalora.y - 6:g}"/>',
    ]


def _curves(middles: Mapping[Wing, tuple[float, float]]) -> list[str]:
    """An arrow for each pair of wings, spread over the edges of their boxes so that no two meet."""
    pairs = [(upper, lower) for upper in middles for lower in needed(upper)]
    lines = []
    for upper, lower in pairs:
        x = _end(upper, lower, [end for start, end in pairs if start == upper], middles)
        to_x = _end(lower, upper, [start for start, end in pairs if end == lower], middles)
        y, to_y = middles[upper][1] + HEIGHT, middles[lower][1] - 2
        turn = to_y + 2 - PITCH_Y + HEIGHT  # it passes levels in its own column and turns in the last gap
        half = (turn + to_y) / 2
        bend = f"C{x:g} {half:g} {to_x:g} {half:g} {to_x:g} {to_y:g}"
        lines.append(f'<path class="arrow" d="M{x:g} {y:g} V{turn:g} {bend}"/>')
    return lines


def _end(wing: Wing, other: Wing, others: list[Wing], middles: Mapping[Wing, tuple[float, float]]) -> float:
    """Where on a box's edge the arrow from or to another box ends, among those of all boxes on that side."""
    number = sorted(others, key=lambda one: middles[one][0]).index(other)
    return middles[wing][0] + (number - (len(others) - 1) / 2) * min(30, WIDTH / (len(others) + 1))


def _box(wing: Wing, x: float, y: float) -> list[str]:
    package, name = wing
    modules = [module for module in graph() if wing_of(module) == wing]
    files = sum(1 for path in map(_file, modules) if path.name != "__init__.py")
    shown = LABELS[package] if name == COMMANDS else name
    targets = ", ".join("/".join(target).removesuffix(f"/{COMMANDS}") for target in sorted(arrows()[wing]))
    return [
        f"<g><title>{package}/{name}: imports {targets or 'no other wing'}</title>",
        f'<rect class="box" x="{x - WIDTH / 2:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>',
        f'<text class="wing" x="{x:g}" y="{y + 20:g}">{shown}</text>',
        f'<text class="files" x="{x:g}" y="{y + 37:g}">{files} file{"" if files == 1 else "s"}</text></g>',
    ]


def _file(module: str) -> Path:
    path = CHECKOUT / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def main(words: list[str] | None = None) -> int:
    """Writes the picture."""
    about = "Draws the wings of the packages from their imports."
    argparse.ArgumentParser(prog="python -m analysis.docs_pages.wings", description=about).parse_args(words)
    (CHECKOUT / PICTURE).write_text(draw(), encoding="utf-8")
    print(f"Written: {PICTURE}")
    return 0


if __name__ == "__main__":
    as_command(main)
