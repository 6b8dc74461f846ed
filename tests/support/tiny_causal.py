"""A tiny random Llama with a byte-level tokenizer of its own, and items of causal tasks made for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from experiments.config.task import TaskConfig

TEXTS = [
    "Review: a good film\nSentiment: positive", "Review: a bad film, too slow\nSentiment: negative",
    "Question: 3 + 4 =\nAnswer: 7", "the plot was not so great and the actor was dull", "user assistant system",
]  # fmt: skip
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<unk>", "<s>", "<|im_start|>", "<|im_end|>"]


def tiny_tokenizer(bos: bool = False, pad: str = "<|im_end|>", chat: str | None = CHAT) -> Any:
    """A byte-level tokenizer with merges; by default its padding token is its end-of-sequence token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        min_frequency=1,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="<|im_end|>", pad_token=pad,
        additional_special_tokens=["<|im_start|>"],
    )  # fmt: skip
    made.chat_template = chat
    return made


def tiny_llama(layers: int = 2, **more: Any) -> Any:
    """A random Llama of width 16 for the tokenizer's 400 ids, in evaluation mode."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=400, hidden_size=16, intermediate_size=24, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=256, initializer_range=0.3, bos_token_id=1, eos_token_id=3,
        pad_token_id=None, **more,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


def save_tiny_causal(folder: Path, **more: Any) -> None:
    """Writes model and tokenizer into a folder, for model=local."""
    tiny_llama(**more).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def causal_task(**more: Any) -> TaskConfig:
    """Reviews with two options, unless told otherwise."""
    settings: dict[str, Any] = {
        "name": "reviews", "source": "files", "subset": "own", "kind": "causal", "num_labels": 1, "text": ["text"],
        "prompt": "Review: {text}\nSentiment:", "options": ["negative", "positive"], "max_length": 64,
    }  # fmt: skip
    return TaskConfig(**settings | more)


def reviews(labels: tuple[int, ...] = (1, 0, 0), texts: tuple[str, ...] = ("a good film", "bad", "so slow, so dull")):
    """Rows of `causal_task`."""
    return Dataset.from_dict({"idx": list(range(10, 10 + len(labels))), "text": list(texts), "label": list(labels)})


def sums(pairs=((3, 4), (12, 30), (5, 5))):
    """Rows whose labels are texts."""
    labels = [str(a + b) for a, b in pairs]
    rows = {"idx": list(range(len(pairs))), "text": [f"{a} + {b} =" for a, b in pairs], "label": labels}
    return Dataset.from_dict({**rows, "references": [[label] for label in labels]})
