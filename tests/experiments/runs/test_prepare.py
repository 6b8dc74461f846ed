"""What a process caches between its runs: loaded once, dropped in time, and never another run's."""

from __future__ import annotations

from collections import Counter
from weakref import WeakValueDictionary

import pytest
from tiny_runs import quick

from experiments.runs.plan import make_plan
from experiments.runs.prepare import MOST, cached, data_of, processor_of, splits_of

WHOLE = ("method=lora", "data.train_items=null", "task=vader_tweets")


@pytest.fixture
def loads(monkeypatch):
    """How often each thing is loaded, by a process with empty caches."""
    counts = Counter()
    for function in (data_of, processor_of, splits_of):
        function.cache_clear()
    for place in ("data.load_task", "models.load.load_processor", "data.items.make_items"):
        place = f"experiments.{place}"
        module, _, name = place.rpartition(".")
        made = getattr(__import__(module, fromlist=[name]), name)

        def counted(*given, made=made, name=name):
            counts[name] += 1
            return made(*given)

        monkeypatch.setattr(place, counted)
    return counts


def loaded(plan):
    return data_of(plan), processor_of(plan), *splits_of(plan)


def test_the_oldest_goes_before_a_new_one_is_made():
    class Value:
        """Something that can be referred to weakly."""

    living, alive_when_made, made = WeakValueDictionary(), {}, []

    @cached(lambda key: key)
    def value_of(key):
        made.append(key)
        alive_when_made[key] = set(living)
        living[key] = value = Value()
        return value

    for key in ("a", "b", "a", "c"):
        value_of(key)
    assert made == ["a", "b", "c"] and alive_when_made == {"a": set(), "b": {"a"}, "c": {"a"}} and MOST == 2
    assert set(living) == {"a", "c"}
    value_of("a"), value_of("b")
    assert made[-1] == "b" and alive_when_made["b"] == {"a"}


def test_what_fails_to_load_is_not_cached():
    numbers = iter([0, 2])
    half = cached(lambda key: key)(lambda _: 4 // next(numbers))
    with pytest.raises(ZeroDivisionError):
        half("a")
    assert half("a") == half("a") == 2


def test_repeats_and_arms_load_their_data_once(loads, tiny_model_dir, tmp_path):
    for method in ("lora", "head"):
        for seed in (0, 1):
            loaded(make_plan(quick(tiny_model_dir, tmp_path, *WHOLE, f"method={method}", f"seed={seed}")))
    assert loads == {"load_task": 1, "load_processor": 1, "make_items": 3}


def test_a_subset_is_its_own_seed_s(loads, tiny_model_dir, tmp_path):
    words = ("method=lora", "task=vader_tweets")
    trains = []
    for seed in (0, 1, 0):
        plan = make_plan(quick(tiny_model_dir, tmp_path, *words, f"seed={seed}"))
        trains.append(splits_of(plan).train.data.idx.tolist())
    assert trains[0] == trains[2] != trains[1] and loads["load_task"] == 1


@pytest.mark.parametrize("changed", [
    "task=vader_nyt", "task.max_length=12", "protocol=tune", "data.train_items=90",
])  # fmt: skip
def test_another_setting_is_loaded_again(changed, loads, tiny_model_dir, tmp_path):
    plans = [make_plan(quick(tiny_model_dir, tmp_path, *WHOLE, *more)) for more in ((), (changed,))]
    first, second = (splits_of(plan) for plan in plans)
    assert first is not second and splits_of(plans[0]) is first


def test_a_file_that_changed_is_read_again(loads, tiny_model_dir, tmp_path):
    found = []
    for number in (0, 1):
        for split, rows in {"train": 12, "test": 4, "validation": 4}.items():
            lines = [f'"a movie {split} {row} {number * "again"}",{row % 2}' for row in range(rows)]
            (tmp_path / f"{split}.csv").write_text("\n".join(["text,label", *lines]))
        words = ["task=own", "task.name=mine", "task.text=[text]", "task.label=label", "data.train_items=null"]
        words += [f"task.files.{split}={tmp_path / split}.csv" for split in ("train", "test", "validation")]
        found.append(data_of(make_plan(quick(tiny_model_dir, tmp_path, "method=lora", *words))).fingerprint)
    assert found[0] != found[1] and loads["load_task"] == 2


def test_another_process_takes_the_token_ids_of_all_splits_from_the_cache(loads, tiny_model_dir, tmp_path, monkeypatch):
    words = [*WHOLE, f"data.cache={tmp_path / 'cache'}"]
    first = splits_of(make_plan(quick(tiny_model_dir, tmp_path, *words)))
    assert not any(split.data.cached for split in (first.train, first.select, first.report))
    for function in (data_of, processor_of, splits_of):
        function.cache_clear()
    monkeypatch.setattr("experiments.data.text_items._encode_rows", None)  # nothing is tokenised
    second = splits_of(make_plan(quick(tiny_model_dir, tmp_path, *words, "seed=1")))
    assert all(split.data.cached for split in (second.train, second.select, second.report))
