"""Composes one run, or with -m many, from conf/ and hands them over. `python run.py --help` explains."""

from __future__ import annotations

import os
import sys

os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # so that mistakes arrive here and leave as one line

import hydra
from omegaconf import DictConfig

from elalora.errors import UserError
from experiments.config import register
from experiments.messages import explain

register()
problems: list[str] = []


@hydra.main(config_path="conf", config_name="config", version_base="1.3")
def one(config: DictConfig) -> None:
    """One member; in a sweep, a failure is kept for the end and the others go on."""
    from hydra.core.hydra_config import HydraConfig

    from experiments.runner import RunFailed, run

    sweep = HydraConfig.get().mode == hydra.types.RunMode.MULTIRUN
    try:
        run(config)
    except (UserError, RunFailed) as error:
        if not sweep:
            raise
        problems.append(str(error))
        print(f"elalora: {error}", file=sys.stderr)


def main() -> int:
    """Exit codes: 0 done, 1 a run failed, 2 a mistake in what was asked for."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        one()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        print(f"elalora: {explain(error)}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if type(error).__name__ != "RunFailed":
            raise
        print(f"elalora: {error}", file=sys.stderr)
        return 1
    if problems:
        print(f"elalora: {len(problems)} runs did not finish; the same command runs only these", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
