"""What to type instead of a word that Hydra cannot read or place: the finished word, quoted for the shell."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import is_dataclass
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from experiments.config.words import GROUPS, key_of
from experiments.runtime.places import CONF

# names from other tools -> ours
ALIASES = {
    "learning_rate": "lr", "rate": "lr", "bs": "batch_size", "num_epochs": "epochs", "num_train_epochs": "epochs",
    "steps": "max_steps", "r": "rank", "lora_r": "rank", "lora_alpha": "alpha", "wd": "weight_decay",
    "output_dir": "store.root", "target_modules": "targets", "limit": "train_items",
}  # fmt: skip
# Hydra's flags -> whether a value follows
FLAGS = dict.fromkeys(("-m", "--multirun", "-r", "--run", "--resolve", "--help", "-h", "--hydra-help"), False)
FLAGS |= dict.fromkeys(("-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name"), True)
FLAGS |= dict.fromkeys(("-cd", "--config-dir", "--experimental-rerun"), True)
HUB = re.compile(r"https?://(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)")
COMMANDS = {"help": "--help", "plan": "--plan", "status": "python -m experiments status"}
TABLES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
DASHES = "\N{EN DASH}\N{EM DASH}\N{MINUS SIGN}"
CURLY = dict.fromkeys((0x2018, 0x2019, 0x201C, 0x201D))  # quotation marks that editors and chats put in


def flags_first(words: Iterable[str]) -> list[str]:
    """The words with Hydra's flags in front: argparse takes overrides from one place only, before or behind `-m`."""
    flags: list[str] = []
    rest: list[str] = []
    value_follows = False
    for word in words:
        (flags if value_follows or word in FLAGS else rest).append(word)
        value_follows = not value_follows and FLAGS.get(word, False)
    return [*flags, *rest]


def for_flags(message: str, words: Sequence[str]) -> str:
    """What argparse says about a command's flags, and what to type."""
    unknown = next((word for word in words if word.startswith("-") and word in message.split()), None)
    if unknown is None:
        return f"{message}; python run.py --help lists what can be typed"
    name, equals, value = unknown.lstrip("-").partition("=")
    value = value if equals else next(iter(words[words.index(unknown) + 1 :]), "")
    typed = " or ".join(settings(name, value)) or "NAME=VALUE"
    return f"'{unknown}' is not a flag; settings have no dashes: type {typed}"


def for_unreadable(word: str, words: Sequence[str]) -> str:
    """What to type for a word that is not an override; `words` are all of the command."""
    position = words.index(word) if word in words else len(words)
    before, after = (
        words[position - 1] if 0 < position < len(words) else "",
        "".join(words[position + 1 : position + 2]),
    )
    if after == "=":
        after += "".join(words[position + 2 : position + 3])
    if word[:1] and word[0] in DASHES:
        return f"type {'-' if word[1:] == 'm' else '--'}{word.lstrip(DASHES)} with plain dashes"
    straight = word.translate(CURLY)
    key, equals, value = straight.partition("=")
    if not equals:
        return _for_bare(word, before, after, words)
    if value.startswith("~/"):  # Hydra takes ~ for another thing, and the shell expands it in front of a word only
        return f"type {key}=$HOME{value[1:]}"
    if value.endswith(",") and after and "=" not in after:
        return f"a list has no blanks: type {_shell(word + after)}"
    if key.lstrip("+") in (*GROUPS, "study"):
        return _for_group(key, value)
    stripped = value.strip().rstrip(",;")
    for attempt in (straight, f"{key.strip()}={stripped}") if re.search(r"\w", stripped) else ():
        if attempt != word and _reads(attempt):
            return f"type {_shell(attempt)}"
    open_bracket = any(value.count(a) != value.count(b) for a, b in ("[]", "()", "{}"))
    if declared(key) in (int, float):
        return "close its bracket" if open_bracket else f"type a number, such as {key}=1"
    if open_bracket and (whole := _rejoined(word, words[position + 1 :])):
        return f"a word with blanks goes in quotes: type {_shell(whole)}"
    if open_bracket:
        return f"close its bracket, or for a text type {_text_word(key, value)}"
    return f"type {for_text(straight)}"


def _rejoined(word: str, rest: Sequence[str]) -> str | None:
    """The word with as many of the next ones as make an override, where the shell split it at its blanks."""
    for count in range(1, len(rest) + 1):
        if "=" in rest[count - 1]:
            return None
        if _reads(whole := " ".join([word, *rest[:count]])):
            return whole
    return None


def _split_text(word: str, words: Sequence[str]) -> str | None:
    """The override of a text that the shell split at its blanks, one part of which is this word."""
    position = words.index(word) if word in words else 0
    start = next((i for i in range(position - 1, -1, -1) if "=" in words[i]), None)
    if start is None or declared(key_of(words[start])) is not str:
        return None
    end = next((i for i in range(position, len(words)) if "=" in words[i] or words[i].startswith("-")), len(words))
    return " ".join(words[start:end])


def _for_group(key: str, value: str) -> str:
    """What to type for the unreadable name of a group's choice."""
    names = _names(key.lstrip("+"))
    near = nearest(value, names)
    return f"type {key}={near}" if near else f"allowed: {', '.join(names)}"


def _for_bare(word: str, before: str, after: str, words: Sequence[str]) -> str:
    if before.endswith("="):
        return f"an override has no blanks: type {_shell(before + word)}"
    if after.startswith("="):
        value = after[1:]
        return f"an override has no blanks: type {_shell(f'{word}={value}' if value else f'{word}=VALUE')}"
    key, colon, value = word.partition(":")
    if colon and value and _reads(f"{key}={value}"):
        return f"type {_shell(f'{key}={value}')}"
    if key_of(word) == "study":
        return "type +study=NAME"
    if word in COMMANDS:
        return f"type {COMMANDS[word]}"
    if word not in GROUPS and declared(word) not in (None, Any):
        return f"type {word}=VALUE"
    if word in GROUPS and after and "=" not in after:
        return f"type {word}={after}"
    groups = [group for group in (*GROUPS, "study") if _plain(word) in map(_plain, _names(group))]
    if groups:
        return f"type {' or '.join(('+' if g == 'study' else '') + f'{g}={_near(word, _names(g))}' for g in groups)}"
    if split := _split_text(word, words):
        return f"a word with blanks goes in quotes: type {for_text(split)}"
    return "type NAME=VALUE"


def settings(key: str, value: str) -> list[str]:
    """Overrides of existing settings whose names end like `key`: trainer.lr=1e-3 for lr=1e-3; three at most."""
    parent, _, leaf = key.rpartition(".")
    leaf = ALIASES.get(leaf, leaf)
    if leaf in GROUPS:
        return [f"{leaf}={value or 'NAME'}"]
    if leaf == "rank" and (not value or value.isdigit()):
        return [f"budget=r{value or 'N'}"]
    if options := [group for group in GROUPS if leaf in _names(group)]:
        return [f"{group}={leaf}" for group in options]
    found = list(_settings_of(_default()))
    wanted = f"{parent}.{leaf}" if parent else leaf
    matches = (
        [n for n in found if n == wanted]
        or [n for n in found if n.endswith(f".{wanted}")]
        or [n for n in found if n.rpartition(".")[2] == leaf]
    )
    return [_shell(f"{name}={value}") if value else f"{name}=VALUE" for name in matches[:3]]


def nearest(value: str, names: Sequence[str]) -> str | None:
    """The name that was probably meant, whatever its case, dashes and underscores."""
    start = next((name for name in names if len(value) > 2 and _plain(name).startswith(_plain(value))), None)
    return _near(value, names) or start


def for_choice(group: str, value: str) -> str | None:
    """What to type for a value of a group that is a path, a hub id or a table."""
    if "://" in value and group in ("model", "task"):
        address = HUB.match(value)
        if group == "model" and address:
            return f"for a hub id type model=local model.path={address[1]} model.revision=COMMIT"
        return f"it is a URL: download it, and type {'model.path' if group == 'model' else 'task.files.train'}=PATH"
    if group == "model" and "/" in value:
        pinned = "" if value.startswith((".", "/", "~")) else " model.revision=COMMIT"
        return f"for a folder or a hub id type model=local {_shell(f'model.path={value}')}{pinned}"
    if group == "task" and value.endswith(TABLES):
        return f"for your own table type task=own {_shell(f'task.files.train={value}')} task.files.test=PATH"
    return None


def for_several(key: str, values: str) -> str:
    """What to type, besides a sweep, for a value with a comma."""
    kind = declared(key)
    if get_origin(kind) is list:
        return f", for a list type {_shell(f'{key}=[{values}]')}"
    if kind is float and values.count(",") == 1:
        return f", for a number type {key}={values.replace(',', '.')}"
    return f", for a text type {_text_word(key, values)}" if kind is str else ""


def declared(key: str) -> Any:
    """The type of a setting in the schema, Any below a dictionary; None for a setting that it lacks."""
    from experiments.config.schema import RunConfig

    kind: Any = RunConfig
    for part in key.split("."):
        if not is_dataclass(kind):
            return Any
        kind = get_type_hints(kind).get(part.partition("[")[0])
        if isinstance(kind, UnionType):
            kind = get_args(kind)[0]
        if kind is None:
            return None
    return kind


def for_text(word: str) -> str:
    """The word with its value, or each value of its list, in quotes."""
    key, _, value = word.partition("=")
    if value.startswith("[") and value.endswith("]"):
        parts = ",".join(f'"{part.strip()}"' for part in value[1:-1].split(","))
        return shlex.quote(f"{key}=[{parts}]")
    return _text_word(key, value)


def _text_word(key: str, value: str) -> str:
    escaped = value.strip("'\"").replace('"', '\\"')
    return shlex.quote(f'{key}="{escaped}"')


def _shell(word: str) -> str:
    return shlex.quote(word)


def _reads(word: str) -> bool:
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return False
    return True


def _names(group: str) -> list[str]:
    names = [path.stem for path in (CONF / group).glob("*.yaml")]
    return [*names, *(f"r{rank}" for rank in range(1, 65))] if group == "budget" else sorted(names)


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


def _near(value: str, names: Sequence[str]) -> str | None:
    by_plain = {_plain(name): name for name in names}
    close = difflib.get_close_matches(_plain(value), by_plain, n=1)
    return by_plain[close[0]] if close else None


def _default() -> Any:
    from experiments.config.compose import compose_run

    return compose_run(["task=own"])  # the one task that has every setting


def _settings_of(node: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of the settings that a run has, without those that a command does not type."""
    for key in node:
        value = node._get_node(key)
        if OmegaConf.is_dict(value) and not value._is_none() and not value._is_interpolation():
            if prefix or key not in ("overrides", "study", "recipe"):
                yield from _settings_of(value, f"{prefix}{key}.")
        elif prefix or key not in ("overrides", "study"):
            yield f"{prefix}{key}"
