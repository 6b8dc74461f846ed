"""What trains, what selects and what is reported, under each protocol."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from elalora.errors import UserError
from experiments.config.task import Kind, Protocol, ProtocolConfig, Suite, TaskConfig
from experiments.data import TaskData
from experiments.data.content import make_split
from experiments.data.protocols import Splits, apply_protocol, draw
from experiments.runtime.places import CHECKOUT

CONF = CHECKOUT / "conf" / "protocol"


def task_data(sizes: dict[str, int], kind: str = "classification", suite: str = "own") -> TaskData:
    """Splits of the given sizes; idx differ over all of them and a third of the labels is 1."""
    task = TaskConfig(name="toy", source="vader", subset="toy", suite=Suite(suite), kind=Kind(kind), text=["text"])
    splits, start = {}, 0
    for name, size in sizes.items():
        idx = list(range(start, start + size))
        labels = [int(i % 3 == 0) for i in idx] if kind == "classification" else [i / 7 for i in idx]
        splits[name] = make_split(task, {"idx": idx, "text": [f"text {i}" for i in idx], "label": labels})
        start += size
    return TaskData(task, splits, "fingerprint", "made up")


THREE = {"train": 80, "validation": 10, "test": 10}
TWO = {"train": 600, "validation": 50}


def numbers(dataset: object) -> list[int]:
    return list(dataset["idx"])  # type: ignore[index]


def apply(sizes: dict[str, int], name: str, split_seed: int = 0, **rest: int | None) -> Splits:
    given_ = {"train_items": None, "seed": 0, **rest}
    return apply_protocol(task_data(sizes), ProtocolConfig(name, split_seed), **given_)  # type: ignore[arg-type]


def test_clean_on_three_splits_selects_on_validation_and_reports_test() -> None:
    splits = apply(THREE, "clean")
    assert numbers(splits.train) == list(range(80))
    assert splits.select is not None and numbers(splits.select) == list(range(80, 90))
    assert numbers(splits.report) == list(range(90, 100))
    assert (splits.select_name, splits.report_name) == ("validation", "test")


def test_clean_without_a_test_split_holds_out_a_tenth_of_train_and_reports_validation() -> None:
    splits = apply(TWO, "clean")
    assert splits.select is not None
    assert len(splits.select) == 60 and len(splits.train) == 540
    assert sorted(numbers(splits.train) + numbers(splits.select)) == list(range(600))
    assert numbers(splits.report) == list(range(600, 650))
    assert (splits.select_name, splits.report_name) == ("held_out", "validation")


def test_clean_holds_out_at_most_a_thousand() -> None:
    splits = apply({"train": 12_000, "validation": 5}, "clean")
    assert splits.select is not None and len(splits.select) == 1000


def test_the_held_out_rows_follow_the_split_seed_and_not_the_run_seed() -> None:
    held_out = [numbers(apply(TWO, "clean", split_seed=s, seed=seed).select) for s, seed in ((0, 0), (0, 5), (1, 0))]
    assert held_out[0] == held_out[1]
    assert held_out[0] != held_out[2]


def test_paper_protocols_train_on_everything_but_the_reported_split() -> None:
    last, best = apply(THREE, "paper_last"), apply(THREE, "paper_best")
    for splits in (last, best):
        assert numbers(splits.train) == list(range(90))
        assert numbers(splits.report) == list(range(90, 100))
    assert last.select is None and last.select_name is None
    assert best.select is best.report and best.select_name == best.report_name == "test"


def test_paper_protocols_on_two_splits_train_on_all_of_train_and_report_validation() -> None:
    last, best = apply(TWO, "paper_last"), apply(TWO, "paper_best")
    assert len(last.train) == len(best.train) == 600
    assert last.report_name == best.select_name == "validation"


@pytest.mark.parametrize("name", Protocol)
@pytest.mark.parametrize("sizes", [THREE, TWO])
def test_no_training_row_is_ever_reported_or_selected_on(name: str, sizes: dict[str, int]) -> None:
    splits = apply(sizes, name)
    others = set(numbers(splits.report)) | set(numbers(splits.select) if splits.select else [])
    assert not set(numbers(splits.train)) & others


def test_mnli_reports_its_matched_validation_split_under_its_name() -> None:
    assert apply({"train": 20, "validation_matched": 5}, "clean").report_name == "validation_matched"


def test_a_training_subset_is_stratified_and_drawn_by_the_run_seed() -> None:
    first, again = (apply(TWO, "clean", train_items=90, seed=3) for _ in range(2))
    other = apply(TWO, "clean", train_items=90, seed=4)
    assert numbers(first.train) == numbers(again.train) != numbers(other.train)
    assert Counter(first.train["label"]) == {0: 60, 1: 30}
    assert set(numbers(first.train)) <= set(numbers(apply(TWO, "clean").train))
    assert first.select is not None and other.select is not None
    assert numbers(first.select) == numbers(other.select)


def test_a_subset_for_regression_is_drawn_without_regard_to_labels() -> None:
    data = task_data(TWO, "regression")
    splits = apply_protocol(data, ProtocolConfig("paper_last"), train_items=77, seed=1)
    assert len(set(numbers(splits.train))) == 77


def test_a_limit_that_the_task_declared_takes_all_of_fewer_items() -> None:
    """WNLI and VTAB-1k have fewer than the items of trainer=quick."""
    data = task_data(TWO)
    data.config.quick_items = 1600
    splits = apply_protocol(data, ProtocolConfig("clean"), train_items=1600, seed=0)
    assert len(splits.train) == splits.available == 540
    with pytest.raises(UserError, match="data.train_items=1601"):
        apply_protocol(data, ProtocolConfig("clean"), train_items=1601, seed=0)


def test_evaluated_subsets_are_stratified_and_the_same_for_every_seed() -> None:
    protocol = ProtocolConfig("clean")
    some = [apply_protocol(task_data(TWO), protocol, train_items=90, seed=s, eval_items=30) for s in (3, 4)]
    whole = apply(TWO, "clean")
    for splits in some:
        assert splits.select is not None and len(splits.select) == len(splits.report) == 30
        assert splits.reportable == len(whole.report) > 30
        assert Counter(splits.report["label"]) == {0: 20, 1: 10}
    assert numbers(some[0].report) == numbers(some[1].report) and set(numbers(some[0].report)) <= set(
        numbers(whole.report)
    )
    more = apply_protocol(task_data(TWO), protocol, train_items=None, seed=0, eval_items=10**6)
    assert numbers(more.report) == numbers(whole.report)
    with pytest.raises(UserError, match="data.eval_items=0 must be at least 1"):
        apply_protocol(task_data(TWO), protocol, train_items=None, seed=0, eval_items=0)


@pytest.mark.parametrize("size", [0, 541])
def test_a_subset_that_train_cannot_give_is_refused_with_the_largest_size(size: int) -> None:
    with pytest.raises(UserError, match=f"data.train_items={size}.*540 training items.*data.train_items=null"):
        apply(TWO, "clean", train_items=size)


def test_every_protocol_has_a_config_of_its_name() -> None:
    for name in Protocol:
        config = OmegaConf.merge(OmegaConf.structured(ProtocolConfig), OmegaConf.load(CONF / f"{name}.yaml"))
        assert OmegaConf.to_object(config) == ProtocolConfig(name)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.data())
def test_a_draw_has_its_size_and_every_class_within_one_row_of_its_share(
    classes: list[int], data: st.DataObject
) -> None:
    size = data.draw(st.integers(0, len(classes)))
    chosen = draw(range(100, 100 + len(classes)), classes, size, "salt")
    assert chosen == sorted(set(chosen)) and len(chosen) == size
    drawn = Counter(classes[i] for i in chosen)
    for label, rows in Counter(classes).items():
        assert abs(drawn[label] - size * rows / len(classes)) < 1


def test_a_draw_is_spread_evenly_over_the_rows() -> None:
    chosen = draw(range(4000), [0] * 4000, 2000, "salt")
    # Binomial-like: the count in a quarter has a standard deviation of about 19.
    for quarter in range(4):
        assert abs(sum(quarter * 1000 <= i < (quarter + 1) * 1000 for i in chosen) - 500) < 100


def parts(name: str, suite: str) -> tuple[int, int | None, str, int]:
    """Training items, selecting items, and the name and size of the reported split, of a task with three splits."""
    splits = apply_protocol(task_data(THREE, suite=suite), ProtocolConfig(name), train_items=None, seed=0)
    return len(splits.train), splits.select and len(splits.select), splits.report_name, len(splits.report)


@pytest.mark.parametrize(
    ("suite", "protocol", "expected"),
    [
        # VTAB-1k (Zhai et al. 2019): tune on 800 / 200, then train once on all 1,000; ElaLoRA's code trains on the 800
        ("vtab", "tune", (80, None, "validation", 10)),
        ("vtab", "clean", (90, None, "test", 10)),
        ("vtab", "paper_last", (80, None, "test", 10)),
        ("vtab", "paper_best", (80, 10, "test", 10)),
        # summaries: ElaLoRA's code reports validation and never reads test
        ("summarization", "tune", (80, None, "validation", 10)),
        ("summarization", "clean", (80, 10, "test", 10)),
        ("summarization", "paper_last", (80, None, "validation", 10)),
        ("own", "tune", (80, None, "validation", 10)),
        ("own", "paper_last", (90, None, "test", 10)),
    ],
)
def test_each_benchmark_has_its_own_papers_protocol(
    suite: str, protocol: str, expected: tuple[int, int | None, str, int]
) -> None:
    assert parts(protocol, suite) == expected


def test_tuning_never_reads_what_clean_reports() -> None:
    for sizes in (TWO, THREE):
        reported = set(numbers(apply(sizes, "clean").report))
        tuned = apply(sizes, "tune")
        assert not reported & set(numbers(tuned.train) + numbers(tuned.report)) and tuned.select is None
