"""Items of summaries and images, and the reading of outputs, against tokenizer, PIL and worked examples."""

from __future__ import annotations

import copy
import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from torch import nn

from elalora.errors import UserError
from experiments.config.task import TaskConfig
from experiments.data.image_items import ImageItems
from experiments.data.items import make_items
from experiments.models.decoding import decoding
from experiments.models.files import embedded_minilm
from experiments.training.metrics import rouge
from experiments.training.readout import Classes, NotFinite, Values, make_readout

SUMMARY = TaskConfig(
    name="news", source="summarization", suite="summarization", subset="xsum", kind="summarization",
    text=["document"], metrics=["rougeL", "rouge1"], max_length=8, target_length=6, generate_length=5, beams=2,
)  # fmt: skip
DOCUMENTS = ["The cat sat on the mat all day and would not move for anyone.", "Rain fell.", "Good film, bad end."]
TARGETS = ["The cat stayed put all day long, it seems.", "It rained.", "Mixed."]


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(embedded_minilm())


def news():
    rows = {"idx": [4, 5, 6], "document": DOCUMENTS, "label": TARGETS, "references": [[t, "Other."] for t in TARGETS]}
    return Dataset.from_dict(rows)


def test_a_batch_of_summaries_is_what_the_tokenizer_would_make(tokenizer, tmp_path):
    items = make_items(news(), tokenizer, SUMMARY, str(tmp_path))
    batch = items.batch([2, 0])
    inputs = tokenizer(
        [DOCUMENTS[2], DOCUMENTS[0]], truncation=True, max_length=8, padding=True, pad_to_multiple_of=8,
        return_tensors="pt",
    )  # fmt: skip
    targets = tokenizer(text_target=[TARGETS[2], TARGETS[0]], truncation=True, max_length=6)["input_ids"]
    assert torch.equal(batch["input_ids"], inputs["input_ids"])
    assert torch.equal(batch["attention_mask"], inputs["attention_mask"])
    assert batch["labels"].tolist() == [t + [-100] * (8 - len(t)) for t in targets]
    assert items.truncated == 1 and items.truncated_targets == 1
    assert items.weight([2, 0]) == sum(map(len, targets)) and items.references[0] == [TARGETS[0], "Other."]
    again = make_items(news(), tokenizer, SUMMARY, str(tmp_path))
    assert again.cached and again.batch([2, 0])["labels"].tolist() == batch["labels"].tolist()
    assert (again.truncated, again.truncated_targets) == (1, 1)


def png(pixels, mode="RGB"):
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels, dtype=np.uint8), mode).save(buffer, "png")
    return buffer.getvalue()


class WANTED:
    """The format of a model: bytes of 4 x 6 pixels, and the numbers that follow."""

    size, divisor, mean, std = (4, 6), 255.0, (0.5, 0.4, 0.3), (0.5, 0.2, 0.1)

    @staticmethod
    def fitted(image):
        return np.array(image.resize((6, 4), Image.Resampling.BICUBIC)).transpose(2, 0, 1).copy()


def pictures(*files):
    return Dataset.from_dict({"idx": range(len(files)), "image": list(files), "label": [1] * len(files)})


def test_an_image_is_resized_scaled_and_normalised_channel_by_channel():
    colours = np.random.default_rng(0).integers(0, 256, (4, 6, 3))
    grey = np.full((9, 9), 51)
    batch = ImageItems(pictures(png(colours), png(grey, "L")), WANTED).batch([0, 1])
    expected = (colours / 255 - np.array(WANTED.mean)) / np.array(WANTED.std)  # already of the size: not resampled
    assert batch["pixel_values"].shape == (2, 3, 4, 6) and batch["labels"].tolist() == [1, 1]
    np.testing.assert_allclose(batch["pixel_values"][0].numpy(), expected.transpose(2, 0, 1), atol=1e-5)
    for channel in range(3):
        flat = (0.2 - WANTED.mean[channel]) / WANTED.std[channel]
        np.testing.assert_allclose(batch["pixel_values"][1, channel].numpy(), flat, atol=1e-5)


def test_images_beyond_the_memory_bound_are_the_same_decoded_each_time(monkeypatch):
    import experiments.data.image_items as images

    rows = pictures(png(np.random.default_rng(1).integers(0, 256, (8, 8, 3))))
    held = ImageItems(rows, WANTED)
    monkeypatch.setattr(images, "MEMORY", 0)
    fresh = ImageItems(rows, WANTED)
    assert held._decoded is not None and fresh._decoded is None
    assert torch.equal(held.batch([0])["pixel_values"], fresh.batch([0])["pixel_values"])


def test_a_broken_image_is_named():
    with pytest.raises(UserError, match="image 0 cannot be decoded"):
        ImageItems(pictures(png(np.zeros((4, 4, 3)))[:30]), WANTED).batch([0])


def test_rouge_is_the_overlap_counted_by_hand():
    # police killed the gunman / police kill the gunman (Lin 2004): stemming makes kill and killed one word
    found = rouge([["police killed the gunman"]], ["police kill the gunman"])
    assert found["rouge1"][0] == pytest.approx(1.0) and found["rougeL"][0] == pytest.approx(1.0)
    # the gunman kill police: all words, longest common subsequence "the gunman", bigram "the gunman" of three
    found = rouge([["police killed the gunman"]], ["the gunman kill police"])
    assert found["rouge1"][0] == pytest.approx(1.0)
    assert found["rouge2"][0] == pytest.approx(1 / 3) and found["rougeL"][0] == pytest.approx(2 / 4)


def test_of_several_references_the_best_counts_for_each_variant_on_its_own():
    references = [["a b c d", "d c b a e"]]
    found = rouge(references, ["a b c"])
    # against the first: 3 of 3 and 3 of 4 words; against the second 3 of 3 and 3 of 5
    assert found["rouge1"][0] == pytest.approx(2 * 1 * 0.75 / 1.75)
    assert found["rougeL"][0] == pytest.approx(2 * 1 * 0.75 / 1.75)


def test_rouge_lsum_takes_sentences_as_lines():
    # summary level: each sentence finds its own match, in whatever order; as one line only one of them can
    found = rouge([["Dogs bark loudly. Cats sleep."]], ["Cats sleep. Dogs bark loudly."])
    assert found["rougeLsum"][0] == pytest.approx(1.0)
    assert found["rougeL"][0] == pytest.approx(3 / 5)


class Logits(nn.Module):
    """A model that answers with the logits it was given."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, **batch):
        assert "labels" not in batch
        return SimpleNamespace(logits=self.logits)


def test_a_class_is_the_largest_logit_and_its_score_the_margin_to_the_next():
    task = TaskConfig(name="t", source="files", subset="t", metrics=["accuracy"])
    items = SimpleNamespace(idx=torch.tensor([7, 8, 9]))
    model = Logits([[1.0, 3.0, 2.5], [0.0, -1.0, 0.25]])
    rows = Classes(task).read(model, items, [2, 0], {"labels": torch.tensor([1, 0])})
    assert rows == [(9, 1, 1, 0.5), (7, 0, 2, 0.25)]
    assert Classes(task).score(rows) == ({"accuracy": 50.0}, False)
    with pytest.raises(NotFinite, match="lower trainer.lr"):
        Classes(task).read(Logits([[float("nan"), 0.0]]), items, [0], {"labels": torch.tensor([1])})


def test_a_value_is_its_own_score():
    task = TaskConfig(name="t", source="glue", subset="stsb", kind="regression", metrics=["pearson"])
    rows = Values(task).read(
        Logits([[1.5], [2.5]]), SimpleNamespace(idx=torch.arange(2)), [0, 1], {"labels": torch.tensor([1.0, 2.0])}
    )
    assert rows == [(0, 1.0, 1.5, 1.5), (1, 2.0, 2.5, 2.5)] and Values(task).score(rows)[0]["pearson"] == 100.0


def bart(vocabulary):
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(
        vocab_size=vocabulary, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=64,
        pad_token_id=0, bos_token_id=101, eos_token_id=102, decoder_start_token_id=102, forced_eos_token_id=102,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BartForConditionalGeneration(config).eval()


def test_summaries_are_those_of_plain_beam_search_whatever_the_batch(tokenizer, tmp_path):
    model = bart(len(tokenizer))
    items = make_items(news(), tokenizer, SUMMARY, str(tmp_path))
    plainly = copy.deepcopy(model)
    model.generation_config = decoding(SUMMARY, model.generation_config)
    readout = make_readout(SUMMARY, tokenizer, model)
    search = {"num_beams": 2, "max_new_tokens": 5, "no_repeat_ngram_size": 3, "early_stopping": True}
    with torch.inference_mode():
        together = readout.read(model, items, [0, 1, 2], items.batch([0, 1, 2]))
        alone = [readout.read(model, items, [i], items.batch([i]))[0] for i in range(3)]
        for i, row in enumerate(alone):
            ids = tokenizer(DOCUMENTS[i], truncation=True, max_length=8, return_tensors="pt").input_ids
            plain = plainly.generate(input_ids=ids, **search)
            assert row[2] == tokenizer.decode(plain[0], skip_special_tokens=True).strip()
    assert [row[:3] for row in together] == [row[:3] for row in alone]
    assert [row[0] for row in together] == [4, 5, 6] and together[1][1] == ["It rained.", "Other."]
    scores, same = readout.score(together)
    assert list(scores) == ["rougeL", "rouge1"] and not (same and len({row[2] for row in together}) > 1)
    assert scores["rougeL"] == pytest.approx(np.mean([row[3] for row in together]))


def test_the_loss_of_a_batch_of_summaries_is_the_weighted_mean_of_its_parts(tokenizer, tmp_path):
    """What accumulation relies on: weights are target tokens, not items."""
    model = bart(len(tokenizer)).double()
    items = make_items(news(), tokenizer, SUMMARY, str(tmp_path))
    whole = model(**items.batch([0, 1, 2])).loss
    parts = sum(model(**items.batch(p)).loss * items.weight(p) for p in ([0], [1, 2])) / items.weight([0, 1, 2])
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=0)
    unweighted = (model(**items.batch([0])).loss + 2 * model(**items.batch([1, 2])).loss) / 3
    assert abs(unweighted - whole) > 1e-4
