"""The settings that a result stores: flat, compared, and as the command that makes the run again."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from analysis.reading.result_row import NO_BUDGET
from experiments.runtime.places import CONF

NOT_TYPED = ("name", "sha256", "ranks_from_arm", "init_from_arm")  # told by other words, or found at load


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys, the way they are typed as overrides."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differing(settings: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Dotted keys that are not the same in all of the given settings, with their distinct values as text."""
    flats = [flatten(tree) for tree in settings]
    keys = sorted({key for flat in flats for key in flat})
    found = {key: list(dict.fromkeys(shown(flat.get(key)) for flat in flats)) for key in keys}
    return {key: values for key, values in found.items() if len(values) > 1}


def command(settings: Mapping[str, Any], budget: str, seeds: Iterable[int]) -> str:
    """`python run.py` with every word that differs from what `conf/` would give.

    Args:
        settings: the identity of a run without its seed.
        budget: r4, params330000, or "none".
        seeds: to be run.
    """
    words = []
    for group in ("method", "task", "model", "protocol"):
        given = dict(settings.get(group) or {})
        name = str(given.get("name", ""))
        words.append(f"{group}={name}")
        words += _changed(group, given, _defaults(group, name))
    if budget.startswith("params"):
        words += ["budget=params", f"budget.params={budget.removeprefix('params')}"]
    elif budget != NO_BUDGET:
        words.append(f"budget={budget}")
    for group in ("trainer", "data"):
        words += _changed(group, dict(settings.get(group) or {}), _defaults(group, ""))
    numbers = ",".join(str(seed) for seed in sorted(seeds))
    many = " -m" if "," in numbers else ""
    return f"python run.py{many} " + " ".join(shlex.quote(word) for word in [*words, f"seed={numbers}"])


def changed_knobs(settings: Mapping[str, Any]) -> list[str]:
    """The method's knobs that are not as conf/method gives them, as they are typed, without the group's name."""
    given = dict(settings.get("method") or {})
    words = _changed("method", given, _defaults("method", str(given.get("name", ""))))
    return [word.removeprefix("method.") for word in words]


def words_of_source(source: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """The words by which a run names another one that it starts from: what that one has different.

    Args:
        source: settings of the other run.
        settings: of the run that names it.
    """
    name = str((source.get("method") or {}).get("name"))
    task = [str((tree.get("task") or {}).get("name")) for tree in (source, settings)]
    words = [] if name == (settings.get("method") or {}).get("name") else [name, *changed_knobs(source)]
    words += [f"task={task[0]}"] if task[0] != task[1] else []
    return " ".join([*words, *_changed("trainer", source.get("trainer") or {}, settings.get("trainer") or {})])


def told_apart(knobs: Iterable[Sequence[str]]) -> list[list[str]]:
    """What of each list of changed knobs is not in all of them: the base of an ablation keeps none."""
    lists = list(knobs)
    common = set.intersection(*(set(changed) for changed in lists)) if lists else set()
    return [[knob for knob in changed if knob not in common] for changed in lists]


def cell_of(settings: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """(ranks, D1, D2) of a run's settings as positions in the factorial, None for a run outside of it.

    The other side effects must be off: the factorial is run with variant=paper.
    """
    method = settings.get("method", {})
    switches = (int(bool(method.get("D1"))), int(bool(method.get("D2"))))
    if method.get("name") == "svd_lora":
        inside = not method.get("ranks_from") and method.get("D4", "off") == "off"
        return (0, *switches) if inside else None
    if method.get("name") != "elalora" or method.get("variant", "paper") != "paper":
        return None
    if method.get("D4") not in (None, "off") or any(method.get(name) for name in ("D8", "D12", "D15")):
        return None
    random = method.get("importance") == "random" or method.get("expansion") == "random"
    return (1 if random else 2, *switches)


def arm_suffix(settings: Mapping[str, Any]) -> tuple[str, set[str]]:
    """What the name of a cell of the factorial adds, ", random moves + D1", and the method's knobs that it tells."""
    cell = cell_of(settings)
    if cell is None or settings["method"].get("importance") not in PLAIN:
        return "", set()
    words = [", random moves"] if cell[0] == 1 else []
    words += [f" + {name}" for name, on in zip(("D1", "D2"), cell[1:], strict=True) if on]
    return "".join(words), {"D1", "D2", "importance"}


PLAIN = (None, "random", "sensitivity_uncertainty")  # importances that such a name tells apart


@cache
def _defaults(group: str, name: str) -> dict[str, Any]:
    """What a group holds when nothing of it is typed."""
    from omegaconf import OmegaConf

    from experiments.config.schema import ModelConfig, TrainerConfig
    from experiments.config.task import DataConfig, ProtocolConfig, TaskConfig

    schemas = {
        "task": TaskConfig, "model": ModelConfig, "protocol": ProtocolConfig, "trainer": TrainerConfig,
        "data": DataConfig,
    }  # fmt: skip
    base = OmegaConf.to_container(OmegaConf.structured(schemas[group])) if group in schemas else {}
    path = CONF / group / f"{name}.yaml" if name else CONF / "trainer" / "quick.yaml"
    if not re.fullmatch(r"\w{0,80}", name) or not path.is_file():
        return dict(base)
    file = OmegaConf.to_container(OmegaConf.load(path))
    return dict(base) | dict(file if name else file.get(group, {}))


def _changed(group: str, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    known, flat = flatten(defaults), flatten(given)
    words = [
        f"{group}.{key}={_quoted(shown(value))}"
        for key, value in flat.items()
        if key not in NOT_TYPED and (key not in known or known[key] != value)
    ]
    if group == "model" and known.get("path") in (None, "???") and "path" not in flat:
        words.append("model.path=FOLDER")  # where a local model lies is no part of a run's identity
    return words


def shown(value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, list | tuple):
        return "[" + ",".join(shown(item) for item in value) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _quoted(text: str) -> str:
    """A value with spaces or an equals sign in the quotes that Hydra needs."""
    return f'"{text}"' if re.search(r"[\s=]", text) and not text.startswith("[") else text
