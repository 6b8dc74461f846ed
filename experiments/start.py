"""Shows or starts everything that run.py composed."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from elalora.errors import UserError
from experiments.runs.plan import make_plan
from experiments.runtime.distributed import world_size
from experiments.runtime.manifest import loaded_code
from experiments.studies.expansion import cells_of
from experiments.studies.stages import run_study


def show_all(configs: list[DictConfig]) -> int:
    """Prints what would run (`--plan`) and starts nothing; returns the exit code."""
    from experiments.studies.preview import preview, preview_study

    if (study := _the_study(configs)) is not None:
        print(preview_study(study))
    else:
        print(preview([make_plan(config) for config in configs]))
    if configs[0].launcher.kind == "slurm":
        from experiments.launch.slurm import preview as preview_jobs

        plans = [c.plan for c in cells_of(study) if c.plan] if study is not None else list(map(make_plan, configs))
        print("\n".join(preview_jobs(plans, OmegaConf.to_object(configs[0].launcher))))
    return 0


def start_all(configs: list[DictConfig]) -> int:
    """Does every run, or the study stage by stage.

    Returns:
        The exit code: 0 if all is done, 1 if a run failed, 2 for a user's mistake.

    Raises:
        UserError: more than one study, or a sweep in one process.
    """
    from experiments.launch.choose import launcher_of, run_all

    loaded_code()
    study = _the_study(configs)
    if configs[0].launcher.kind == "basic" and (study is not None or len(configs) > 1) and world_size() == 1:
        raise UserError(
            "hydra/launcher=basic would do a sweep in one process, and a crash of it would end the whole sweep; "
            "allowed: local (default), slurm"
        )
    if study is None:
        return run_all(configs)
    return run_study(study, launcher_of(study))


def _the_study(configs: list[DictConfig]) -> DictConfig | None:
    studies = [config for config in configs if config.study is not None]
    if not studies:
        return None
    if len(configs) > 1:
        raise UserError("a command runs one study and no other sweep; type +study=NAME once")
    return studies[0]
