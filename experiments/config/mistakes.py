"""Turns whatever Hydra raises for unusual words into a UserError about these words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hydra.errors import HydraException
from omegaconf import Container, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from elalora.errors import UserError, first_line
from experiments.config.words import GROUPS
from experiments.runtime.places import CONF

MISTAKES = (UserError, HydraException, OmegaConfBaseException)  # errors that the words of a command cause


@contextmanager
def mistakes(words: Sequence[str]) -> Iterator[None]:
    """Wraps composing: any other exception than MISTAKES becomes a UserError about the words.

    Raises:
        UserError: for a ValueError (budget=4), an AssertionError (study.name=x), and others that Hydra lets through.
    """
    try:
        yield
    except MISTAKES:
        raise
    except Exception as error:
        raise UserError(_explained(error, words)) from error


def check_groups(config: Container, at: str = "") -> None:
    """Refuses an interpolation that puts a value where settings belong, which OmegaConf resolves without a check.

    Raises:
        UserError: for the first such group or list, such as store=${oc.env:HOME}.
    """
    assert isinstance(config, DictConfig | ListConfig)
    for key in config.keys() if isinstance(config, DictConfig) else range(len(config)):
        node, name = config._get_node(key), f"{at}{key}"
        if not isinstance(node, DictConfig | ListConfig) or node._is_none():
            continue
        if not node._is_interpolation():
            check_groups(node, f"{name}.")
        elif not OmegaConf.is_config(value := config[key]):
            kind = "a list" if isinstance(node, ListConfig) else "a group of settings"
            raise UserError(f"{name}={node._value()} is {value!r}, but {name} is {kind}; type its values")


def study_needs_plus() -> str:
    studies = sorted(path.stem for path in (CONF / "study").glob("*.yaml"))
    return f"to run a study, type +study=NAME; available: {', '.join(studies)}"


def _explained(error: Exception, words: Sequence[str]) -> str:
    """The message for the first word that Hydra cannot handle and does not name."""
    for word in words:
        key, _, value = word.partition("=")
        if re.match(r"\+*study\.", word) and not any(re.match(r"\+*study=", other) for other in words):
            return study_needs_plus()
        if not key or key in GROUPS and not re.search(r"[a-df-z]", value):  # a number, also 1e-3
            hint = ""
            if key == "budget" and re.fullmatch(r"\d{1,3}(,\d{1,3})*", value):
                hint = f"; type budget=r{value.replace(',', ',r')}"
            elif key == "budget" and value.isdigit():
                hint = f"; type budget=params budget.params={value}"
            return f"'{word}' is not valid: expected GROUP=NAME{hint}"
    return f"the words {' '.join(words)} cannot be composed ({type(error).__name__}: {first_line(error)})"
