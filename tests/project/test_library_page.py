"""The code of docs/library.md, docs/saving.md, docs/quantised.md and docs/trl.md runs as it stands there."""

from __future__ import annotations

import re

import pytest
import tokenizers
import torch
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from experiments.models.files import embedded_minilm
from experiments.runtime.places import CHECKOUT

NAME = "sentence-transformers/all-MiniLM-L6-v2"


def run_blocks(page, scopes, change=lambda block: block):
    """Runs every block of a page, each in its scope."""
    text = (CHECKOUT / "docs" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for number, (block, scope) in enumerate(zip(blocks, scopes, strict=True)):
        exec(compile(change(block), f"{page}, block {number + 1}", "exec"), scope)


@pytest.mark.slow
def test_every_block_of_library_and_saving_runs(tmp_path, monkeypatch):
    def here(block):
        assert "NAME = " not in block or f'"{NAME}"' in block
        return block.replace(NAME, str(embedded_minilm())).replace('TrainingArguments(\n    "run",', LOCAL)

    LOCAL = 'TrainingArguments(\n    "run", use_cpu=True,'
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    scope, own = {}, {}
    run_blocks("library.md", [scope, own], here)
    model, tokenizer = scope["model"].eval(), scope["tokenizer"]
    batch = tokenizer(scope["texts"], return_tensors="pt", padding=True)
    with torch.no_grad():
        trained = model(**batch).logits
    assert (trained.argmax(1) == torch.tensor(scope["labels"])).float().mean() > 0.9  # the rate of the page learns
    assert any(round_.grown for round_ in scope["method"].rounds_seen)
    assert (own["net"](own["inputs"]).argmax(1) == own["classes"]).float().mean() > 0.9
    run_blocks("saving.md", [scope] * 3)
    for loaded in (scope["reloaded"], AutoModelForSequenceClassification.from_pretrained("merged")):
        with torch.no_grad():
            torch.testing.assert_close(loaded.eval()(**batch).logits, trained, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_every_block_of_the_page_on_quantised_models_runs(tmp_path, monkeypatch):
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install -e '.[quantised]'")
    monkeypatch.chdir(tmp_path)
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=64, **shape)).save_pretrained("base-decoder")
    ids = torch.arange(12)
    scope = {"data": [{"input_ids": ids + i, "labels": ids + i} for i in range(48)]}
    page = lambda block: block.replace('TrainingArguments("run",', 'TrainingArguments("run", use_cpu=True,')  # noqa: E731
    run_blocks("quantised.md", [scope], page)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_the_block_of_the_page_on_trl_runs(tmp_path, monkeypatch):
    pytest.importorskip("trl", reason="needs TRL, which the lock file does not have: pip install trl")
    monkeypatch.chdir(tmp_path)
    words = ["<pad>", "</s>", *"abcdefgh"]
    vocabulary = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>")
    tokenizer = tokenizers.Tokenizer(vocabulary)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>").save_pretrained("decoder")
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(words), **shape)).save_pretrained("decoder")
    (tmp_path / "texts.jsonl").write_text('{"text": "a b c d"}\n{"text": "e f g h"}\n' * 20)
    scope = {}

    def page(block):
        block = block.replace("Qwen/Qwen2.5-0.5B", "decoder")
        return block.replace('SFTConfig("run",', 'SFTConfig("run", use_cpu=True, per_device_train_batch_size=1,')

    run_blocks("trl.md", [scope], page)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file() and scope["method"].rounds_seen


def test_the_lines_of_the_readme_are_the_page_s():
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"\n\n((?: {4}.*\n|\n)+)", readme.split("## In your own training script")[1])
    lines = [line.strip() for line in block[1].splitlines() if line.strip()]
    page = [line.strip() for line in (CHECKOUT / "docs" / "library.md").read_text(encoding="utf-8").splitlines()]
    assert len(lines) > 5 and not set(lines) - set(page)
