"""The decoders of conf/model/ by their published configurations, built without memory: matrices, costs, sizes."""

from __future__ import annotations

import re

import pytest
import torch
import transformers
import yaml

from elalora import UserError
from elalora.attach import find_linears
from elalora.targets import matrices_in, patterns_in
from experiments.models.load import DECODERS
from experiments.runs.identity import MODEL_TYPES
from experiments.runtime.places import CHECKOUT, CONF

# layers, width, width of the feed-forward layers, heads, key-value heads, head size, vocabulary, tied embeddings, and
# the number of parameters that the model's makers or the hub's page give
PUBLISHED = {
    "smollm2_135m": (30, 576, 1536, 9, 3, 64, 49_152, True, 134_515_008),
    "smollm2_135m_base": (30, 576, 1536, 9, 3, 64, 49_152, True, 134_515_008),
    "smollm2_360m_base": (32, 960, 2560, 15, 5, 64, 49_152, True, 361_821_120),
    "llama3_2_1b": (16, 2048, 8192, 32, 8, 64, 128_256, True, 1_235_814_400),
    "llama3_2_3b": (28, 3072, 8192, 24, 8, 128, 128_256, True, 3_212_749_824),
    "llama3_1_8b": (32, 4096, 14_336, 32, 8, 128, 128_256, False, 8_030_261_248),
    "qwen2_5_0_5b": (24, 896, 4864, 14, 2, 64, 151_936, True, 494_032_768),
    "qwen3_0_6b": (28, 1024, 3072, 16, 8, 128, 151_936, True, 596_049_920),
    "qwen3_1_7b": (28, 2048, 6144, 16, 8, 128, 151_936, True, 1_720_574_976),
    "qwen3_8b": (36, 4096, 12_288, 32, 8, 128, 151_936, False, 8_190_735_360),
    "gemma3_1b": (26, 1152, 6912, 4, 1, 256, 262_144, True, 999_885_952),
    "mistral_7b": (32, 4096, 14_336, 32, 8, 128, 32_000, False, 7_241_732_096),
}
SEVEN = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def settings(name):
    return yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text(encoding="utf-8"))


def built(name):
    layers, width, inner, heads, kv, size, vocabulary, tied, _ = PUBLISHED[name]
    config = transformers.AutoConfig.for_model(
        MODEL_TYPES[settings(name)["path"]], num_hidden_layers=layers, hidden_size=width, intermediate_size=inner,
        num_attention_heads=heads, num_key_value_heads=kv, head_dim=size, vocab_size=vocabulary,
        tie_word_embeddings=tied,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return model


def test_every_decoder_has_a_published_configuration():
    assert set(PUBLISHED) == set(DECODERS)


@pytest.mark.parametrize("name", PUBLISHED)
def test_matrices_costs_and_parameters_are_those_of_the_published_configuration(name):
    model = built(name)
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[name][-1]
    found = find_linears(model, patterns_in(model, ["paper"]))
    assert {matrix.rpartition(".")[2] for matrix in found} == SEVEN
    assert len(found) == matrices_in(model, ["all"]) == settings(name)["matrices"]
    page = (CHECKOUT / "docs" / "models.md").read_text(encoding="utf-8")
    [row] = re.findall(rf"^\| `{name}` \|[^|]*\| ([\d,]+) \| ([\d,]+) \|", page, re.M)
    cost = sum(linear.in_features + linear.out_features for linear in found.values())
    assert [int(value.replace(",", "")) for value in row] == [len(found), cost]
    qv = find_linears(model, patterns_in(model, ["qv"]))
    assert {matrix.rpartition(".")[2] for matrix in qv} == {"q_proj", "v_proj"} and len(qv) == matrices_in(
        model, ["qv"]
    )


@pytest.mark.parametrize("name", ["smollm2_135m", "gemma3_1b"])
def test_a_tied_output_layer_is_never_adapted(name):
    model = built(name)
    assert not any("lm_head" in matrix for matrix in find_linears(model, patterns_in(model, ["all"])))
    with pytest.raises(UserError, match="'lm_head' shares its weight with 'model.embed_tokens.weight'"):
        find_linears(model, ["lm_head"])


@pytest.mark.parametrize("name", sorted(set(PUBLISHED) - {"smollm2_135m"}))
def test_a_decoder_of_the_hub_is_pinned_by_a_commit(name):
    assert re.fullmatch(r"[0-9a-f]{40}", settings(name)["revision"])
