"""A planted teacher: its update and its labels against numpy, and what runs with it share and keep apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from tiny_runs import QUICK, config

from elalora import UserError
from elalora.attach import merge
from experiments.config.task import TeacherConfig
from experiments.models import teacher
from experiments.models.load import load_model
from experiments.models.teacher import even_offsets, laid_out, plant, unread
from experiments.runs.plan import make_plan
from experiments.runs.prepare import data_of, load, processor_of
from experiments.runtime.seeds import stream

TAUGHT = [
    "task=planted", "task.max_length=16", "task.num_labels=4", "task.teacher.strength=2.0", "method=lora",
    "task.teacher.pattern='layer1:1 rest:0'",
]  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_cached():
    data_of.cache_clear()
    processor_of.cache_clear()


def plan(model, cache, *words):
    given = [*TAUGHT, f"data.cache={cache}", f"model.path={model}", "budget=r2", *words]
    return make_plan(config(*[w for w in QUICK if not w.startswith("task.")], *given))


@pytest.fixture(scope="module")
def cache(tmp_path_factory, tiny_model_dir):
    """A cache with VADER's archive, as the machine's cache has it."""
    from experiments.config.task import DataConfig
    from experiments.data.vader import SDIST, read_sdist

    folder = tmp_path_factory.mktemp("cache")
    (folder / SDIST).write_bytes(read_sdist(DataConfig()))
    return folder


def test_the_update_has_its_ranks_and_norm_where_it_is_planted_and_nothing_elsewhere(tiny_model_dir, cache):
    made = plan(tiny_model_dir, cache)
    loaded = load(made)
    before = {name: p.detach().clone() for name, p in loaded.network.named_parameters()}
    method = laid_out(loaded, list(made.config.model.targets), TeacherConfig("layer1:1 rest:0", 3, 2.0, 7))
    rng = torch.Generator().manual_seed(0)
    inputs = {name: torch.randn(200, a.in_features, generator=rng) for name, a in method.adapters.items() if a.rank}
    plant(method, 2.0, inputs, torch.randn(200, 32, generator=rng))
    merge(loaded.network)
    for name, now in loaded.network.named_parameters():
        change = (now.detach() - before[name]).double().numpy()
        if "layer.1." in name and now.ndim == 2:
            assert np.linalg.matrix_rank(change, tol=1e-5 * np.linalg.norm(change)) == 6  # 3 x 12 matrices over 6
            assert np.linalg.norm(change) == pytest.approx(2 * np.linalg.norm(before[name].numpy()), rel=1e-5)
        else:
            assert not change.any()


def test_unread_directions_are_those_that_no_linear_function_of_the_features_has():
    """Inputs of which 6 dimensions are sums of the features and 3 are not, in a rotated frame."""
    rng = np.random.default_rng(0)
    features, free = rng.normal(size=(500, 5)), 0.5 * rng.normal(size=(500, 3))
    rotation = np.linalg.qr(rng.normal(size=(9, 9)))[0]
    inputs = 2 + np.hstack([features @ rng.normal(size=(5, 6)), free]) @ rotation.T
    found = unread(torch.from_numpy(inputs), torch.from_numpy(features), 3).numpy()
    assert found @ found.T == pytest.approx(np.eye(3), abs=1e-12)
    assert subspace_angles(found.T, rotation[:, 6:]).max() < 0.1  # by chance the free ones correlate a little
    left = [np.linalg.lstsq(np.c_[features, np.ones(500)], inputs @ row, rcond=None)[1].item() for row in found]
    assert np.array(left) / (500 * (inputs @ found.T).var(0)) == pytest.approx(1, abs=0.05)


@pytest.mark.slow
def test_labels_say_how_the_update_of_a_merged_model_changes_its_features(cache):
    """Through stock modules, texts of one length at once: what the classifier reads, after less before."""
    made = make_plan(config("task=planted", "model=random_encoder", "method=lora", "budget=r2", f"data.cache={cache}"))
    data, settings = data_of(made), made.config.task.teacher
    tokenizer = processor_of(made)
    loaded = load_model(made.config.model, data.config, stream(settings.seed, "teacher"))
    network, read = loaded.network.eval(), []
    network.bert.encoder.layer[3].output.dense.register_forward_pre_hook(lambda _, x: read.append(x[0][:, 0]))

    def pooled(name):
        ids = tokenizer(data.splits[name]["text"][:], truncation=True, max_length=12)["input_ids"]
        out, inputs = np.empty((len(ids), 64)), np.empty((len(ids), 256))
        for length in set(map(len, ids)):
            rows = [i for i, found in enumerate(ids) if len(found) == length]
            with torch.no_grad():
                out[rows] = network.bert(torch.tensor([ids[i] for i in rows])).pooler_output
            inputs[rows] = read.pop()
        return out, inputs

    (features, inputs), *others = (pooled(name) for name in data.splits)
    plain = dict(zip(data.splits, [features, *(out for out, _ in others)], strict=True))
    method = laid_out(loaded, list(made.config.model.targets), settings)
    (name,) = (name for name, adapter in method.adapters.items() if adapter.rank)
    assert name.endswith("layer.3.output.dense")
    plant(method, settings.strength, {name: torch.from_numpy(inputs)}, torch.from_numpy(features))
    drawn = torch.randn(64, 8, generator=method.generator, dtype=torch.float64).numpy()
    merge(network)
    change = {name: pooled(name)[0] - plain[name] for name in plain}
    mean, std = change["train"].mean(0), change["train"].std(0, ddof=1)
    logits = {name: (x - mean) / std @ drawn for name, x in change.items()}
    offsets = even_offsets(torch.from_numpy(logits["train"])).numpy()
    for name, rows in data.splits.items():
        assert (np.argmax(logits[name] + offsets, 1) == np.array(rows["label"][:])).mean() > 0.999
    assert data.remarks == ["labels of a planted teacher"]


def test_offsets_make_classes_of_equal_size():
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(4000, 8)) * 3 + np.arange(8))
    shares = np.bincount((logits + even_offsets(logits)).argmax(1).numpy(), minlength=8) / 4000
    assert abs(shares - 1 / 8).max() < 0.01


@pytest.mark.slow
def test_labels_are_made_once_for_all_seeds_and_methods_and_follow_the_teachers_seed(
    tiny_model_dir, cache, monkeypatch, capsys
):
    first = data_of(plan(tiny_model_dir, cache, "task.teacher.seed=5"))
    assert "teacher: 8,4" in capsys.readouterr().out
    other = data_of(plan(tiny_model_dir, cache, "task.teacher.seed=6"))
    data_of.cache_clear()
    monkeypatch.setattr(teacher, "load_model", None)  # what is cached needs no model
    again = data_of(plan(tiny_model_dir, cache, "task.teacher.seed=5", "seed=3", "method=head"))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert first.splits["train"]["text"][:] == other.splits["train"]["text"][:]


def test_no_students_head_starts_as_the_teachers(tiny_model_dir, cache):
    made = plan(tiny_model_dir, cache)
    heads = [
        load_model(made.config.model, data_of(made).config, seed).network.classifier.weight
        for seed in (stream(0, "teacher"), stream(0, "head"))
    ]
    assert not torch.equal(*heads)


def test_the_teacher_is_part_of_the_identity_and_of_no_other_task(tiny_model_dir, cache):
    ids = {plan(tiny_model_dir, cache, *words).id for words in ([], ["task.teacher.seed=1"], ["task.teacher.rank=3"])}
    assert len(ids) == 3
    plain = make_plan(config("method=lora", "task=vader_movies", "model=minilm", "budget=r4"))
    assert "teacher" not in plain.identity["task"]


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("task.teacher.rank=0", "task.teacher.rank=0 must be at least 1"),
        ("task.teacher.strength=0.0", "task.teacher.strength=0.0 must be above 0"),
        ("task.teacher.seed=-1", "task.teacher.seed=-1 must be at least 0"),
        ("task.teacher.pattern='layer9:1 rest:0'", "'layer9:1' names none of the 12"),
        ("task.teacher.pattern=layer1", "task.teacher.pattern=layer1: 'layer1' cannot be read"),
    ],
)
def test_a_teacher_that_cannot_be_made_is_refused_in_one_line(tiny_model_dir, cache, word, line):
    with pytest.raises(UserError, match=line):
        data_of(plan(tiny_model_dir, cache, word))


def test_other_texts_may_have_a_teacher_and_tasks_without_classes_may_not():
    words = ["method=lora", "model=minilm", "budget=r4", "task=vader_movies", "task.teacher.pattern=ffn:2"]
    assert make_plan(config(*words)).identity["task"]["teacher"]["pattern"] == "ffn:2"
    with pytest.raises(UserError, match=r"needs task\.teacher\.pattern"):
        make_plan(config(*words[:-1], "task.teacher.rank=2"))
    with pytest.raises(UserError, match="labels texts with classes"):
        make_plan(config(*words, "task.kind=regression", "task.num_labels=1", "task.metrics=[pearson]"))
