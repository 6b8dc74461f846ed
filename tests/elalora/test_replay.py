"""An evaluation that begins at the block of a change gives, bit for bit, what a whole one gives."""

from __future__ import annotations

import pytest
import torch
from architectures import PAIR, SMALL, random_model
from torch import nn

from elalora.names import layer_of
from elalora.replay import Replay

TEXT = {
    "input_ids": torch.randint(3, 28, (3, 9), generator=torch.Generator().manual_seed(0)),
    "attention_mask": torch.tensor([[1] * 9, [1] * 7 + [0] * 2, [1] * 4 + [0] * 5]),
}
IMAGES = {"pixel_values": torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))}
LABELS = {"labels": torch.tensor([0, 1, 1])}
T5 = {
    "vocab_size": 30,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
VIT = {"image_size": 32, "patch_size": 8}
KINDS = {
    "Bert": ("SequenceClassification", SMALL, TEXT | LABELS),
    "DebertaV2": (
        "SequenceClassification",
        SMALL | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
        TEXT | LABELS,
    ),
    "Albert": ("SequenceClassification", SMALL | {"embedding_size": 16}, TEXT | LABELS),
    "Llama": ("CausalLM", SMALL | {"num_key_value_heads": 1}, TEXT | {"labels": TEXT["input_ids"]}),
    "Bart": ("ConditionalGeneration", PAIR, TEXT | {"labels": TEXT["input_ids"][:, :5].contiguous()}),
    "T5": ("ConditionalGeneration", T5, TEXT | {"labels": TEXT["input_ids"][:, :5].contiguous()}),
    "ViT": ("ImageClassification", SMALL | VIT, IMAGES | LABELS),
    "Swin": ("ImageClassification", SWIN, IMAGES | LABELS),
}


def built(kind):
    import transformers

    task, settings, batch = KINDS[kind]
    model = random_model(getattr(transformers, f"{kind}For{task}"), getattr(transformers, f"{kind}Config")(**settings))
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and layer_of(name) != name]
    return model, names, batch


def counted(model, names):
    """The names of the blocks that computed, one for each of their calls."""
    calls = []
    for name in dict.fromkeys(map(layer_of, names)):
        block = model.get_submodule(name)
        inner = next(module for module in block.modules() if isinstance(module, nn.Linear))
        inner.register_forward_hook(lambda *_, name=name: calls.append(name))
    return calls


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_change_in_any_matrix_is_seen_as_a_whole_evaluation_sees_it(kind):
    model, names, batch = built(kind)
    replay, calls = Replay(model, names), counted(model, names)
    with replay.recording():
        recorded = model(**batch).loss
    whole = len(calls)
    saved = []
    for name in names:
        weight = model.get_submodule(name).weight
        before = weight.clone()
        weight.mul_(1.5)
        expected = model(**batch).loss
        calls.clear()
        with replay.from_block_of(name):
            found = model(**batch).loss
        saved.append(whole - len(calls))
        assert torch.equal(found, expected)
        weight.copy_(before)
    assert torch.equal(model(**batch).loss, recorded)
    assert not any("forward" in vars(module) for module in model.modules())
    # a block that all layers share cannot give one output again; elsewhere later blocks save the earlier ones
    assert (max(saved) == 0) == (kind == "Albert")


@torch.no_grad()
def test_a_block_within_another_is_computed_where_the_other_changes():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.inner = nn.Linear(4, 4), nn.ModuleList([nn.Linear(4, 4)])

        def forward(self, x):
            return self.inner[0](torch.tanh(self.first(x)))

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.outer, self.last = nn.ModuleList([Outer()]), nn.Linear(4, 4)

        def forward(self, x):
            return self.last(self.outer[0](x))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Whole(), torch.randn(2, 4)
    names = ["outer.0.first", "last"]
    replay = Replay(model, names)
    replay.blocks["outer.0.inner.0"] = model.get_submodule("outer.0.inner.0")
    with replay.recording():
        model(x)
    assert replay.before == {"outer.0": [], "outer.0.inner.0": [], "last": ["outer.0.inner.0", "outer.0"]}
    model.outer[0].first.weight.mul_(2)
    expected = model(x)
    with replay.from_block_of("outer.0.first"):
        assert torch.equal(model(x), expected)


@torch.no_grad()
def test_a_forward_that_somebody_had_replaced_stands_afterwards():
    model, names, batch = built("Bert")
    block = model.bert.encoder.layer[0]
    block.forward = theirs = block.forward
    replay = Replay(model, names)
    with replay.recording():
        model(**batch)
    with replay.from_block_of(names[-1]):
        assert block.forward is not theirs
    assert block.forward is theirs
