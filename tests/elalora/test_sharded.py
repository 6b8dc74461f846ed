"""A model whose frozen weights are sharded over processes by FSDP2 trains as a whole one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.runtime.places import CHECKOUT

SUPPORT = CHECKOUT / "tests" / "support"


@pytest.mark.slow
def test_sharded_frozen_weights_change_no_loss_no_move_and_no_factor(tmp_path: Path):
    """The factors stay whole in each process, so the rows that move are the same in both."""
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone",
         str(SUPPORT / "sharded_process.py"), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": f"{SUPPORT}{os.pathsep}{CHECKOUT}", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        whole, sharded = found["whole"], found["sharded"]
        assert any(whole["grown"]) and sharded["frozen"] < whole["frozen"]
        assert {k: v for k, v in sharded.items() if k != "frozen"} == {k: v for k, v in whole.items() if k != "frozen"}
