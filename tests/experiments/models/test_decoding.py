"""Summaries are decoded as the task says, whatever the checkpoint was made for; the rest is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import transformers as tf
from architectures import PAIR, random_model, save_tokenizer
from tiny_runs import config

from elalora import UserError
from experiments.config.schema import ModelConfig
from experiments.config.task import TaskConfig, check_task
from experiments.models.fit import fit
from experiments.models.load import load_model, load_processor
from experiments.runs.plan import make_plan
from experiments.training.readout import make_readout

NEWS = TaskConfig(
    name="t", source="files", subset="t", kind="summarization", text=["document"], num_labels=1, metrics=["rouge1"],
    max_length=16, target_length=8, generate_length=12, beams=3,
)  # fmt: skip
# what facebook/bart-base and facebook/bart-large have in config.json, beside special tokens
BART = {"no_repeat_ngram_size": 3, "early_stopping": True, "num_beams": 4}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bart")
    random_model(tf.BartForConditionalGeneration, tf.BartConfig(**PAIR), scale=3.0).save_pretrained(folder)
    save_tokenizer(folder, pad_token="<pad>", eos_token="</s>", bos_token="<s>")
    (folder / "generation_config.json").unlink()
    return folder


def with_settings(place, folder, file, **settings):
    """The model with generation settings of its own: in a file of theirs, or in config.json as older ones have them."""
    folder.mkdir()
    for source in place.iterdir():
        (folder / source.name).symlink_to(source)
    tokens = {key: PAIR[key] for key in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")}
    before = json.loads((place / file).read_text()) if (place / file).is_file() else tokens
    (folder / file).unlink(missing_ok=True)
    (folder / file).write_text(json.dumps(before | settings))
    return folder


def loaded(folder, task):
    own = ModelConfig(name="m", path=str(folder))
    tokenizer, network = load_processor(own, task), load_model(own, task, 0).network.eval()
    fit(own, task, network, tokenizer)
    return network, tokenizer


IDS = torch.tensor([[4, 5, 6, 7, 2], [9, 8, 7, 6, 2]])


def generated(folder, task):
    network, _ = loaded(folder, task)
    assert make_readout(task, None, network).generate == network.generate
    return network.generate(input_ids=IDS).tolist()


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_barts_own_settings_are_the_tasks_default_so_its_summaries_are_unchanged(file, place, tmp_path):
    """Before, the search was beams and length of the task and everything else of the checkpoint."""
    folder = with_settings(place, tmp_path / "m", file, **BART)
    theirs = tf.BartForConditionalGeneration.from_pretrained(folder).eval()
    assert theirs.generation_config.no_repeat_ngram_size == 3
    before = theirs.generate(input_ids=IDS, num_beams=3, max_new_tokens=12, use_cache=True).tolist()
    assert generated(folder, NEWS) == before


def test_a_checkpoint_without_settings_is_decoded_like_one_with_them(place, tmp_path):
    folder = with_settings(place, tmp_path / "m", "config.json", **BART | {"num_beams": 7, "max_length": 3})
    assert generated(folder, NEWS) == generated(place, NEWS)


@pytest.mark.parametrize(
    ("change", "search"),
    [
        ({"min_generate_length": 12}, {"min_new_tokens": 12}),
        ({"length_penalty": -4.0}, {"length_penalty": -4.0}),
        ({"no_repeat_ngram": 1}, {"no_repeat_ngram_size": 1}),
        ({"no_repeat_ngram": 0, "early_stopping": False}, {"no_repeat_ngram_size": 0, "early_stopping": False}),
        ({"beams": 1, "generate_length": 5}, {"num_beams": 1, "max_new_tokens": 5, "early_stopping": False}),
    ],
)
def test_each_setting_of_the_task_is_that_of_plain_generation(change, search, place):
    plain = tf.BartForConditionalGeneration.from_pretrained(place).eval()
    whole = {"num_beams": 3, "max_new_tokens": 12, "no_repeat_ngram_size": 3, "early_stopping": True} | search
    assert generated(place, replace(NEWS, **change)) == plain.generate(input_ids=IDS, **whole).tolist()


REFUSED = {
    "length_penalty": ({"length_penalty": 0.8}, "made to generate with task.length_penalty=0.8, which this task"),
    "min_length": ({"min_length": 12}, "task.min_generate_length=11.*type that, or other values"),
    "min_new_tokens": ({"min_new_tokens": 5}, "task.min_generate_length=5"),
    "sampling": (
        {"do_sample": True, "top_p": 0.9},
        "with do_sample=True, which no task sets; copy the model",
    ),
    "repetitions": ({"repetition_penalty": 1.3}, "repetition_penalty=1.3, which no task sets"),
    "input n-grams": ({"encoder_no_repeat_ngram_size": 4}, "encoder_no_repeat_ngram_size=4, which no task sets"),
    "suppressed": ({"suppress_tokens": [5]}, "suppress_tokens=.5., which no task sets"),
}


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_a_checkpoint_was_made_for_is_never_inherited_in_silence(name, file, place, tmp_path):
    settings, line = REFUSED[name]
    folder = with_settings(place, tmp_path / "m", file, **settings)
    with pytest.raises(UserError, match=line) as caught:
        loaded(folder, NEWS)
    assert "\n" not in str(caught.value)


def test_the_line_of_a_refusal_is_what_to_type(place, tmp_path):
    folder = with_settings(place, tmp_path / "m", "config.json", length_penalty=0.5, min_length=9)
    theirs = tf.BartForConditionalGeneration.from_pretrained(folder).eval()
    search = {"num_beams": 3, "max_new_tokens": 12, "no_repeat_ngram_size": 3, "early_stopping": True}
    asked = replace(NEWS, length_penalty=0.5, min_generate_length=8)
    assert generated(folder, asked) == theirs.generate(input_ids=IDS, **search).tolist()
    assert generated(folder, replace(NEWS, length_penalty=1.0, min_generate_length=0)) == generated(place, NEWS)


def test_special_tokens_stay_the_checkpoints(place, tmp_path):
    tokens = {"forced_bos_token_id": 5, "forced_eos_token_id": 2, "bad_words_ids": [[7]]}
    network, _ = loaded(with_settings(place, tmp_path / "m", "config.json", **tokens), NEWS)
    rows = network.generate(input_ids=IDS)
    assert rows[:, 1].tolist() == [5, 5] and not (rows == 7).any()
    assert network.generation_config.decoder_start_token_id == 2


def test_the_settings_are_part_of_the_identity_of_summaries_where_they_differ_from_the_default():
    def plan(*words):
        return make_plan(config("model=bart_base", "task=xsum", *words))

    plain = plan()
    for word in ("task.length_penalty=2.0", "task.min_generate_length=5", "task.no_repeat_ngram=0",
                 "task.early_stopping=false"):  # fmt: skip
        assert plan(word).id != plain.id and word.split("=")[0].removeprefix("task.") not in plain.identity["task"]
    classes = [make_plan(config("model=minilm", "task=cola", *more)) for more in ((), ("task.no_repeat_ngram=0",))]
    assert classes[0].id == classes[1].id


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"min_generate_length": 13}, "task.min_generate_length=13 must lie between 0 and task.generate_length=12"),
        ({"no_repeat_ngram": -1}, "task.no_repeat_ngram=-1 must be at least 0"),
        ({"length_penalty": float("inf")}, "task.length_penalty=inf must be finite"),
    ],
)
def test_settings_out_of_range_are_refused(change, line):
    with pytest.raises(UserError, match=line):
        check_task(replace(NEWS, **change))
