"""Answers read from causal models: each way against one sequence at a time without padding, in float64."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from tiny_causal import causal_task, reviews, sums, tiny_llama, tiny_tokenizer
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from experiments.config.schema import ModelConfig
from experiments.data.items import make_items
from experiments.models.decoding import greedy
from experiments.models.fit import fit
from experiments.training.readout import make_readout
from experiments.training.rows import NotFinite

MODEL = ModelConfig(name="tiny", path="tiny")
EVERY = [0, 1, 2]
TEXTS = ("a good film", "bad", "so slow, so dull, the plot was not so great and the actor was dull")


def read(model, tokenizer, task, rows, tmp_path, training=False, then=lambda model: None):
    fit(MODEL, task, model, tokenizer)
    then(model)
    items = make_items(rows, tokenizer, task, str(tmp_path), training)
    readout = make_readout(task, tokenizer, model)
    with torch.inference_mode():
        return readout, readout.read(model, items, EVERY, items.batch(EVERY))


def alone(model, tokenizer, prompt, completion):
    """Sum of the log-probabilities of a completion, from one unpadded sequence, in float64."""
    whole = tokenizer(prompt + completion)["input_ids"]
    start = len(tokenizer(prompt)["input_ids"])
    with torch.inference_mode():
        logprobs = model.double()(torch.tensor([whole])).logits[0].log_softmax(-1)
    model.float()
    return sum(float(logprobs[i - 1, whole[i]]) for i in range(start, len(whole)))


def gpt2():
    """A model whose positions are learnt, so that it would count padding on the left."""
    config = GPT2Config(
        vocab_size=400, n_embd=16, n_layer=2, n_head=2, n_positions=128, initializer_range=0.3, eos_token_id=3
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPT2LMHeadModel(config).eval()


@pytest.mark.parametrize("make", [tiny_llama, gpt2])
@pytest.mark.parametrize(
    "options", [["negative", "positive"], ["a", "b"], ["so very dull", "good"]], ids=["words", "letters", "unequal"]
)
def test_options_score_as_each_does_alone_without_padding(tmp_path, make, options):
    model, tokenizer = make(), tiny_tokenizer()
    _, rows = read(model, tokenizer, causal_task(options=options), reviews(texts=TEXTS), tmp_path)
    for row, text, label in zip(rows, TEXTS, (1, 0, 0), strict=True):
        prompt = f"Review: {text}\nSentiment:"
        expected = [alone(model, tokenizer, prompt, f" {option}") for option in options]
        assert row[5] == pytest.approx(expected, rel=1e-4)
        assert row[6] == [len(tokenizer(f" {option}")["input_ids"]) for option in options]
        assert row[7] == [len(option) for option in options]
        assert row[1] == label and row[2] == max((0, 1), key=expected.__getitem__) and row[4] == (row[2] == label)
        assert row[3] == pytest.approx(abs(expected[0] - expected[1]), rel=1e-3)


def test_single_token_options_take_one_forward_pass_and_others_one_with_all(tmp_path):
    calls = []
    for options in (["a", "so"], ["so very dull", "good"]):
        model = tiny_llama()
        model.register_forward_pre_hook(
            lambda _, args, kwargs: calls.append(kwargs["input_ids"].shape[0]), with_kwargs=True
        )
        read(model, tiny_tokenizer(), causal_task(options=options), reviews(texts=TEXTS), tmp_path)
    assert [size for size in calls if size > 1] == [3, 6]  # the check of the output layer takes one row


def test_every_normalisation_follows_from_what_is_stored(tmp_path):
    task = {"options": ["so very dull", "good"]}
    model, tokenizer, sizes = tiny_llama(), tiny_tokenizer(), {"sum": None, "token": 6, "character": 7}
    for score, place in sizes.items():
        _, rows = read(model, tokenizer, causal_task(**task, option_score=score), reviews(texts=TEXTS), tmp_path)
        for row in rows:
            normalised = [p / n for p, n in zip(row[5], row[place] if place else [1, 1], strict=True)]
            assert row[2] == max((0, 1), key=normalised.__getitem__)
            assert row[3] == pytest.approx(abs(normalised[0] - normalised[1]))


MANY = [["so very dull", "good"], ["a", "bad film", "so slow, so dull"], ["good", "bad", "dull", "a", "so very good"]]
SINGLE = [["a", "so"], ["good", "bad", "dull"], ["film", "plot", "actor", "great", "slow"]]  # one token each


def of_each_row(choices, **more):
    task = causal_task(options=[], options_column="choices", metrics=["accuracy", "token_loss"], **more)
    return task, reviews(texts=TEXTS).add_column("options", choices)


@pytest.mark.parametrize("choices", [MANY, SINGLE], ids=["unequal", "single"])
def test_options_of_each_row_are_chosen_by_the_rules_of_lm_eval(tmp_path, choices):
    """Its acc takes the largest sum of log-probabilities, acc_norm the largest sum per character of the option."""
    model, tokenizer, chosen = tiny_llama(), tiny_tokenizer(), {}
    for score in ("sum", "character", "token"):
        task, rows = of_each_row(choices, option_score=score)
        readout, chosen[score] = read(model, tokenizer, task, rows, tmp_path)
    for number, (text, options) in enumerate(zip(TEXTS, choices, strict=True)):
        sums = [alone(model, tokenizer, f"Review: {text}\nSentiment:", f" {option}") for option in options]
        tokens = [len(tokenizer(f" {option}")["input_ids"]) for option in options]
        sizes = {"sum": [1] * len(options), "character": list(map(len, options)), "token": tokens}
        for score, size in sizes.items():
            row, normalised = chosen[score][number], [p / n for p, n in zip(sums, size, strict=True)]
            assert row[2] == max(range(len(options)), key=normalised.__getitem__)
            assert row[3] == pytest.approx(sorted(normalised)[-1] - sorted(normalised)[-2], rel=1e-3)
            assert row[5] == pytest.approx(sums, rel=1e-4) and row[6:] == (tokens, sizes["character"])
    metrics, _ = readout.score(chosen["token"])
    right = [row[2] == row[1] for row in chosen["token"]]
    assert metrics["accuracy"] == pytest.approx(100 * sum(right) / 3) and metrics["token_loss"] > 0


def test_options_of_each_row_take_one_forward_pass_where_all_are_single_tokens(tmp_path):
    calls = []
    for choices in (SINGLE, MANY):
        model = tiny_llama()
        model.register_forward_pre_hook(
            lambda _, args, kwargs: calls.append(kwargs["input_ids"].shape[0]), with_kwargs=True
        )
        read(model, tiny_tokenizer(), *of_each_row(choices), tmp_path)
    assert [size for size in calls if size > 1] == [3, 10]


def test_losses_are_over_the_tokens_of_the_right_options(tmp_path):
    task = causal_task(metrics=["accuracy", "token_loss", "perplexity"])
    readout, rows = read(tiny_llama(), tiny_tokenizer(), task, reviews(texts=TEXTS), tmp_path)
    metrics, _ = readout.score(rows)
    right = [(row[5][row[1]], row[6][row[1]]) for row in rows]
    loss = -sum(p for p, _ in right) / sum(n for _, n in right)
    assert metrics["token_loss"] == pytest.approx(loss) and metrics["perplexity"] == pytest.approx(math.exp(loss))
    assert readout.constant(rows) == {"accuracy": pytest.approx(200 / 3)}


def greedy_alone(model, tokenizer, prompt, length, ends):
    """Greedy tokens from one unpadded sequence without a cache, up to an end token."""
    ids = tokenizer(prompt)["input_ids"]
    made = []
    with torch.inference_mode():
        for _ in range(length):
            token = int(model(torch.tensor([ids + made]), use_cache=False).logits[0, -1].argmax())
            if token in ends:
                break
            made.append(token)
    return tokenizer.decode(made, skip_special_tokens=True).strip()


@pytest.mark.parametrize("make", [tiny_llama, gpt2])
def test_generation_is_that_of_each_prompt_alone_whatever_the_checkpoint_asks_for(tmp_path, make):
    """Padded on the right, or with the checkpoint's sampling, the texts would differ."""
    model, tokenizer = make(), tiny_tokenizer()
    theirs = {"do_sample": True, "temperature": 5.0, "top_k": 3, "repetition_penalty": 9.0, "max_length": 20}
    model.generation_config = GenerationConfig(**theirs, eos_token_id=[3, 5], bos_token_id=1, num_beams=3)
    task = causal_task(answer="generate", options=[], generate_length=12, prompt="{text}", parser="last_number_v1")
    pairs = ((3, 4), (1, 2), (123456789, 987654321))
    _, rows = read(model, tokenizer, task, sums(pairs), tmp_path)
    for row, (a, b) in zip(rows, pairs, strict=True):
        assert row[2] == greedy_alone(model, tokenizer, f"{a} + {b} =", 12, {3, 5})
        assert row[1] == [str(a + b)]
    assert len({row[2] for row in rows}) > 1
    again = read(model, tokenizer, task, sums(pairs), tmp_path)[1]
    assert again == rows


def scripted(texts, tokenizer, task, generate_length=12):
    """A readout whose model generates these texts, each ended and padded."""
    ids = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]
    width = max(map(len, ids))

    def generate(input_ids, **rest):
        made = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in ids])
        return torch.cat([input_ids, made], 1)

    config = GenerationConfig(eos_token_id=[tokenizer.eos_token_id])
    return make_readout(task, tokenizer, SimpleNamespace(generate=generate, generation_config=config))


def test_generated_answers_are_parsed_scored_and_failures_counted(tmp_path):
    tokenizer = tiny_tokenizer()
    task = causal_task(
        answer="generate", options=[], prompt="{text}", parser="last_number_v1", stop=["\n"],
        metrics=["accuracy", "parse_failures", "rougeL"],
    )  # fmt: skip
    items = make_items(sums(), tokenizer, task, str(tmp_path), False)
    readout = scripted([" 7\n 8", " the plot", " so 9"], tokenizer, task)
    rows = readout.read(None, items, EVERY, items.batch(EVERY))
    assert [row[2] for row in rows] == ["7", "the plot", "so 9"]  # cut at the first stop text
    assert [row[5] for row in rows] == ["7", None, "9"] and [row[4] for row in rows] == [True, False, False]
    metrics, collapsed = readout.score(rows)
    assert metrics == {
        "accuracy": pytest.approx(100 / 3),
        "parse_failures": pytest.approx(100 / 3),
        "rougeL": pytest.approx(100 / 3),
    }
    assert not collapsed and readout.constant(rows) == {"accuracy": pytest.approx(100 / 3)}


def test_the_end_token_of_training_stops_generation_even_if_the_checkpoint_does_not_know_it():
    task = causal_task(answer="generate", options=[], stop=["\n"], generate_length=9)
    made = greedy(task, GenerationConfig(eos_token_id=7, do_sample=True, top_p=0.9, min_length=4), pad=0, stop=[3])
    assert made.eos_token_id == [3, 7] and made.stop_strings == ["\n"] and made.max_new_tokens == 9
    assert (made.do_sample, made.num_beams, made.min_length) in ((False, 1, None), (False, 1, 0)) and made.top_p is None


def test_token_losses_are_those_of_each_item_alone(tmp_path):
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    task = causal_task(answer="tokens", options=[], prompt="{text}", metrics=["token_accuracy", "token_loss"])
    readout, rows = read(model, tokenizer, task, sums(), tmp_path)
    for row, (a, b) in zip(rows, ((3, 4), (12, 30), (5, 5)), strict=True):
        end = tokenizer.eos_token
        assert row[4] == pytest.approx(-alone(model, tokenizer, f"{a} + {b} =", f" {a + b}{end}"), rel=1e-4)
        assert row[1] == len(tokenizer(f" {a + b}{end}")["input_ids"]) and row[3] == pytest.approx(row[4] / row[1])
    total = sum(row[4] for row in rows) / sum(row[1] for row in rows)
    assert readout.score(rows)[0]["token_loss"] == pytest.approx(total)


def test_outputs_that_are_not_finite_fail_the_run(tmp_path):
    def broken(model):
        model.model.norm.weight.data[0] = float("nan")

    for task, rows in ((causal_task(), reviews()), (causal_task(answer="tokens"), reviews())):
        with pytest.raises(NotFinite):
            read(tiny_llama(), tiny_tokenizer(), task, rows, tmp_path, then=broken)
