"""`python -m experiments check`: loads what runs need, model, tokenizer and data, and trains nothing.

    python -m experiments check model=deberta_v3_base task=rte,cola
    python -m experiments check +study=glue_main

The words are those of `python run.py`. A line for each model and task says at which commit and in which format the
weights are, how many matrices the targets match, how many items each part of a run has, and what the rows were compared
with. What is fetched stays in the caches, so the runs start without a network afterwards.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

from elalora.errors import UserError
from experiments.config.compose import compose_run
from experiments.config.explain import explain
from experiments.config.mistakes import MISTAKES, mistakes
from experiments.config.words import key_of
from experiments.data.content import TaskData
from experiments.runs.plan import Plan, plan_of
from experiments.runs.prepare import attach, data_of, load, processor_of, rows_of, sequence_of
from experiments.runtime.text import counted
from experiments.studies.expansion import Cell, cells_of

TRIED = 8  # items of each part that are tokenised or decoded
LINE = "{:<21}{:<15}{:<10}{:<17}{:<10}{:<26}{}"
HEADER = LINE.format("model", "task", "commit", "weights", "matrices", "train / select / report", "compared")


def check(plans: Iterable[Plan]) -> int:
    """Prints a line for each model and task of these runs.

    Returns:
        The number of pairs that cannot be trained.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()
    failed = 0
    print(HEADER, flush=True)
    for plan in _pairs(plans):
        names = plan.config.model.name, plan.config.task.name
        try:
            print(LINE.format(*names, *_facts(plan)), flush=True)
        except UserError as error:
            failed += 1
            print("{:<21}{:<15}FAILS: {}".format(*names, error), flush=True)
    return failed


def plans_of(words: Sequence[str]) -> list[Plan]:
    """The runs of a command: one, a sweep over values with commas, or a study's.

    Raises:
        UserError: for a mistake in the words.
    """
    try:
        with mistakes(words):
            if any(key_of(word) == "study" for word in words):
                return study_plans(cells_of(compose_run(list(words))))
            return [plan_of(tuple(one)) for one in _sweep(words)]
    except MISTAKES as error:
        raise UserError(explain(error)) from error


def study_plans(cells: Sequence[Cell]) -> list[Plan]:
    """A run for each model and task of a study, if possible one that waits for no other."""
    waits = ("method.ranks_from", "init_from")
    first: dict[tuple[str, ...], tuple[str, ...]] = {}
    for cell in sorted(cells, key=lambda cell: any(key_of(word) in waits for word in cell.overrides)):
        read = ("model", "task", "data", "protocol")  # groups that determine what is read
        first.setdefault(tuple(w for w in cell.overrides if key_of(w).partition(".")[0] in read), cell.overrides)
    return [plan_of(words) for words in first.values()]


def _sweep(words: Sequence[str]) -> Iterable[list[str]]:
    """The words of every member of a sweep."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    overrides = OverridesParser.create().parse_overrides(list(words))
    choices = [
        [f"{one.get_key_element()}={value}" for value in one.sweep_string_iterator()]
        if one.is_sweep_override()
        else [str(one.input_line)]
        for one in overrides
    ]
    return (list(member) for member in product(*choices))


def _pairs(plans: Iterable[Plan]) -> list[Plan]:
    """The first plan of each model and task, task by task, because data are cached for the next model."""
    pairs: dict[str, Plan] = {}
    for plan in plans:
        read = [plan.identity[part] for part in ("model", "task", "protocol")]
        pairs.setdefault(json.dumps(read, sort_keys=True), plan)
    return sorted(pairs.values(), key=lambda plan: str(plan.config.task.name))


def _facts(plan: Plan) -> tuple[Any, ...]:
    """The cells of a pair's line, after everything that a run needs was loaded."""
    from experiments.data.items import make_items

    loaded, rows, data = load(plan), rows_of(plan), data_of(plan)
    for part in (rows.train, rows.select, rows.report):
        if part is not None:
            some = part.select(range(min(TRIED, len(part))))
            make_items(some, processor_of(plan), data.config, plan.config.data.cache)
    _, method = attach(plan, loaded.network, loaded.head, len(rows.train), sequence_of(plan))
    counts = " / ".join("-" if part is None else f"{len(part):,}" for part in (rows.train, rows.select, rows.report))
    commit, matrices = loaded.read.get("commit", "-")[:8], len(method.ranks()) or "-"
    return commit, _weights(loaded.read), matrices, counts, _compared(data)


def _compared(data: TaskData) -> str:
    """What of the official data set the rows were compared with."""
    if not data.verified or data.config.source == "files":
        return "nothing"
    return "content" if data.config.fingerprint else "counts"


def _weights(read: dict[str, Any]) -> str:
    shards = sum(name.endswith((".safetensors", ".bin")) for name in read["files"])
    return ("pickled" if "converted" in read else "safetensors") + (f" x {shards}" if shards > 1 else "")


def add_to(commands: Any) -> None:
    """Adds the command to the parser of `python -m experiments`."""
    parser = commands.add_parser("check", help="load what runs need, model, tokenizer and data, and train nothing")
    parser.add_argument("words", nargs="*", metavar="WORD", help="as for run.py, such as task=rte,cola or +study=NAME")
    parser.set_defaults(command=command)


def command(args: argparse.Namespace) -> int:
    """Returns the exit code: 0 if all can be trained, 1 if a model or task cannot."""
    failed = check(plans_of(args.words))
    if failed:
        print(f"{counted(failed, 'line')} above cannot be trained as typed")
    return int(failed > 0)
