"""docs/img/wings.svg, the wings of the packages drawn from their imports: `python -m analysis.docs_pages.wings`.

`WINGS` declares which wing stands on which; tests/project/test_wings.py holds the imports to it and draws the picture
again. An import inside a function, or for type checking only, counts like any other.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from experiments.runtime.pipes import as_command
from experiments.runtime.places import CHECKOUT

PICTURE = "docs/img/wings.svg"
PACKAGES = ("elalora", "baselines", "experiments", "analysis")  # each may import those before it
COMMANDS = "commands"  # the modules of a package that lie in no folder
# by package: levels from the top, each of which may import those below it; None leaves a place of the picture empty
WINGS: dict[str, tuple[tuple[str | None, ...], ...]] = {
    "elalora": ((None, COMMANDS),),
    "baselines": ((None, COMMANDS),),
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
    "analysis": (("docs_pages", "notebooks"), (COMMANDS,), ("sections",), ("reading",), ("stats", "output")),
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
            if node.level > 1 or node.module is None:
                raise ValueError(f"{path}:{node.lineno}: relative import of more than a neighbour; name the package")
            package = f"{path.parent.name}." if node.level else ""
            yield from (f"{package}{node.module}.{alias.name}" for alias in node.names)


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


WIDTH, HEIGHT, PITCH_X, PITCH_Y = 110, 46, 122, 84  # of a box, and from one to the next
PAD, HEAD, EDGE, GAP = 14, 30, 12, 56  # in a package's frame, and for its name; around everything, between columns
LABELS = {"elalora": "library", "baselines": "methods", "experiments": "commands", "analysis": "report"}
START = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}">
<title>The wings of the packages; an arrow leads from a wing to one that it imports</title>
<style>
  text {{ font-family: Helvetica, Arial, sans-serif; text-anchor: middle; fill: #1f2937 }}
  .package {{ font-size: 16px; font-weight: bold; text-anchor: start; fill: #4b5563 }}
  .wing {{ font-size: 15px; font-weight: bold }}
  .files {{ font-size: 12px; fill: #6b7280 }}
  .frame {{ fill: #f3f4f6; stroke: #d1d5db }}
  .box {{ fill: #ffffff; stroke: #6366f1; stroke-width: 1.5 }}
  .arrow {{ fill: none; stroke: #6b7280; stroke-width: 1.4; marker-end: url(#tip) }}
  .thick {{ fill: none; stroke: #a5b4fc; stroke-width: 7; marker-end: url(#thick) }}
  marker {{ overflow: visible }}
</style>
<defs>
<marker id="tip" orient="auto"><path d="M-6 -3.5 L1 0 L-6 3.5 Z" fill="#6b7280"/></marker>
<marker id="thick" orient="auto"><path d="M-1.5 -1.3 L1 0 L-1.5 1.3 Z" fill="#a5b4fc"/></marker>
</defs>
<rect width="{width}" height="{height}" fill="#ffffff"/>"""


def draw() -> str:
    """The picture as SVG: on the left analysis above baselines and elalora, on the right experiments."""
    size = {
        package: (
            (max(map(len, levels)) - 1) * PITCH_X + WIDTH + 2 * PAD,
            HEAD + (len(levels) - 1) * PITCH_Y + HEIGHT + PAD,
        )
        for package, levels in WINGS.items()
    }
    (left, tall), (right, whole), (_, low) = size["analysis"], size["experiments"], size["elalora"]
    x, y = EDGE + left + GAP, EDGE + whole - low
    middle = (EDGE + tall + y - low) / 2
    corners = {"analysis": (EDGE, EDGE), "experiments": (x, EDGE), "baselines": (EDGE, middle), "elalora": (EDGE, y)}
    lines = [START.format(width=x + right + EDGE, height=whole + 2 * EDGE)]
    tops: dict[Wing, tuple[float, float]] = {}  # upper middle of every box
    for package, (at_x, at_y) in corners.items():
        width, height = size[package]
        lines.append(f'<rect class="frame" x="{at_x}" y="{at_y:g}" width="{width}" height="{height}" rx="8"/>')
        lines.append(f'<text class="package" x="{at_x + PAD}" y="{at_y + 22:g}">{package}/</text>')
        for row, names in enumerate(WINGS[package]):
            first = at_x + (width - (len(names) - 1) * PITCH_X) / 2
            for column, name in enumerate(names):
                if name is not None:
                    tops[package, name] = (first + column * PITCH_X, at_y + HEAD + row * PITCH_Y)
    for way in (  # from package to package; the arrows that follow from these are left out
        f"M{EDGE + left + 4} {EDGE + tall / 2:g} H{x - 10}",
        f"M{x - 4} {middle + low / 2:g} H{EDGE + left + 10}",
        f"M{EDGE + left / 2:g} {middle + low + 2:g} V{y - 10:g}",
    ):
        lines.append(f'<path class="thick" d="{way}"/>')
    return "\n".join([*lines, *_arrows(tops), *(_box(wing, *top) for wing, top in tops.items()), "</svg>", ""])


def _arrows(tops: Mapping[Wing, tuple[float, float]]) -> Iterator[str]:
    """An arrow for each pair of wings, spread over the edges of their boxes so that no two meet."""
    pairs = [(upper, lower) for upper in tops for lower in needed(upper)]

    def end(wing: Wing, other: Wing, others: list[Wing]) -> float:
        number = sorted(others, key=lambda one: tops[one][0]).index(other)
        return tops[wing][0] + (number - (len(others) - 1) / 2) * min(30, WIDTH / (len(others) + 1))

    for upper, lower in pairs:
        x = end(upper, lower, [target for source, target in pairs if source == upper])
        to_x = end(lower, upper, [source for source, target in pairs if target == lower])
        y, to_y = tops[upper][1] + HEIGHT, tops[lower][1] - 2
        turn = to_y + 2 - PITCH_Y + HEIGHT  # it passes levels in its own column and turns in the last gap
        half = (turn + to_y) / 2
        bend = f"C{x:g} {half:g} {to_x:g} {half:g} {to_x:g} {to_y:g}"
        yield f'<path class="arrow" d="M{x:g} {y:g} V{turn:g} {bend}"/>'


def _box(wing: Wing, x: float, y: float) -> str:
    package, name = wing
    files = sum(path.name != "__init__.py" and wing_of(_module(path)) == wing for path in sources(package))
    label = LABELS[package] if name == COMMANDS else name
    targets = ", ".join("/".join(target).removesuffix(f"/{COMMANDS}") for target in sorted(arrows()[wing]))
    return (
        f"<g><title>{package}/{name}: imports {targets or 'no other wing'}</title>\n"
        f'<rect class="box" x="{x - WIDTH / 2:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>\n'
        f'<text class="wing" x="{x:g}" y="{y + 20:g}">{label}</text>\n'
        f'<text class="files" x="{x:g}" y="{y + 37:g}">{files} file{"" if files == 1 else "s"}</text></g>'
    )


def main(words: list[str] | None = None) -> int:
    """Writes the picture."""
    about = "Draws the wings of the packages from their imports."
    argparse.ArgumentParser(prog="python -m analysis.docs_pages.wings", description=about).parse_args(words)
    (CHECKOUT / PICTURE).write_text(draw(), encoding="utf-8")
    print(f"Written: {PICTURE}")
    return 0


if __name__ == "__main__":
    as_command(main)
