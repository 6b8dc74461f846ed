"""What every test stands on: no hub, no W&B server, few threads, and a tiny model that trains in a moment."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

SHARED = Path(__file__).resolve().parents[1].parent / "shared"
WORDS = (
    "the a an it is was not no very too so and but or of to in on for with this that movie film plot actor story "
    "scene good great fine best love bad poor worst dull hate slow fast funny sad"
).split()


def pytest_configure(config: pytest.Config) -> None:
    """One thread in each parallel worker, two in a run of its own."""
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


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


def make_tiny_model(folder: Path) -> None:
    """Writes the model of `tiny_model_dir`."""
    from transformers import BertConfig, BertModel

    size = _save_tokenizer(folder)
    config = BertConfig(
        vocab_size=size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)


def _save_tokenizer(folder: Path) -> int:
    """Writes a lower-casing word-piece tokenizer that spells unknown words letter by letter; returns its size."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    pieces = dict.fromkeys(special + WORDS + letters + [f"##{letter}" for letter in letters])
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=128,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)
    return len(vocabulary)
