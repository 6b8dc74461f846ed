"""What every test stands on: no hub, no W&B server, few threads, and a tiny model that trains in a moment."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # in commands too: threads of tests side by side wait for each other
os.environ["WANDB_MODE"] = "offline"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from tiny_model import make_tiny_model

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of larger reference data beside the checkout, which most machines do not have."""
    if not SHARED.is_dir():
        pytest.skip("the folder ../shared with reference data is not beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT encoder (2 layers, width 32) with a word-piece tokenizer of its own, as a model folder.

    The encoder comes without a task head, like any pretrained one: who loads it as a classifier draws the head.
    """
    folder = tmp_path_factory.mktemp("tiny_model")
    make_tiny_model(folder)
    return folder
