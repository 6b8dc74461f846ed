"""What the Trainer and `save_pretrained` write of an adapted model is an adapter and never looks like a plain model."""

from __future__ import annotations

import copy

import pytest
import torch
from hf_runs import HEAD, TARGETS, arguments, bert, ela, items, stock
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    LevitConfig,
    LevitForImageClassification,
    Trainer,
)

from baselines.registry import method_class
from elalora import Budget, UserError
from elalora.attach import detach, merge
from elalora.export import export_peft, export_trained
from elalora.hf import adapt

PLAIN = {"config.json", "model.safetensors", "pytorch_model.bin"}
SENTENCE = {key: value[None] for key, value in items(1)[0].items() if key != "labels"}


def logits(model):
    with torch.no_grad():
        return model.eval()(**SENTENCE).logits


def loaded(folder):
    """A base model on disk that `from_pretrained` has loaded."""
    bert(torch.float32).save_pretrained(folder / "base")
    return BertForSequenceClassification.from_pretrained(folder / "base")


def files(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["elalora", "lora", "sora"])
def test_everything_the_trainer_saves_loads_with_the_trained_outputs(name, tmp_path):
    cls = method_class(name)
    method = ela() if name == "elalora" else cls(cls.Config(), Budget(2))
    steps = {"save_strategy": "steps", "save_steps": 7}
    trainer = stock(tmp_path / "run", method, loaded(tmp_path), learning_rate=2e-2, **steps)
    trainer.train()
    trainer.save_model()
    trainer.save_model(str(tmp_path / "saved"))
    trainer.model.save_pretrained(tmp_path / "own")
    trained = logits(trainer.model)
    assert (trained - logits(bert(torch.float32))).abs().max() > 0.01
    for folder in (tmp_path / "run", tmp_path / "saved", tmp_path / "own", tmp_path / "run" / "checkpoint-14"):
        assert {"adapter_config.json", "adapter_model.safetensors"} <= files(folder) and not files(folder) & PLAIN
        for kind in (AutoModelForSequenceClassification, BertForSequenceClassification):
            torch.testing.assert_close(logits(kind.from_pretrained(folder)), trained, rtol=1e-5, atol=1e-6)


def test_an_adapter_of_a_model_that_came_from_no_file_is_not_loaded_as_a_random_network(tmp_path):
    trainer = stock(tmp_path / "run", ela(), bert(torch.float32))
    trainer.save_model(str(tmp_path / "saved"))
    with pytest.raises(OSError):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")


def test_push_to_hub_uploads_the_adapter(tmp_path, monkeypatch):
    uploaded = {}

    class Hub:
        def __getattr__(self, name):
            return lambda *args, **kwargs: uploaded.update(kwargs)

    from transformers import trainer as module

    monkeypatch.setattr(module, "hf_api", Hub)
    trainer = stock(tmp_path / "run", ela(), loaded(tmp_path))
    trainer.hub_model_id = "someone/something"
    trainer.push_to_hub()
    assert uploaded["folder_path"] == str(tmp_path / "run")
    assert "adapter_model.safetensors" in files(tmp_path / "run") and not files(tmp_path / "run") & PLAIN
    with pytest.raises(UserError, match=r"model\.push_to_hub"):
        trainer.model.save_pretrained(tmp_path / "x", push_to_hub=True)


def test_a_merged_model_and_a_detached_one_are_saved_whole(tmp_path):
    trainer = stock(tmp_path / "run", ela(), loaded(tmp_path), learning_rate=2e-2)
    trainer.train()
    other, trained = copy.deepcopy(trainer.model), logits(trainer.model)
    merge(trainer.model)
    trainer.save_model(str(tmp_path / "merged"))
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), trained, rtol=1e-5, atol=1e-6)
    detach(other).save_pretrained(tmp_path / "plain")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain")
    torch.testing.assert_close(base.bert.encoder.state_dict(), bert(torch.float32).bert.encoder.state_dict())


def test_the_own_loop_s_save_pretrained_writes_the_adapter_too(tmp_path):
    model, method = loaded(tmp_path), ela()
    method.attach(model, TARGETS, 14, HEAD)
    model.save_pretrained(tmp_path / "saved")
    assert not files(tmp_path / "saved") & PLAIN
    torch.testing.assert_close(
        logits(AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")), logits(model)
    )


def test_a_checkpoint_of_all_ranks_0_does_not_stop_training(tmp_path):
    cls = method_class("sora")
    method = cls(cls.Config(xi=10.0), Budget(2))
    trainer = stock(tmp_path, method, bert(torch.float32), save_strategy="steps", save_steps=7)
    trainer.train()
    assert not any(method.ranks().values()) and "trained.safetensors" in files(tmp_path / "checkpoint-14")


def test_the_export_takes_the_trained_modules_by_itself(tmp_path):
    method = ela()
    trainer = stock(tmp_path / "run", method, loaded(tmp_path), learning_rate=2e-2)
    trainer.train()
    export_peft(method, trainer.model, tmp_path / "a")
    reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "a")
    torch.testing.assert_close(logits(reloaded), logits(trainer.model), rtol=1e-5, atol=1e-6)


def test_a_loaded_adapter_has_the_running_statistics_of_batch_norms_that_are_frozen(tmp_path):
    sizes = {"hidden_sizes": [8, 12, 16], "num_attention_heads": [2] * 3, "key_dim": [4] * 3, "depths": [1] * 3}
    down = [["Subsample", 4, 2, 2, 2, 2]] * 2
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LevitForImageClassification(LevitConfig(image_size=32, down_ops=down, num_labels=3, **sizes)).save_pretrained(
            tmp_path / "base"
        )
    model = LevitForImageClassification.from_pretrained(tmp_path / "base")
    g = torch.Generator().manual_seed(0)
    images = [{"pixel_values": 1 + 2 * torch.randn(3, 32, 32, generator=g), "labels": i % 3} for i in range(112)]
    trainer = Trainer(model=model, args=arguments(tmp_path / "run"), train_dataset=images)
    adapt(trainer, ela(), ["linear_up.linear", "projection.linear"], ["classifier"])
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    batch = {"pixel_values": torch.stack([image["pixel_values"] for image in images[:8]])}
    with torch.no_grad():
        trained = model.eval()(**batch).logits
        base = LevitForImageClassification.from_pretrained(tmp_path / "base")
        for reloaded in (
            PeftModel.from_pretrained(base, tmp_path / "saved"),
            LevitForImageClassification.from_pretrained(tmp_path / "saved"),
        ):
            torch.testing.assert_close(reloaded.eval()(**batch).logits, trained, rtol=1e-5, atol=1e-5)


def test_what_is_saved_of_a_reference_point_has_running_statistics_too(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    method_class("head")(method_class("head").Config()).attach(net, [], 10, ["2"])
    export_trained(net, tmp_path)
    saved = set(load_file(tmp_path / "trained.safetensors"))
    assert saved == {"2.weight", "2.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"}


def test_an_export_that_peft_could_not_load_is_refused_before_training(tmp_path):
    model = bert()
    model.bert.encoder.layer[0].attention.output.my_classifier = torch.nn.Linear(16, 16)
    trainer = Trainer(model=model, args=arguments(tmp_path), train_dataset=items(16))
    with pytest.raises(UserError, match="my_classifier"):
        adapt(trainer, ela(), ["query", "my_classifier"], ["classifier"])


def test_a_checkpoint_of_another_keep_is_refused(tmp_path):
    stock(tmp_path, ela(), save_strategy="steps", save_steps=7).train()
    trainer = Trainer(model=bert(), args=arguments(tmp_path), train_dataset=items(8 * 14))
    adapt(trainer, ela(), TARGETS, ["classifier"])
    with pytest.raises(UserError, match="other trained parameters"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))
