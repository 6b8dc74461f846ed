"""Shows or starts everything that run.py composed."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from elalora.errors import UserError
from experiments.config.members import Repeat
from experiments.runs.plan import make_plans
from experiments.runtime.distributed import world_size
from experiments.runtime.manifest import loaded_code
from experiments.studies.expansion import cells_of
from experiments.studies.stages import run_study


def show_all(members: Sequence[DictConfig | Repeat]) -> int:
    """Prints what would run (`--plan`) and starts nothing; returns the exit code."""
    from experiments.studies.preview import preview, preview_study

    if (study := _the_study(members)) is not None:
        print(preview_study(study))
        plans = None
    else:
        plans = make_plans(members)
        print(preview(plans))
    first = members[0]
    assert isinstance(first, DictConfig)
    if first.launcher.kind == "slurm":
        from experiments.launch.slurm import preview as preview_jobs

        if plans is None:
            assert study is not None
            plans = [cell.plan for cell in cells_of(study) if cell.plan]
        print("\n".join(preview_jobs(plans, OmegaConf.to_object(first.launcher))))
    return 0


def start_all(members: Sequence[DictConfig | Repeat]) -> int:
    """Does every run, or the study stage by stage.

    Returns:
        The exit code: 0 if all is done, 1 if a run failed, 2 for a user's mistake.

    Raises:
        UserError: more than one study, or a sweep in one process.
    """
    from experiments.launch.choose import launcher_of, run_all

    loaded_code()
    study, first = _the_study(members), members[0]
    assert isinstance(first, DictConfig)
    if first.launcher.kind == "basic" and (study is not None or len(members) > 1) and world_size() == 1:
        raise UserError(
            "hydra/launcher=basic would do a sweep in one process, and a crash of it would end the whole sweep; "
            "allowed: local (default), slurm"
        )
    if study is None:
        return run_all(members)
    return run_study(study, launcher_of(study))


def _the_study(members: Sequence[DictConfig | Repeat]) -> DictConfig | None:
    studies = [member for member in members if isinstance(member, DictConfig) and member.study is not None]
    if not studies:
        return None
    if len(members) > 1:
        raise UserError("a command runs one study and no other sweep; type +study=NAME once")
    return studies[0]
