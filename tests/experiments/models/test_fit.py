"""Padding tokens, position limits and computed tables of the architectures that people bring."""

from __future__ import annotations

import json

import pytest
import torch
import transformers as tf
from architectures import PAIR, SMALL, random_model, save_tokenizer
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from tiny_runs import config

from baselines.reference_points import FullFineTuning, NoSettings
from elalora import UserError
from experiments.config.schema import ModelConfig
from experiments.config.task import TaskConfig
from experiments.data.text_items import Padding, Ragged
from experiments.models.fit import fit
from experiments.models.load import load_model, load_processor
from experiments.models.padding import set_pad_token
from experiments.models.positions import longest, tables
from experiments.runs.plan import make_plan
from experiments.runtime.places import CONF

CLASSES = TaskConfig(name="t", source="files", subset="t", num_labels=3, max_length=16)
NEWS = TaskConfig(
    name="t", source="files", subset="t", kind="summarization", text=["document"], num_labels=1, metrics=["rouge1"],
    max_length=16, target_length=8, generate_length=7,
)  # fmt: skip


def folder_of(place, cls, settings, side="right", ending=True, **special):
    random_model(cls, settings).save_pretrained(place)
    save_tokenizer(place, side, ending, **special)
    return ModelConfig(name="m", path=str(place))


def loaded(model, task=CLASSES):
    processor = load_processor(model, task)
    network = load_model(model, task, 1).network
    fit(model, task, network, processor)
    return network.eval(), processor


T5 = {
    "vocab_size": SMALL["vocab_size"], "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2,
    "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0,
}  # fmt: skip


# -- padding -------------------------------------------------------------------------------------------------

ONE_KEY = {"pad_token_id": None, "head_dim": 8, "num_key_value_heads": 1}
CAUSAL = {  # Qwen2's tokenizer names a padding token, the others' do not
    "qwen2": lambda: (tf.Qwen2ForCausalLM, tf.Qwen2Config(**SMALL | {"pad_token_id": None}, num_key_value_heads=1)),
    "llama": lambda: (tf.LlamaForCausalLM, tf.LlamaConfig(**SMALL | {"pad_token_id": None})),
    "gpt2": lambda: (tf.GPT2LMHeadModel, tf.GPT2Config(**SMALL | {"pad_token_id": None}, n_inner=32)),
    "gemma3_text": lambda: (tf.Gemma3ForCausalLM, tf.Gemma3TextConfig(**SMALL | ONE_KEY)),
}
TEXTS = ["a b c d e f g h i", "k", "z y x w"]


@pytest.mark.parametrize("ending", [True, False], ids=["with </s>", "without"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", CAUSAL)
def test_a_classifier_without_a_padding_token_answers_for_an_item_as_it_does_alone(family, side, ending, tmp_path):
    if family == "gpt2" and side == "left":
        pytest.skip("refused: a test of its own")
    cls, settings = CAUSAL[family]()
    network, tokenizer = loaded(folder_of(tmp_path, cls, settings, side, ending, eos_token="</s>"))
    network = network.double()
    padding, rows = Padding.of(tokenizer), [tokenizer(text).input_ids for text in TEXTS]
    pad = {"qwen2": 30}.get(family, 2)
    assert (padding.token, padding.side, network.config.pad_token_id) == (pad, side, pad)
    together = Ragged.of(rows, torch.int64)
    mask = Ragged.of([[1] * len(row) for row in rows], torch.int64)
    everyone = range(len(rows))
    ids, seen = together.padded(everyone, padding.token, side), mask.padded(everyone, 0, side)
    with torch.inference_mode():
        batch = network(input_ids=ids, attention_mask=seen).logits
        for row, logits in zip(rows, batch, strict=True):
            text = [token for token in row if token != pad]
            at = len(text) - 1  # the last token of the text
            hidden = network.base_model(input_ids=torch.tensor([row])).last_hidden_state
            torch.testing.assert_close(logits, network.score(hidden)[0, at], rtol=1e-5, atol=1e-7)


def test_absolute_positions_that_padding_would_shift_are_refused(tmp_path):
    model = folder_of(tmp_path, *CAUSAL["gpt2"](), side="left", eos_token="</s>")
    with pytest.raises(UserError, match='pads on the left.*absolute positions.*"padding_side": "right"'):
        loaded(model)


def test_the_tokenizers_own_padding_token_comes_first_and_the_users_before_it(tmp_path):
    model = folder_of(tmp_path, *CAUSAL["qwen2"](), pad_token="<pad>", eos_token="</s>")
    network, tokenizer = loaded(model)
    assert (tokenizer.pad_token_id, network.config.pad_token_id) == (0, 0)
    model.pad_token = "<unk>"
    network, tokenizer = loaded(model)
    assert (tokenizer.pad_token_id, network.config.pad_token_id) == (3, 3)
    model.pad_token = "<never>"
    with pytest.raises(UserError, match="model.pad_token=<never> is not in the vocabulary"):
        loaded(model)


def test_a_tokenizer_without_any_such_token_is_refused_with_the_setting(tmp_path):
    save_tokenizer(tmp_path)
    with pytest.raises(UserError, match="neither a padding nor an end-of-sequence token; type model.pad_token=TOKEN"):
        set_pad_token(tf.PreTrainedTokenizerFast.from_pretrained(tmp_path), ModelConfig(name="m", path="m"))


def test_a_padding_token_that_the_positions_do_not_count_from_is_refused(tmp_path):
    settings = tf.RobertaConfig(**SMALL | {"pad_token_id": 1})
    model = folder_of(tmp_path, tf.RobertaModel, settings, pad_token="<pad>")
    with pytest.raises(UserError, match=r"counts positions from the padding id 1, its tokenizer pads with <pad> "):
        loaded(model)


def test_the_padding_token_is_part_of_the_identity_where_it_is_set():
    words = ("model=roberta_base", "task=cola")
    plain, other = make_plan(config(*words)), make_plan(config(*words, "model.pad_token='<unk>'"))
    assert "pad_token" not in plain.identity["model"] and other.identity["model"]["pad_token"] == "<unk>"
    assert plain.id != other.id


# -- positions -----------------------------------------------------------------------------------------------

WIDE = {"max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 32, "attention_window": 4}
NARROW = {k: v for k, v in PAIR.items() if k != "max_position_embeddings"}
LIMITS = {  # the most tokens of input, by class and settings with 64 positions
    "roberta": (62, tf.RobertaModel, lambda: tf.RobertaConfig(**SMALL | {"pad_token_id": 1})),
    "xlm-roberta": (62, tf.XLMRobertaModel, lambda: tf.XLMRobertaConfig(**SMALL | {"pad_token_id": 1})),
    "xlm-roberta-xl": (62, tf.XLMRobertaXLModel, lambda: tf.XLMRobertaXLConfig(**SMALL | {"pad_token_id": 1})),
    "camembert": (62, tf.CamembertModel, lambda: tf.CamembertConfig(**SMALL | {"pad_token_id": 1})),
    "mpnet": (62, tf.MPNetModel, lambda: tf.MPNetConfig(**SMALL | {"pad_token_id": 1})),
    "data2vec": (62, tf.Data2VecTextModel, lambda: tf.Data2VecTextConfig(**SMALL | {"pad_token_id": 1})),
    "esm": (60, tf.EsmModel, lambda: tf.EsmConfig(**SMALL | {"pad_token_id": 3}, mask_token_id=4)),
    "bert": (64, tf.BertModel, lambda: tf.BertConfig(**SMALL)),
    "electra": (64, tf.ElectraModel, lambda: tf.ElectraConfig(**SMALL)),
    "gpt2": (64, tf.GPT2Model, lambda: tf.GPT2Config(**SMALL)),
    "opt": (64, tf.OPTModel, lambda: tf.OPTConfig(**SMALL, ffn_dim=32, word_embed_proj_dim=16)),
    "bart": (64, tf.BartModel, lambda: tf.BartConfig(**PAIR)),
    "pegasus": (64, tf.PegasusModel, lambda: tf.PegasusConfig(**PAIR)),
    "led": (32, tf.LEDModel, lambda: tf.LEDConfig(**NARROW, **WIDE)),
}


@pytest.mark.parametrize("family", LIMITS)
def test_the_limit_is_the_last_length_that_an_architecture_computes(family):
    """The forward pass itself decides: it computes that many tokens and fails at one more."""
    most, cls, settings = LIMITS[family]
    network = random_model(cls, settings())
    assert longest(network) == most

    def run(length):
        ids = torch.full((1, length), 7)
        both = {"decoder_input_ids": ids} if network.config.is_encoder_decoder else {}
        return network(input_ids=ids, attention_mask=torch.ones_like(ids), **both)

    with torch.inference_mode():
        assert torch.isfinite(run(most)[0]).all()
        with pytest.raises((IndexError, RuntimeError)):
            run(most + 1)


def test_an_encoder_and_its_decoder_have_their_own_limits(tmp_path):
    network = random_model(tf.LEDForConditionalGeneration, tf.LEDConfig(**NARROW, **WIDE))
    assert (longest(network, decoder=False), longest(network, decoder=True)) == (64, 32)


@pytest.mark.parametrize(("positions", "most"), [(64, 64), (60, 56)])
def test_a_batch_padded_to_a_multiple_of_8_must_fit_where_padding_takes_positions(positions, most, tmp_path):
    model = folder_of(
        tmp_path, tf.BertModel, tf.BertConfig(**SMALL | {"max_position_embeddings": positions}), pad_token="<pad>"
    )
    task = TaskConfig(name="t", source="files", subset="t", num_labels=3, max_length=most)
    network, tokenizer = loaded(model, task)
    rows = Ragged.of([tokenizer("a " * 200, truncation=True, max_length=most).input_ids], torch.int64)
    network(input_ids=rows.padded([0], 0))
    task.max_length = most + 1
    with pytest.raises(UserError, match=f"={most + 1} does not fit the {most} positions of m; .*max_length={most}"):
        fit(model, task, network, tokenizer)


@pytest.mark.parametrize(("family", "size"), [("XLMRoberta", 63), ("Camembert", 63), ("MPNet", 63)])
def test_positions_behind_the_padding_id_are_not_counted(family, size, tmp_path):
    settings = getattr(tf, f"{family}Config")(**SMALL | {"pad_token_id": 0})
    if family == "MPNet":  # its class counts from 1, whatever the configuration says
        settings, size = tf.MPNetConfig(**SMALL | {"pad_token_id": 1}), 62
    pad = {"pad_token": "<s>" if family == "MPNet" else "<pad>"}
    model = folder_of(tmp_path, getattr(tf, f"{family}Model"), settings, **pad)
    task = TaskConfig(name="t", source="files", subset="t", num_labels=3, max_length=64)
    with pytest.raises(UserError, match=f"task.max_length=64 does not fit the {size} positions"):
        loaded(model, task)


# -- tables that the class computes ----------------------------------------------------------------------------


def sinusoids(positions, width):
    """sin in the first half and cos in the second (Pegasus, Marian), in float64 from the formula."""
    rates = 10000 ** (-2 * torch.arange(width // 2, dtype=torch.float64) / width)
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


@pytest.mark.parametrize("stored", [False, True], ids=["left out", "stored"])
@pytest.mark.parametrize("family", ["Pegasus", "Marian"])
def test_sinusoids_are_the_formula_and_never_train_whether_or_not_a_checkpoint_has_them(family, stored, tmp_path):
    cls = {"Pegasus": tf.PegasusForConditionalGeneration, "Marian": tf.MarianMTModel}[family]
    more = {"decoder_vocab_size": PAIR["vocab_size"]} if family == "Marian" else {}
    model = folder_of(tmp_path, cls, getattr(tf, f"{family}Config")(**PAIR, **more), pad_token="<pad>")
    file = tmp_path / "model.safetensors"
    if not stored:
        save_file({k: v for k, v in load_file(file).items() if "embed_positions" not in k}, file, {"format": "pt"})
    network, _ = loaded(model, NEWS)
    found = {name: table.weight for name, table in tables(network).items()}
    assert len(found) == 2
    for weight in found.values():
        torch.testing.assert_close(weight.double(), sinusoids(64, 16), rtol=0, atol=1e-6)
    FullFineTuning(NoSettings(), None).attach(network, [], 10)
    assert not any("embed_positions" in name for name, _ in network.named_parameters())
    assert all(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize(
    ("network", "config", "lacking", "named"),
    [
        pytest.param(
            tf.BartForConditionalGeneration, tf.BartConfig, "embed_positions",
            "model.decoder.embed_positions, model.encoder.embed_positions", id="learned positions",
        ),
        pytest.param(
            tf.PegasusForConditionalGeneration, tf.PegasusConfig, "encoder.layer_norm", "model.encoder.layer_norm",
            id="weights that start as ones, which are no formula",
        ),
    ],
)  # fmt: skip
def test_weights_that_a_checkpoint_lacks_and_no_formula_gives_are_refused(network, config, lacking, named, tmp_path):
    model = folder_of(tmp_path, network, config(**PAIR), pad_token="<pad>")
    file = tmp_path / "model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if lacking not in k}, file, {"format": "pt"})
    with pytest.raises(UserError, match=f"no weights for {named}"):
        loaded(model, NEWS)


def test_a_head_that_the_checkpoint_has_trains_as_a_new_one_does(tmp_path):
    """A classifier that was trained before stayed frozen in architectures without a list of their own."""
    settings = tf.XLMRobertaConfig(**SMALL | {"pad_token_id": 1}, num_labels=3)
    model = folder_of(tmp_path, tf.XLMRobertaForSequenceClassification, settings, pad_token="<s>")
    assert load_model(model, CLASSES, 1).head == ["classifier"]
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "xlm-roberta"


def test_modernbert_keeps_the_head_of_its_checkpoint_and_reads_an_item_alone_as_in_a_batch(tmp_path):
    """On the CPU, by the attention that conf/model/modernbert_base.yaml names."""
    named = OmegaConf.load(CONF / "model" / "modernbert_base.yaml")
    settings = tf.ModernBertConfig(
        **SMALL, cls_token_id=1, sep_token_id=2, local_attention=4, classifier_pooling="mean"
    )
    model = folder_of(tmp_path, tf.ModernBertForMaskedLM, settings, pad_token="<pad>")
    model.attention = named.attention
    loaded_model = load_model(model, CLASSES, 1)
    network, tokenizer = loaded_model.network.eval(), load_processor(model, CLASSES)
    fit(model, CLASSES, network, tokenizer)
    assert loaded_model.head == ["head", "classifier"]
    stored = load_file(tmp_path / "model.safetensors")["head.dense.weight"]
    assert torch.equal(network.head.dense.weight, stored)
    rows = Ragged.of([tokenizer(text).input_ids for text in TEXTS], torch.int64)
    mask = Ragged.of([[1] * n for n in rows.lengths], torch.int64)
    with torch.inference_mode():
        together = network(input_ids=rows.padded(range(3), 0), attention_mask=mask.padded(range(3), 0)).logits
        for number, logits in enumerate(together):
            alone = network(**tokenizer(TEXTS[number], return_tensors="pt")).logits[0]
            torch.testing.assert_close(logits, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("cls", "settings", "kind"),
    [
        (tf.ModernBertForMaskedLM, lambda: tf.ModernBertConfig(**SMALL, cls_token_id=1, sep_token_id=2), CLASSES),
        (tf.T5ForConditionalGeneration, lambda: tf.T5Config(**T5), NEWS),
        (tf.GPT2LMHeadModel, lambda: tf.GPT2Config(**SMALL, n_inner=32), CLASSES),
        (tf.Phi3ForCausalLM, lambda: tf.Phi3Config(**SMALL), CLASSES),
    ],
    ids=["modernbert", "t5", "gpt2", "phi3"],
)
def test_dropout_reaches_the_layers_of_an_architecture(cls, settings, kind, tmp_path, monkeypatch):
    model = folder_of(tmp_path, cls, settings(), pad_token="<pad>")
    model.dropout, model.attention = 0.37, "eager"
    network = load_model(model, kind, 1).network.train()
    seen = []
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda x, p=0.5, *rest, **more: seen.append(p) or x)
    ids = torch.full((2, 8), 7)
    network(input_ids=ids, labels=ids if kind is NEWS else torch.tensor([0, 1]))
    assert seen.count(0.37) >= 2 * settings().num_hidden_layers and set(seen) <= {0.37, 0.0}
