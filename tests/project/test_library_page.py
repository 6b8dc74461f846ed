"""The code of docs/library.md runs as it stands there."""

from __future__ import annotations

import re

import torch
from hf_runs import arguments, bert, items

from experiments.runtime.places import CHECKOUT

PAGE = CHECKOUT / "docs" / "library.md"


def test_every_block_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = bert(torch.float32)
    model.save_pretrained("base-model")
    args = arguments(tmp_path / "run", learning_rate=2e-3, num_train_epochs=3)
    given = {"model": model, "data": items(8 * 15), "args": args}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 5
    sentence = {k: v[None] for k, v in items(1)[0].items()}
    for number, block in enumerate(blocks):
        if "merge(model)" in block:
            with torch.no_grad():
                trained, reloaded = model.eval()(**sentence).logits, given["reloaded"](**sentence).logits
            torch.testing.assert_close(reloaded, trained, rtol=1e-4, atol=1e-5)
        exec(compile(block, f"library.md, block {number + 1}", "exec"), given)
    from transformers import AutoModelForSequenceClassification

    with torch.no_grad():
        merged = AutoModelForSequenceClassification.from_pretrained("merged").eval()(**sentence).logits
    torch.testing.assert_close(merged, trained, rtol=1e-4, atol=1e-5)
    accuracy = (given["net"](given["inputs"]).argmax(1) == given["classes"]).float().mean()
    assert accuracy > 0.9
