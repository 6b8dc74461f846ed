"""Which words of a store may stand in a command that a person is invited to type.

A command from a stranger's store could read or write anywhere (store.root, data.root), load code (hydra.searchpath) or
send results away (tracking). So only words that set what a run computes are repeated, with plain values: no paths, no
interpolations, no sweeps. The person who made a run knows the rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

VALUE = r"(?!\.)[\w.+-]{0,200}|\[[\w.,+ -]{0,500}\]|\"[\w.+= -]{0,500}\"|'[\w.+= -]{0,500}'"
KEY = (
    r"(method|task|model|budget|protocol|trainer|recipe|data\.train_items|seed|init_from|threads)"
    r"|(method|task|model|budget|protocol|trainer)(\.[A-Za-z_]\w*)+"
)
PLAIN = re.compile(rf"\+{{0,2}}({KEY})=({VALUE})|hydra/launcher=(basic|local|slurm)", re.A)


def plain_words(words: Iterable[str]) -> tuple[list[str], list[str]]:
    """The words that may be repeated in a command, and the others."""
    plain: list[str] = []
    others: list[str] = []
    for word in words:
        (plain if PLAIN.fullmatch(word) else others).append(word)
    return plain, others
