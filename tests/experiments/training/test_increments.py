"""A sequence of increments against an ordinary run, against a loss written out, and across stops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sequences import CLASSES, STEPS, accuracies, items, sequence, task, train, trainer, weights
from torch.nn import functional as F

from elalora import UserError
from experiments.config.increments import check_increments, loss_over, parts_of
from experiments.data.increments import equal_steps, group_order, increments_of, one_increment
from experiments.store.folder import RunFolder

METHODS = {
    "lora": {},
    "sd_lora": {},
    "class_means": {},
    "elalora": {"t_initial": 3, "t_final": 6, "interval": 4, "b": 3},
    "head": {},
}


# -- parts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "parts"),
    [(3, [(0, 1), (2, 3), (4, 5)]), ([3, 2, 1], [(0, 1, 2), (3, 4), (5,)]), ([[5, 0], [1, 2], [4, 3]], None)],
)
def test_increments_are_equal_parts_sizes_or_lists_of_classes(given, parts):
    assert parts_of(task(given), list(range(CLASSES))) == (parts or [tuple(part) for part in given])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (4, r"task.increments=4 does not divide the 6 classes of task=tokens; allowed: 1, 2, 3, 6"),
        ([3, 2], r"sizes must be at least 1 and add up to the 6 classes"),
        ([[0, 1], [2, 3, 4, 4]], r"must have each of the classes 0 to 5 once"),
        ("three", r"is neither a number of equal parts, nor a list of sizes"),
        (True, r"is neither a number of equal parts"),
    ],
)
def test_increments_that_do_not_share_out_the_classes_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        check_increments(task(given))


def test_a_loss_over_a_single_class_is_refused_and_never_the_default():
    with pytest.raises(UserError, match="over which the loss is always 0; type task.increment_loss=seen"):
        check_increments(task(6, increment_loss="current"))
    assert loss_over(task(6), parts_of(task(6), list(range(6)))) == "seen"
    assert loss_over(task(3), parts_of(task(3), list(range(6)))) == "current"


def test_the_order_of_classes_is_the_seeds_or_that_of_their_numbers():
    assert group_order(task(3), 0) != group_order(task(3), 1) and sorted(group_order(task(3), 1)) == list(range(6))
    assert group_order(task(3, class_order="label"), 1) == list(range(6))


def test_fewer_steps_than_increments_are_refused():
    with pytest.raises(UserError, match="trainer.max_steps=2 is below the 3 increments of the task"):
        equal_steps(2)([10, 10, 10])
    assert equal_steps(10)([5, 5, 5]) == [3, 4, 3]


def test_an_increment_without_items_is_refused():
    with pytest.raises(UserError, match=r"the increment \[4, 5\] has no items to train on"):
        increments_of(task(3, class_order="label"), [0, 1, 2, 3], list(range(6)), 0, equal_steps(6))


def test_an_increment_trains_on_its_own_classes_and_predicts_those_seen():
    course = sequence(increments=[3, 2, 1], increment_loss="seen", class_order="label")
    labels = items(0).labels.numpy()
    assert [set(labels[part.items]) for part in course.parts] == [{0, 1, 2}, {3, 4}, {5}]
    assert [part.seen for part in course.parts] == [(0, 1, 2), (0, 1, 2, 3, 4), (0, 1, 2, 3, 4, 5)]
    assert [part.outputs for part in course.parts] == [part.seen for part in course.parts]
    current = sequence(increments=[3, 3], class_order="label")
    assert [part.outputs for part in current.parts] == [(0, 1, 2), (3, 4, 5)]


def test_every_step_of_an_increment_has_items_of_it_alone(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder.working():
        made = trainer(folder, "lora", course := sequence())
    for step in range(STEPS):
        part = course.parts[course.at(step)]
        assert part.start <= step < part.end
        assert set(items(0).labels[made._items(step)].tolist()) <= set(part.groups)


# -- oracles ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_a_sequence_of_one_increment_is_the_ordinary_run_bit_for_bit(name, tmp_path):
    """Joint training on all classes is the same run again: its batches, loss, steps and predictions."""
    plain, lines = train(tmp_path / "plain", name, None, knobs=METHODS[name])
    one, read = train(tmp_path / "one", name, sequence(increments=1), knobs=METHODS[name])
    ours, theirs = weights(one), weights(plain)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in theirs)
    assert one.state.report.rows == plain.state.report.rows
    losses = [[line for line in found if line["split"] == "train"] for found in (lines, read)]
    assert losses[0] == losses[1]


def test_the_loss_is_cross_entropy_over_the_outputs_of_the_current_classes(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder.working():
        made = trainer(folder, "lora", course := sequence(seed=1))
    made.model.eval()  # without dropout
    for part in course.parts:
        batch = made._batch(part.items[:9].tolist())
        logits = made.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        sliced = logits[:, list(part.outputs)]
        targets = torch.tensor([part.outputs.index(int(label)) for label in batch["labels"]])
        expected = -(sliced - sliced.logsumexp(1, keepdim=True))[torch.arange(9), targets].mean()
        torch.testing.assert_close(made._loss(batch, part.start), expected, rtol=1e-12, atol=1e-12)
        grown = torch.autograd.grad(made._loss(batch, part.start), made.model.classifier.weight)[0]
        others = [row for row in range(CLASSES) if row not in part.outputs]
        assert not grown[others].any() and grown[list(part.outputs)].any()
        assert not torch.equal(F.cross_entropy(logits, batch["labels"]), expected)


def test_rows_of_the_head_for_earlier_and_later_classes_stay_as_they_are(tmp_path):
    folder = RunFolder(tmp_path / "run")
    course = sequence()
    with folder.working():
        made = trainer(folder, "lora", course)
        made.resume()
        seen = [made.model.classifier.weight.detach().clone()]
        begin = made.method.begin_increment

        def look(*words):
            seen.append(made.model.classifier.weight.detach().clone())
            return begin(*words)

        made.method.begin_increment = look
        made.run()
    seen.append(made.model.classifier.weight.detach().clone())
    for before, after, part in zip(seen, seen[1:], course.parts, strict=False):
        changed = (before != after).any(1).nonzero().flatten().tolist()
        assert changed == sorted(part.groups)


def test_readings_are_those_of_the_model_at_each_end_over_the_classes_seen(tmp_path):
    course = sequence()
    folder = RunFolder(tmp_path / "run")
    with folder.working():
        made = trainer(folder, "lora", course)
        made.resume()
        expected, begin = {}, made.method.begin_increment
        report = items(2)

        def predict(number, step):
            made.model.eval()
            batch = report.batch(range(90))
            with torch.no_grad():
                logits = made.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            made.model.train()
            seen = sorted(c for part in course.parts[: number + 1] for c in part.groups)
            guess = np.array(seen)[logits[:, seen].argmax(1).numpy()]
            for other in range(number + 1):
                own = np.isin(report.labels.numpy(), course.parts[other].groups)
                expected[step, f"increment {other + 1}"] = 100 * float((guess == report.labels.numpy())[own].mean())

        def look(number, step, *rest):
            predict(number - 1, step)
            return begin(number, step, *rest)

        made.method.begin_increment = look
        made.run()
        predict(2, STEPS)
        made.evaluator.read_last()
        found = accuracies(folder.lines("metrics.jsonl"))
    assert {key: value for key, value in found.items() if key[1].startswith("increment")} == pytest.approx(expected)
    assert found[STEPS, "test"] == pytest.approx(np.mean([expected[STEPS, f"increment {i}"] for i in (1, 2, 3)]))


def test_domains_are_all_read_before_training_and_after_each_and_share_the_head(tmp_path):
    domains = np.arange(90) % 3
    more = dict(domains=["a", "b", "c"], class_order="label")
    course = increments_of(task(3, **more), domains, domains, 0, equal_steps(STEPS))
    assert [part.outputs for part in course.parts] == [None] * 3
    _, lines = train(tmp_path / "run", "lora", course)
    steps = {step for step, split in accuracies(lines) if split == "increment 3"}
    assert steps == {-1, course.parts[0].end - 1, course.parts[1].end - 1, STEPS}


def test_every_increment_begins_with_the_learning_rate_of_a_first_step_and_fresh_moments(tmp_path):
    made, lines = train(tmp_path / "run", "lora", course := sequence())
    rates = [line["value"] for line in lines if line["metric"] == "lr"]
    for part in course.parts:
        assert rates[part.start] == rates[0] and rates[part.end - 1] < rates[part.start + 1]
    ages = {int(state["step"].max()) for state in made.state.optimizer.state.values()}
    assert ages == {course.parts[-1].end - course.parts[-1].start}


def test_an_ordinary_run_is_one_increment_of_all_items():
    course = one_increment(5, 7)
    assert course.parts[0].items.tolist() == [0, 1, 2, 3, 4] and course.stages == (7,)
    assert not any(course.ends_before(step) for step in range(9)) and course.report_groups is None


# -- stops -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [3, 8, 23])  # within increments, and where one ends: within its reading
@pytest.mark.parametrize("name", ["lora", "elalora", "sd_lora", "task_lora", "class_means"])
def test_a_run_that_is_stopped_equals_one_that_is_not_bit_for_bit(name, stop, tmp_path):
    whole, lines = train(tmp_path / "whole", name, sequence(), knobs=METHODS.get(name))
    halves, again = train(tmp_path / "halves", name, sequence(), stop, knobs=METHODS.get(name))
    ours, theirs = weights(halves), weights(whole)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in theirs)
    assert again == lines and halves.state.report.rows == whole.state.report.rows
