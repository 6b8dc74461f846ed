"""ROUGE for every script, against rouge-score with plain tokenizers written for one script each."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from datasets_on_disk import own, write_jsonl
from fuzzing import fuzzed
from hypothesis import strategies as st

from elalora.errors import UserError
from experiments.config.task import METRICS
from experiments.data.words import unicode_words
from experiments.training.metrics import ROUGES, _scorer, rouge


def scorer_of(names: Sequence[str], **settings: Any) -> Any:
    """rouge-score's own, imported after the product's: its logging keeps, and later closes, the stderr it finds."""
    _scorer(("rouge1",), False)
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(names, **settings)


UNICODE = tuple(f"{name}_unicode" for name in ROUGES)
TEXTS = {
    "Chinese": "今天的天气很好，我们去公园散步。",
    "Japanese": "今日はとても良い天気です。",
    "Thai": "วันนี้อากาศดีมาก",
    "Hindi": "आज मौसम बहुत अच्छा है।",
    "Russian": "Сегодня хорошая погода, и мы идём в парк.",
    "Persian": "امروز هوا بسیار خوب است.",
    "Arabic": "الطقس جميل اليوم",
    "Korean": "오늘은 날씨가 매우 좋습니다.",
    "Greek": "Σήμερα ο καιρός είναι καλός.",
    "Tamil": "இன்று வானிலை நன்றாக உள்ளது",
}


@pytest.mark.parametrize("language", TEXTS)
def test_identical_text_scores_one_in_every_script(language: str) -> None:
    text = TEXTS[language]
    found = rouge([[text]], [text], UNICODE)
    assert {name: values.tolist() for name, values in found.items()} == dict.fromkeys(UNICODE, [1.0])
    assert rouge([[text]], ["other words"], UNICODE)["rouge1_unicode"][0] == 0.0


class Plain:
    """A tokenizer of one script, for rouge-score."""

    def __init__(self, tokenize: Callable[[str], list[str]]) -> None:
        self.tokenize = tokenize


# words of each script, what joins them, and how a plain tokenizer finds them again
SCRIPTS: dict[str, tuple[list[str], str, Callable[[str], list[str]]]] = {
    "Chinese": (list("今天气很好我们去公园散步看花"), "", list),
    "Hindi": ("आज मौसम बहुत अच्छा है हम बाग़ में घूमने जाते हैं".split(), " ", str.split),
    "Russian": ("сегодня хорошая погода и мы идём в парк ещё раз".split(), " ", str.split),
    "Persian": ("امروز هوا بسیار خوب است و ما به پارک رفتیم".split(), " ", str.split),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_scores_are_those_of_rouge_score_with_a_tokenizer_of_that_script(script: str) -> None:
    words, joint, tokenize = SCRIPTS[script]
    scorer = scorer_of(ROUGES, tokenizer=Plain(tokenize))
    draw = random.Random(0)
    for _ in range(40):
        first, second, guess = (joint.join(draw.choices(words, k=draw.randint(1, 9))) for _ in range(3))
        expected = scorer.score_multi([first, second], guess)
        found = rouge([[first, second]], [guess], UNICODE)
        assert {n: found[f"{n}_unicode"][0] for n in ROUGES} == {n: expected[n].fmeasure for n in ROUGES}


@fuzzed(200, texts=st.lists(st.text(st.characters(codec="ascii"), max_size=40), min_size=2, max_size=2))
def test_on_ascii_text_the_words_are_those_of_rouge_score_without_stemming(texts: list[str]) -> None:
    first, second = (" ".join(text.split()) for text in texts)
    names = ("rouge1", "rouge2", "rougeL")
    expected = scorer_of(names, use_stemmer=False).score(first, second)
    found = rouge([[first]], [second], [f"{name}_unicode" for name in names])
    assert [found[f"{n}_unicode"][0] for n in names] == [expected[n].fmeasure for n in names]


def test_words_are_runs_of_letters_with_their_marks_or_single_letters_where_a_script_has_no_blanks() -> None:
    assert unicode_words("Ünïcode-Test_42!") == ["ünïcode", "test", "42"]
    assert unicode_words("e\u0301te\u0301") == ["\u00e9t\u00e9"]  # composed or not
    assert unicode_words("हिन्दी है।") == ["हिन्दी", "है"]
    assert unicode_words("中文ABC 2024年，好！") == ["中", "文", "abc", "2024", "年", "好"]
    assert unicode_words("ที่นี่") == ["ที่", "นี่"]
    assert unicode_words("می\u200cرود") == ["می", "رود"]
    assert unicode_words(" …。😀 \u0301") == []


def test_sentences_of_other_scripts_end_at_their_own_full_stops() -> None:
    for first, second in (("狗叫。", "猫睡觉。"), ("कुत्ता भौंका। ", "बिल्ली सोई। "), ("کتا بھونکا۔ ", "بلی سو گئی۔ ")):
        found = rouge([[first + second]], [second + first], ["rougeLsum_unicode", "rougeL_unicode"])
        assert found["rougeLsum_unicode"][0] == pytest.approx(1.0) and found["rougeL_unicode"][0] < 1


def test_both_kinds_may_be_asked_for_together_and_are_named_in_the_schema() -> None:
    found = rouge([["Слово word"]], ["слово words"], ["rouge1_unicode", "rouge1"])
    assert list(found) == ["rouge1_unicode", "rouge1"]
    assert (found["rouge1_unicode"][0], found["rouge1"][0]) == (0.5, 1.0)  # the plain rule stems and sees one word
    assert METRICS["summarization"] == ROUGES + UNICODE


SUMMARY = {"kind": "summarization", "num_labels": 1}


def load(root: Path, labels: list[str], metrics: list[str]) -> None:
    write_jsonl(root / "a.jsonl", [{"text": "long", "label": label} for label in labels])
    own(root, "a.jsonl", None, files={"validation": "a.jsonl"}, metrics=metrics, **SUMMARY)


@pytest.mark.parametrize("language", TEXTS)
def test_summaries_in_which_a_metric_finds_no_word_are_refused_before_anything_is_trained(
    language: str, tmp_path: Path
) -> None:
    message = r"a.jsonl: rouge1 finds no word in the summary of row 2; it knows a-z and 0-9 only; "
    message += r"type 'task.metrics=\[rouge1_unicode,rougeL_unicode\]'"
    with pytest.raises(UserError, match=message):
        load(tmp_path, ["plain words", TEXTS[language]], ["rouge1", "rougeL_unicode"])
    load(tmp_path, ["plain words", TEXTS[language]], ["rouge1_unicode", "rougeL_unicode"])


def test_summaries_of_which_a_metric_sees_digits_and_names_only_are_refused(tmp_path: Path) -> None:
    labels = [f"В {year} году Apple открыла новый магазин" for year in range(2000, 2010)]
    with pytest.raises(UserError, match=r"rougeL sees 2\d % of the summaries' letters; it knows a-z and 0-9 only"):
        load(tmp_path, labels, ["rougeL"])
    load(tmp_path, labels, ["rougeL_unicode"])


def test_accents_quotes_and_rows_without_any_letter_stay_readable_by_the_plain_rule(tmp_path: Path) -> None:
    load(tmp_path, ["Élève à l’école", "“so”", "…", "Thời tiết hôm nay rất đẹp"], ["rouge1"])
