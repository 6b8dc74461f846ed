"""Names of matrices: patterns that choose them, the layer of one, and its place in a map of ranks.

A pattern is a dotted name matched from the end of a module's name, component by component, with shell
wildcards inside a component: `query` matches every module called query, and `layer.*.output.dense` matches
`bert.encoder.layer.0.output.dense` but not `bert.encoder.layer.0.attention.output.dense`.

Without torch, so that tables are made without loading it.
"""

from __future__ import annotations

from fnmatch import fnmatchcase


def matches(name: str, pattern: str) -> bool:
    """Whether the last components of a dotted module name match the pattern's components."""
    have, want = name.split("."), pattern.split(".")
    if len(want) > len(have):
        return False
    return all(fnmatchcase(h, w) for h, w in zip(have[-len(want) :], want, strict=True))


def layer_of(name: str) -> str:
    """The layer that a matrix belongs to: its module's name up to the first number, or all of a name without one."""
    parts = name.split(".")
    end = next((i + 1 for i, part in enumerate(parts) if part.isdigit()), len(parts))
    return ".".join(parts[:end])


def place(name: str) -> tuple[int, str]:
    """(layer, matrix type) of a module name, for maps of ranks; the first number in the name is the layer.

    `bert.encoder.layer.3.attention.self.query` is (3, "attention.self.query"). In an encoder-decoder model the type
    starts with the side: `model.decoder.layers.0.fc1` is (0, "decoder fc1").
    """
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    if not numbers:
        return 0, name
    at = numbers[0]
    side = next((p + " " for p in ("decoder", "encoder") if p in parts[:at] and parts[at - 1] == "layers"), "")
    return int(parts[at]), side + ".".join(parts[at + 1 :])
