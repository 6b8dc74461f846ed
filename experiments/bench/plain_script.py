"""What a user would write without this project: stock PEFT LoRA in the stock Trainer, from files to a score.

    python -m experiments.bench.plain_script SPEC.json

`experiments.bench.whole` writes the specification, so that model, items, matrices and steps are those of its run.
Nothing of this project is imported here.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

IGNORED = -100  # label of a token that the loss ignores


def main(spec: dict[str, Any]) -> None:
    """Trains, scores and writes the adapter and score.json; the fields of `spec` are those of `whole.specification`."""
    from datasets import disable_progress_bars, load_dataset
    from transformers import AutoTokenizer, Trainer, TrainingArguments, set_seed
    from transformers.utils import logging

    disable_progress_bars()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(spec["threads"])
    set_seed(spec["seed"])
    tokenizer = AutoTokenizer.from_pretrained(spec["model"])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    data = load_dataset("json", data_files=spec["files"], cache_dir=spec["cache"])
    encode = partial(prompts if spec["causal"] else sentences, tokenizer, spec)
    data = data.map(encode, batched=True, remove_columns=data["train"].column_names)
    arguments = TrainingArguments(
        spec["out"], max_steps=spec["steps"], per_device_train_batch_size=spec["batch_size"],
        per_device_eval_batch_size=spec["batch_size"], learning_rate=spec["lr"], warmup_steps=spec["warmup"],
        train_sampling_strategy="group_by_length" if spec["by_length"] else "random", logging_steps=10,
        save_strategy="no", eval_strategy="no", report_to=[], disable_tqdm=True, use_cpu=not torch.cuda.is_available(),
        seed=spec["seed"],
    )  # fmt: skip
    model = adapted(spec)
    trainer = Trainer(
        model=model, args=arguments, train_dataset=data["train"], processing_class=tokenizer,
        data_collator=collator(tokenizer, spec["causal"]),
    )  # fmt: skip
    trainer.train()
    score = options_right if spec["causal"] else classes_right
    accuracy = score(trainer, data["report"], tokenizer, spec)
    model.save_pretrained(spec["out"])
    Path(spec["out"], "score.json").write_text(json.dumps({"accuracy": accuracy}), encoding="utf-8")


def adapted(spec: dict[str, Any]) -> Any:
    """The pretrained model with PEFT's LoRA on the named matrices."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    if spec["causal"]:
        model: Any = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(
            spec["model"], num_labels=spec["labels"], dtype=torch.float32
        )
    config = LoraConfig(
        task_type="CAUSAL_LM" if spec["causal"] else "SEQ_CLS", r=spec["rank"], lora_alpha=spec["alpha"],
        target_modules=spec["matrices"], modules_to_save=spec["head"],
    )  # fmt: skip
    return get_peft_model(model, config)


def collator(tokenizer: Any, causal: bool) -> Any:
    """Pads to the longest item of a batch, rounded up to a multiple of 8."""
    from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding

    if causal:
        return DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED, pad_to_multiple_of=8)
    return DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8)


def sentences(tokenizer: Any, spec: dict[str, Any], rows: dict[str, list[Any]]) -> dict[str, Any]:
    """Token ids of sentences or pairs of them, with the labels."""
    encoded = tokenizer(*(rows[name] for name in spec["text"]), truncation=True, max_length=spec["max_length"])
    return {**encoded, "labels": rows["label"]}


def prompts(tokenizer: Any, spec: dict[str, Any], rows: dict[str, list[Any]]) -> dict[str, Any]:
    """Token ids of prompts with their completions, whose tokens alone carry labels; the number of the right option."""
    encoded: dict[str, list[Any]] = {"input_ids": [], "attention_mask": [], "labels": [], "prompt_length": []}
    for prompt, completion in zip(rows["prompt"], rows["completion"], strict=True):
        whole = tokenizer(prompt + completion)["input_ids"] + [tokenizer.eos_token_id]
        start = len(tokenizer(prompt)["input_ids"])
        encoded["input_ids"].append(whole)
        encoded["attention_mask"].append([1] * len(whole))
        encoded["labels"].append([IGNORED] * start + whole[start:])
        encoded["prompt_length"].append(start)
    return {**encoded, "option": rows["label"]}


def classes_right(trainer: Any, data: Any, tokenizer: Any, spec: dict[str, Any]) -> float:
    """Accuracy on a split."""
    found = trainer.predict(data)
    return float((found.predictions.argmax(-1) == found.label_ids).mean())


@torch.no_grad()
def options_right(trainer: Any, data: Any, tokenizer: Any, spec: dict[str, Any]) -> float:
    """Share of prompts whose right option is the likeliest; every option is told by its first token."""
    model = trainer.model.eval()
    firsts = [tokenizer(" " + option)["input_ids"][0] for option in spec["options"]]
    right = 0
    for begin in range(0, len(data), spec["batch_size"]):
        rows = data[begin : begin + spec["batch_size"]]
        asked = [ids[:n] for ids, n in zip(rows["input_ids"], rows["prompt_length"], strict=True)]
        batch = tokenizer.pad({"input_ids": asked}, padding_side="left", return_tensors="pt").to(model.device)
        scores = model(**batch, logits_to_keep=1).logits[:, -1, firsts]  # (b, options)
        right += int((scores.argmax(-1).cpu() == torch.tensor(rows["option"])).sum())
    return right / len(data)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
