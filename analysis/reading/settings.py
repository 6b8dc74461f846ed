"""The settings that a result stores: flattened, compared, and written as a command.

The command is derived from the settings and not from the overrides in config.yaml, because tables print commands of
runs that do not exist yet: the method of one run with the task of another.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from analysis.reading.result_row import NO_BUDGET
from experiments.runtime.places import CONF
from experiments.store.commands import plain_words

NOT_TYPED = ("name", "sha256", "split", "ranks_from_arm", "init_from_arm")  # given by other words, or set when loading


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys, as in overrides."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differing(settings: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The dotted keys whose values differ between the settings, with their distinct values as text."""
    flats = [flatten(tree) for tree in settings]
    keys = sorted({key for flat in flats for key in flat})
    distinct = {key: list(dict.fromkeys(typed(flat.get(key)) for flat in flats)) for key in keys}
    return {key: values for key, values in distinct.items() if len(values) > 1}


def command(settings: Mapping[str, Any], budget: str, seeds: Iterable[int]) -> str:
    """The `python run.py` command of a run: its choices, and every setting that differs from `conf/`.

    Args:
        settings: the identity of a run without its seed.
        budget: r4, params330000, or "none".
        seeds: of the runs.
    """
    words = []
    for group in ("method", "task", "model", "protocol"):
        chosen = dict(settings.get(group) or {})
        name = str(chosen.get("name", ""))
        words += [f"{group}={name}", *_changed(group, chosen, _defaults(group, name))]
    if budget.startswith("params"):
        words += ["budget=params", f"budget.params={budget.removeprefix('params')}"]
    elif budget != NO_BUDGET:
        words.append(f"budget={budget}")
    for group in ("trainer", "data"):
        words += _changed(group, dict(settings.get(group) or {}), _defaults(group, ""))
    numbers = ",".join(str(seed) for seed in sorted(seeds))
    many = " -m" if "," in numbers else ""
    plain, others = plain_words(words)
    more = f" (and, if you trust this store: {', '.join(others)})" if others else ""
    return f"python run.py{many} {shlex.join([*plain, f'seed={numbers}'])}{more}"


def changed_knobs(settings: Mapping[str, Any]) -> list[str]:
    """The method's knobs that differ from conf/method, as overrides without the group's name: ["k=3"]."""
    method = dict(settings.get("method") or {})
    words = _changed("method", method, _defaults("method", str(method.get("name", ""))))
    return [word.removeprefix("method.") for word in words]


def words_of_source(source: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """How a run names its source, for instance "elalora k=3": the settings in which the source differs.

    Args:
        source: settings of the run that gives ranks or weights.
        settings: of the run that takes them.
    """
    name = str((source.get("method") or {}).get("name"))
    task = [str((tree.get("task") or {}).get("name")) for tree in (source, settings)]
    words = [] if name == (settings.get("method") or {}).get("name") else [name, *changed_knobs(source)]
    words += [f"task={task[0]}"] if task[0] != task[1] else []
    return " ".join([*words, *_changed("trainer", source.get("trainer") or {}, settings.get("trainer") or {})])


def told_apart(knobs: Iterable[Sequence[str]]) -> list[list[str]]:
    """Each list of changed knobs without those that all lists share; the base of an ablation has none left."""
    lists = list(knobs)
    common = set.intersection(*(set(changed) for changed in lists)) if lists else set()
    return [[knob for knob in changed if knob not in common] for changed in lists]


def given_ranks(settings: Mapping[str, Any]) -> bool:
    """Whether the ranks of a run were given before training, by another run or by a rule."""
    method = settings.get("method") or {}
    return bool(method.get("ranks_from") or method.get("pattern"))


def form_of(settings: Mapping[str, Any]) -> str:
    """Where fixed ranks come from, which the folder of a run does not name: "transplant (inverted) shuffled"."""
    method = settings.get("method")
    if not isinstance(method, Mapping):
        return ""
    words = ["transplant"] * bool(method.get("ranks_from")) + [f"({p})" for p in [method.get("pattern")] if p]
    return " ".join([*words, *["shuffled"] * bool(words and method.get("shuffle"))])


def cell_of(settings: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """The run's place in the factorial: indices of (ranks, D1, D2), or None for a run outside it.

    The other side effects must be off: the factorial is run with variant=paper. Its scored arm has the published score.
    """
    method = settings.get("method", {})
    switches = (int(bool(method.get("D1"))), int(bool(method.get("D2"))))
    if method.get("name") == "svd_lora":
        inside = not given_ranks(settings) and method.get("D4", "off") == "off"
        return (0, *switches) if inside else None
    if method.get("name") != "elalora" or method.get("variant", "paper") != "paper":
        return None
    if method.get("D4") not in (None, "off") or any(method.get(name) for name in ("D8", "D12", "D15")):
        return None
    if method.get("importance") not in PLAIN:
        return None
    random = method.get("importance") == "random" or method.get("expansion") == "random"
    return (1 if random else 2, *switches)


def arm_suffix(settings: Mapping[str, Any]) -> tuple[str, set[str]]:
    """What an arm of the factorial adds to its name, ", random moves + D1", and the knobs that this text covers."""
    cell = cell_of(settings)
    if cell is None:
        return "", set()
    words = [", random moves"] if cell[0] == 1 else []
    words += [f" + {name}" for name, on in zip(("D1", "D2"), cell[1:], strict=True) if on]
    return "".join(words), {"D1", "D2", "importance"}


PLAIN = (None, "random", "sensitivity_uncertainty")  # importances that the factorial has


@cache
def _defaults(group: str, name: str) -> dict[str, Any]:
    """The settings of a group without overrides."""
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


def _changed(group: str, settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """Overrides of a group's settings that differ from the defaults."""
    default, flat = flatten(defaults), flatten(settings)
    words = [
        f"{group}.{key}={_quoted(typed(value))}"
        for key, value in flat.items()
        if key not in NOT_TYPED and not key.startswith("files.") and (key not in default or default[key] != value)
    ]
    # the place of a local model and of the user's own files is not part of a run's identity
    if group == "model" and default.get("path") in (None, "???") and "path" not in flat:
        words.append("model.path=FOLDER")
    if group == "task" and flat.get("source") == "files":
        words += [f"task.{key}=FILE" for key, digest in flat.items() if key.startswith("files.") and digest]
    return words


def typed(value: Any) -> str:
    """A value as it is typed in an override."""
    if isinstance(value, list | tuple):
        return "[" + ",".join(typed(item) for item in value) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _quoted(text: str) -> str:
    """A value with spaces or an equals sign in the quotes that Hydra needs."""
    return f'"{text}"' if re.search(r"[\s=]", text) and not text.startswith("[") else text
