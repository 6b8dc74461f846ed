"""Models of every family from folders as the hub has them: head, targets, training, export, and what is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from baselines.lora import LoRA, LoRAConfig
from elalora import Budget, ElaLoRA, ElaLoRAConfig, RowwiseAdamW, UserError
from elalora.export import export_peft
from elalora.targets import matrices_in, patterns_of
from experiments.config.schema import ModelConfig
from experiments.config.task import TaskConfig
from experiments.models.fit import fit
from experiments.models.load import FITTING, HEADED, check_kind, load_model, load_processor
from experiments.runtime.places import CONF
from experiments.standins.models import FAMILIES, make_models

MATRICES = {"bert": 12, "roberta": 12, "deberta-v2": 12, "bart": 32, "vit": 10}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_models(tmp_path_factory.mktemp("models"))


def task(kind="classification", **more):
    columns = {"summarization": ["document"], "image": ["image"]}.get(kind, ["text"])
    return TaskConfig(
        name="t", source="files", subset="t", kind=kind, text=columns, max_length=32,
        num_labels=1 if kind == "regression" else 3, **more,
    )  # fmt: skip


def kind_of(family):
    return {"bart": "summarization", "vit": "image"}.get(family, "classification")


def model(folder, family, **more):
    return ModelConfig(name=family, path=str(folder / family), **more)


def batch(family, processor, seed=0):
    g = torch.Generator().manual_seed(seed)
    if family == "vit":
        return {"pixel_values": torch.randn(6, 3, *processor.size, generator=g), "labels": torch.arange(6) % 3}
    made = dict(processor(["good film", "a bad film of the year", "no"] * 2, padding=True, return_tensors="pt"))
    if family == "bart":
        labels = processor(text_target=["good", "bad", "no"] * 2, padding=True, return_tensors="pt").input_ids
        return made | {"labels": labels}
    return made | {"labels": torch.arange(6) % 3}


def moving():
    return ElaLoRA(ElaLoRAConfig(t_initial=3, t_final=5, interval=4, b=3), Budget(3))


def fixed():
    return LoRA(LoRAConfig(), Budget(3))


@pytest.mark.parametrize("make", [moving, fixed])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_trains_with_its_papers_matrices_and_its_export_is_what_stock_peft_loads(
    family, make, folder, tmp_path
):
    import peft
    import transformers

    kind = kind_of(family)
    own = model(folder, family, attention="eager" if family == "deberta-v2" else None)
    processor = load_processor(own, task(kind))
    network, head, _ = load_model(own, task(kind), seed=1)
    fit(own, task(kind), network, processor)
    assert network.dtype == torch.float32 and matrices_in(network, ["paper"]) == MATRICES[family]
    base = {n: p.detach().clone() for n, p in network.named_parameters()}
    method = make()
    patterns = patterns_of(network.config.model_type, ["paper"])
    network = method.attach(network, patterns, 30, keep=head, seed=0)
    assert len(method.ranks()) == MATRICES[family]
    optimizer = RowwiseAdamW(method.groups(network, 2e-2, 0.0), method.directions())
    inputs = batch(family, processor)
    losses = []
    for step in range(30):
        loss = network(**inputs).loss
        losses.append(loss.item())
        penalty = method.penalty()
        (loss if penalty is None else loss + penalty).backward()
        method.gradients_ready(step)
        optimizer.step()
        method.after_step(step, optimizer, None)
        optimizer.zero_grad()
    method.finish()
    assert losses[-1] < 0.95 * losses[0] and (len(set(method.ranks().values())) > 1) is (make is moving)
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad and "base" not in name:
            assert torch.equal(parameter, base[name]), name
    network.eval()
    trained = network(**inputs).logits.detach()
    task_type = HEADED[kind][1]
    export_peft(method, network, tmp_path / "adapter", head, task_type=task_type, base=str(folder / family))
    cls = getattr(transformers, HEADED[kind][0])
    more = {} if kind == "summarization" else {"num_labels": 3}
    plain = cls.from_pretrained(folder / family, dtype=torch.float32, **more)
    again = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    torch.testing.assert_close(again(**inputs).logits, trained, rtol=1e-4, atol=1e-5)


def test_the_head_is_drawn_by_the_seed_alone_and_the_generator_is_left_alone(folder):
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    first = load_model(model(folder, "bert"), task(), seed=1).network
    assert torch.equal(torch.rand(3), expected)
    torch.rand(100)
    second = load_model(model(folder, "bert"), task(), seed=1).network
    third = load_model(model(folder, "bert"), task(), seed=2).network
    assert torch.equal(first.classifier.weight, second.classifier.weight)
    assert not torch.equal(first.classifier.weight, third.classifier.weight)
    assert torch.equal(first.bert.pooler.dense.weight, third.bert.pooler.dense.weight)


def test_a_head_for_another_number_of_labels_is_drawn_anew(folder, tmp_path):
    load_model(model(folder, "vit"), task("image"), 0).network.save_pretrained(tmp_path / "vit")
    five = TaskConfig(name="t", source="files", subset="t", kind="image", text=["image"], num_labels=5)
    own = ModelConfig(name="vit", path=str(tmp_path / "vit"))
    first, second = (load_model(own, five, seed=s).network for s in (1, 1))
    assert first.classifier.weight.shape[0] == 5
    assert torch.equal(first.classifier.weight, second.classifier.weight)


def test_images_are_normalised_by_the_checkpoint_or_as_elaloras_code_does(folder):
    own = load_processor(model(folder, "vit"), task("image"))
    assert own.size == (32, 32) and own.mean == (0.5, 0.5, 0.5) and own.resample == 2
    theirs = load_processor(model(folder, "vit"), task("image", normalise="imagenet"))
    assert theirs.mean == (0.485, 0.456, 0.406) and theirs.size == (32, 32)


def test_weights_stored_in_half_precision_are_loaded_in_float32(folder, tmp_path):
    own = changed(folder, tmp_path, "bert", lambda place: None)
    weights = load_file(tmp_path / "bert" / "model.safetensors")
    save_file({k: v.bfloat16() for k, v in weights.items()}, tmp_path / "bert" / "model.safetensors", {"format": "pt"})
    _json("config.json", dtype="bfloat16")(tmp_path / "bert")
    network = load_model(own, task(), 0).network
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    stored = weights["encoder.layer.0.output.dense.weight"].bfloat16()
    assert torch.equal(network.bert.encoder.layer[0].output.dense.weight, stored.float())


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_reaches_every_place_that_an_architecture_has(family, folder, monkeypatch):
    seen = []

    def dropout(x, p=0.5, training=True, inplace=False):
        seen.append(p)
        return x

    monkeypatch.setattr(torch.nn.functional, "dropout", dropout)
    own = model(folder, family, dropout=0.37, attention="eager")
    network = load_model(own, task(kind_of(family)), 0).network.train()
    network(**batch(family, load_processor(own, task(kind_of(family)))))
    # at least attention weights and one hidden state in each layer; BART's activations, and they alone, have a rate
    # of their own that stays 0
    assert seen.count(0.37) >= 2 * 2 and set(seen) <= ({0.37, 0.0} if family == "bart" else {0.37})
    assert seen.count(0.0) == (4 if family == "bart" else 0)


def test_bart_generates_with_its_adapter(folder):
    """The adapter changes what is generated, and generation with the cache is the greedy choice without one."""
    own, asked = model(folder, "bart"), task("summarization")
    network, head, _ = load_model(own, asked, 0)
    inputs = batch("bart", load_processor(own, asked))
    inputs.pop("labels")
    limits = {"max_new_tokens": 6, "min_new_tokens": 6, "num_beams": 1, "do_sample": False}
    network.eval()
    before = network.generate(**inputs, **limits)
    method = LoRA(LoRAConfig(), Budget(2))
    network = method.attach(network, patterns_of("bart", ["paper"]), 10, keep=head, seed=0)
    assert torch.equal(network.generate(**inputs, **limits), before)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(len(name)))
    after = network.generate(**inputs, **limits)
    assert not torch.equal(after, before)
    banned = torch.tensor([network.generation_config.eos_token_id])
    tokens = after[:, :1]
    for _ in range(5):  # the sixth is forced to the end
        logits = network(**inputs, decoder_input_ids=tokens, use_cache=False).logits[:, -1]
        logits[:, banned] = -torch.inf
        tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], 1)
    assert torch.equal(after[:, :6], tokens)


def changed(folder, tmp_path, family, change):
    place = tmp_path / family
    shutil.copytree(folder / family, place)
    change(place)
    return ModelConfig(name=family, path=str(place))


def _cut(file):
    def change(place):
        raw = (place / file).read_bytes()
        (place / file).write_bytes(raw[: len(raw) // 2])

    return change


def _json(file, **values):
    def change(place):
        (place / file).write_text(json.dumps(json.loads((place / file).read_text()) | values))

    return change


def _without(file):
    return lambda place: (place / file).unlink()


def _empty_weights(place):
    save_file({k: v for k, v in load_file(place / "model.safetensors").items() if "layer.1" not in k},
              place / "model.safetensors", metadata={"format": "pt"})  # fmt: skip


BAD = [
    ("bert", "classification", _cut("config.json"), "not a valid JSON file"),
    ("bert", "classification", _cut("model.safetensors"), "does not load for classification"),
    ("bert", "classification", _without("model.safetensors"), "does not load for classification"),
    ("bert", "classification", _without("config.json"), "model.path="),
    ("bert", "classification", _empty_weights, "no weights for .*layer.1.*model.head="),
    ("bert", "classification", _json("config.json", model_type="martian"), "does not load for classification"),
    ("bert", "classification", _without("tokenizer.json"), "tokenizer"),
    ("bert", "classification", _cut("tokenizer.json"), "no tokenizer that loads"),
    (
        "bert",
        "summarization",
        lambda place: None,
        "no head for summarization .* type model=bart_base, bart_large, or",
    ),
    ("vit", "classification", lambda place: None, "no tokenizer.* for it type model=minilm, "),
    ("bert", "image", lambda place: None, "no preprocessor_config.json.* for it type model=vit_b16"),
    (
        "vit",
        "image",
        _json("preprocessor_config.json", size={"shortest_edge": 224}),
        "images of several sizes",
    ),
    ("vit", "image", _cut("preprocessor_config.json"), "preprocessor_config.json does not load"),
    ("vit", "image", _json("preprocessor_config.json", size=64), "expects images of 32, its .* makes 64 x 64"),
    ("bart", "classification", lambda place: _shrink(place), "215 ids.*165 embeddings"),
]


def _shrink(place):
    """Another model's tokenizer: more ids than the model has embeddings."""
    told = json.loads((place / "tokenizer.json").read_text())
    vocabulary = told["model"]["vocab"]
    told["model"]["vocab"] = vocabulary | {f"more{i}": len(vocabulary) + i for i in range(50)}
    (place / "tokenizer.json").write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("model", "kind", "line"),
    [
        ("minilm", "image", "model=minilm does not fit task=t, which is of images; for it type model=vit_b16_in21k, "),
        ("deberta_v3_base", "summarization", "for it type model=bart_base, bart_large, or local"),
        ("vit_digits", "regression", "which is regression of text; for it type model=minilm, minilm_hub"),
    ],
)
def test_a_model_of_another_kind_is_refused_with_the_models_that_fit(model, kind, line):
    with pytest.raises(UserError, match=line):
        check_kind(ModelConfig(name=model, path="x"), task(kind))


def test_every_model_of_conf_fits_a_kind_of_task():
    named = {path.stem for path in (CONF / "model").glob("*.yaml")}
    assert {name for names in FITTING.values() for name in names} | {"local"} == named
    check_kind(ModelConfig(name="bart_base", path="x"), task("classification"))
    check_kind(ModelConfig(name="local", path="x"), task("image"))


@pytest.mark.parametrize("kind", ["classification", "image"])
def test_a_model_of_the_hub_without_a_network_is_refused_with_one_that_needs_none(kind, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = ModelConfig(name="some", path="owner/never-fetched", revision="0" * 40)
    with pytest.raises(UserError, match="copy the model here and type model.path=FOLDER, or type model=minilm"):
        load_processor(model, task(kind))


@pytest.mark.parametrize(("family", "kind", "change", "line"), BAD)
def test_a_model_that_does_not_fit_is_refused_in_one_line(family, kind, change, line, folder, tmp_path):
    own = changed(folder, tmp_path, family, change)
    with pytest.raises(UserError, match=line) as caught:
        processor = load_processor(own, task(kind))
        network, _, _ = load_model(own, task(kind), 0)
        fit(own, task(kind), network, processor)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("family", "more", "line"),
    [
        ("bert", {"max_length": 600}, "task.max_length=600 does not fit the 512 positions"),
        ("roberta", {"max_length": 514}, "task.max_length=514 does not fit the 513 positions"),
        ("bart", {"generate_length": 600}, "task.generate_length=600 does not fit .* type task.generate_length=513"),
    ],
)
def test_more_tokens_than_positions_are_refused(family, more, line, folder):
    own, asked = model(folder, family), task(kind_of(family))
    for name, value in more.items():
        setattr(asked, name, value)
    network = load_model(own, asked, 0).network
    with pytest.raises(UserError, match=line):
        fit(own, asked, network, load_processor(own, asked))


def test_relative_positions_have_no_end(folder):
    own, asked = model(folder, "deberta-v2", attention="eager"), task()
    asked.max_length = 5000
    fit(own, asked, load_model(own, asked, 0).network, load_processor(own, asked))
