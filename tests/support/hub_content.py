"""Small models and data sets in the layouts that the hub has, under the real names and at the pinned commits.

The layouts are those that conf/model/ and conf/task/ state: names of files, pickled or not, whole or in shards, which
tokenizer files, which folders of parquet files. Weights are random and narrow; the number of layers is the real one
where a test counts matrices.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow
import torch
from hub_server import Repo
from omegaconf import OmegaConf
from pyarrow import parquet

from experiments.data.digits import png
from experiments.models.files import embedded_minilm
from experiments.models.load import DECODERS
from experiments.runs.identity import MODEL_TYPES
from experiments.runtime.places import CONF
from experiments.standins.models import SPECIAL

UNPINNED = "5" * 40  # of repositories whose commit is not known to this project
TEXT = ["the film is good and the plot is bad", "a story of the house on the hill", "he said that it was true"]


def conf(kind: str, name: str) -> Any:
    """A file of conf/, such as model/bart_base."""
    return OmegaConf.load(CONF / kind / f"{name}.yaml")


def commit_of(name: str) -> str:
    """The commit at which a model of conf/model/ is served."""
    return conf("model", name).get("revision") or UNPINNED


# -- weights -----------------------------------------------------------------------------------------------------


def pickle(tensors: Any, old: bool = False) -> bytes:
    """pytorch_model.bin: a zip archive, or the format before torch 1.6."""
    buffer = io.BytesIO()
    torch.save(tensors, buffer, _use_new_zipfile_serialization=not old)
    return buffer.getvalue()


def safetensors(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """model.safetensors."""
    from safetensors.torch import save

    return save({name: tensor.clone() for name, tensor in tensors.items()}, {"format": "pt"})


def in_shards(
    tensors: Mapping[str, torch.Tensor], stem: str, suffix: str, write: Callable[[Any], bytes]
) -> dict[str, bytes]:
    """Two shards and their index, under the names that transformers gives them."""
    names = list(tensors)
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    files = [f"{stem}-0000{number}-of-00002{suffix}" for number in (1, 2)]
    places = {name: file for file, half in zip(files, halves, strict=True) for name in half}
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": places}
    return {
        **{file: write({n: tensors[n] for n in half}) for file, half in zip(files, halves, strict=True)},
        f"{stem}{suffix}.index.json": json.dumps(index).encode(),
    }


# -- models ------------------------------------------------------------------------------------------------------


def drawn(cls: Any, config: Any, seed: int = 0) -> Any:
    """A random model; the global generator is unchanged."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return cls(config)


def config_file(config: Any, **more: Any) -> bytes:
    """config.json, without what newer versions write."""
    kept = {k: v for k, v in config.to_diff_dict().items() if k not in ("transformers_version", "dtype")}
    return json.dumps({**kept, "model_type": config.model_type, **more}, indent=1).encode()


@cache
def sentencepiece_model(size: int = 80) -> bytes:
    """spm.model with DeBERTa-v3's special tokens."""
    import sentencepiece

    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 40), model_writer=buffer, vocab_size=size, hard_vocab_limit=False, minloglevel=2,
        pad_id=0, bos_id=1, eos_id=2, unk_id=3, pad_piece="[PAD]", bos_piece="[CLS]", eos_piece="[SEP]",
        unk_piece="[UNK]",
    )  # fmt: skip
    return buffer.getvalue()


def deberta_v3(layers: int, width: int = 24, half: bool = True) -> dict[str, bytes]:
    """DeBERTa-v3: pickled weights in half precision with a language-modelling head, and a sentencepiece model alone."""
    from transformers import DebertaV2Config, DebertaV2Model

    config = DebertaV2Config(
        vocab_size=128, hidden_size=width, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=2 * width,
        max_position_embeddings=512, relative_attention=True, position_buckets=256, norm_rel_ebd="layer_norm",
        share_att_key=True, pos_att_type=["p2c", "c2p"], layer_norm_eps=1e-7, max_relative_positions=-1,
        position_biased_input=False, type_vocab_size=0, pad_token_id=0,
    )  # fmt: skip
    backbone = drawn(DebertaV2Model, config).state_dict()
    tensors = {f"deberta.{name}": value.half() if half else value for name, value in backbone.items()}
    tensors["lm_predictions.lm_head.bias"] = torch.zeros(128)
    return {
        "config.json": config_file(config, pos_att_type="p2c|c2p"),
        "pytorch_model.bin": pickle(tensors),
        "spm.model": sentencepiece_model(),
        "tokenizer_config.json": json.dumps({"do_lower_case": False, "vocab_type": "spm"}).encode(),
    }


@cache
def byte_pairs() -> dict[str, bytes]:
    """vocab.json, merges.txt and tokenizer.json of a byte-level BPE, as RoBERTa and BART have them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT * 20, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    whole = json.loads(tokenizer.to_str())
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in whole["model"]["merges"]]
    return {
        "vocab.json": json.dumps(whole["model"]["vocab"]).encode(),
        "merges.txt": ("#version: 0.2\n" + "\n".join(pairs) + "\n").encode(),
        "tokenizer.json": tokenizer.to_str().encode(),
    }


def roberta(layers: int = 12) -> tuple[dict[str, bytes], dict[str, torch.Tensor]]:
    """RoBERTa: everything but the weights, and the tensors of the masked-language model."""
    from transformers import RobertaConfig, RobertaForMaskedLM

    config = RobertaConfig(
        vocab_size=300, hidden_size=24, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=514, pad_token_id=1, bos_token_id=0, eos_token_id=2, type_vocab_size=1,
    )  # fmt: skip
    config.architectures = ["RobertaForMaskedLM"]
    files = {"config.json": config_file(config), "tokenizer_config.json": b'{"model_max_length": 512}', **byte_pairs()}
    return files, drawn(RobertaForMaskedLM, config).state_dict()


def bart(layers: int = 6) -> tuple[dict[str, bytes], dict[str, torch.Tensor]]:
    """BART: everything but the weights, and the tensors, of which four share one embedding."""
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(
        vocab_size=300, d_model=24, encoder_layers=layers, decoder_layers=layers, encoder_ffn_dim=48,
        decoder_ffn_dim=48, encoder_attention_heads=4, decoder_attention_heads=4, max_position_embeddings=1024,
        pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=2, init_std=0.2,
    )  # fmt: skip
    files = {"config.json": config_file(config), **byte_pairs()}
    return files, drawn(BartForConditionalGeneration, config).state_dict()


def bert(layers: int = 12) -> dict[str, bytes]:
    """BERT, lower-cased: safetensors, a word-piece vocabulary and the fast tokenizer."""
    from tiny_model import make_tiny_model
    from transformers import BertConfig, BertForPreTraining

    with TemporaryDirectory() as name:
        make_tiny_model(Path(name))
        fast = (Path(name) / "tokenizer.json").read_bytes()
    vocabulary = json.loads(fast)["model"]["vocab"]
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=24, num_hidden_layers=layers, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=512, pad_token_id=0,
    )  # fmt: skip
    assert list(vocabulary)[:5] == list(SPECIAL["bert"])
    return {
        "config.json": config_file(config),
        "model.safetensors": safetensors(drawn(BertForPreTraining, config).state_dict()),
        "tokenizer.json": fast,
        "tokenizer_config.json": b'{"do_lower_case": true, "model_max_length": 512}',
        "vocab.txt": "\n".join(sorted(vocabulary, key=vocabulary.__getitem__)).encode(),
    }


def vit(layers: int = 12) -> dict[str, bytes]:
    """ViT: safetensors and the settings of its image processor."""
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=24, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=48, image_size=32,
        patch_size=16,
    )  # fmt: skip
    processor = {
        "do_normalize": True, "do_resize": True, "feature_extractor_type": "ViTFeatureExtractor",
        "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2, "size": 32,
    }  # fmt: skip
    return {
        "config.json": config_file(config),
        "model.safetensors": safetensors(drawn(ViTModel, config).state_dict()),
        "preprocessor_config.json": json.dumps(processor).encode(),
    }


def modernbert(layers: int = 22) -> dict[str, bytes]:
    """ModernBERT: safetensors and the fast tokenizer alone."""
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    config = ModernBertConfig(
        vocab_size=300, hidden_size=24, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=8192, pad_token_id=1, bos_token_id=0, eos_token_id=2, cls_token_id=0, sep_token_id=2,
    )  # fmt: skip
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "model_max_length": 8192}
    return {
        "config.json": config_file(config),
        "model.safetensors": safetensors(drawn(ModernBertForMaskedLM, config).state_dict()),
        "tokenizer.json": byte_pairs()["tokenizer.json"],
        "tokenizer_config.json": json.dumps(settings).encode(),
        "special_tokens_map.json": b'{"pad_token": "<pad>"}',
    }


def decoder(name: str) -> dict[str, bytes]:
    """A decoder of conf/model/: its number of layers, safetensors in shards, and the fast tokenizer without padding."""
    import transformers

    settings = conf("model", name)
    kind = MODEL_TYPES[settings.path]
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=304, hidden_size=24, num_hidden_layers=settings.matrices // 7, num_attention_heads=4,
        num_key_value_heads=2, head_dim=6, intermediate_size=48, max_position_embeddings=8192, pad_token_id=None,
        bos_token_id=0, eos_token_id=2, tie_word_embeddings=True,
    )  # fmt: skip
    cls = transformers.AutoModelForCausalLM._model_mapping[type(config)]
    tensors = drawn(cls, config).state_dict()
    tensors.pop("lm_head.weight")
    return {
        "config.json": config_file(config),
        **in_shards(tensors, "model", ".safetensors", safetensors),
        "tokenizer.json": byte_pairs()["tokenizer.json"],
        "tokenizer_config.json": b'{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}',
    }


def model_files(name: str) -> dict[str, bytes]:
    """The files of a model of conf/model/, in its layout."""
    if name == "minilm_hub":
        return {file.name: file.read_bytes() for file in embedded_minilm().glob("*.*")}
    if name in DECODERS:
        return decoder(name)
    if name.startswith("deberta"):
        return deberta_v3(12 if name.endswith("base") else 6)
    if name == "bert_base":
        return bert()
    if name == "modernbert_base":
        return modernbert()
    if name == "vit_b16_in21k":
        return vit()
    files, tensors = roberta() if name == "roberta_base" else bart(6 if name == "bart_base" else 12)
    if name == "bart_large":  # of which nothing is known here: the older of the two layouts
        return {**files, "pytorch_model.bin": pickle(tensors)}
    return {**files, "model.safetensors": safetensors(tensors), "pytorch_model.bin": b"never read"}


@cache
def model_repo(name: str) -> Repo:
    """A model of conf/model/ under its real id, at its pinned commit."""
    commit = commit_of(name)
    return Repo(conf("model", name).get("path", "sentence-transformers/all-MiniLM-L6-v2"), {commit: model_files(name)},
                refs={"main": commit})  # fmt: skip


# -- data sets ---------------------------------------------------------------------------------------------------


def table(columns: Mapping[str, list[Any]]) -> bytes:
    """A parquet file."""
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table(dict(columns)), buffer)
    return buffer.getvalue()


def card(**configs: Mapping[str, str]) -> bytes:
    """README.md that names the files of each configuration's splits."""
    listed = [
        {"config_name": name, "data_files": [{"split": split, "path": path} for split, path in files.items()]}
        for name, files in configs.items()
    ]
    return f"---\nlanguage:\n- en\nconfigs: {json.dumps(listed)}\n---\n\n# A data set\n".encode()


def shards(folder: str, split: str, columns: Mapping[str, list[Any]], count: int = 1) -> dict[str, bytes]:
    """A split as SPLIT-00000-of-00002.parquet and so on."""
    rows = len(next(iter(columns.values())))
    ends = [round(rows * number / count) for number in range(count + 1)]
    return {
        f"{folder}/{split}-{number:05}-of-{count:05}.parquet": table(
            {name: values[ends[number] : ends[number + 1]] for name, values in columns.items()}
        )
        for number in range(count)
    }


def made_up(task: Any, rows: int, seed: int = 0) -> dict[str, list[Any]]:
    """Rows with the columns that a task has on the hub."""
    if task.suite == "summarization":
        document, summary = {"xsum": ("document", "summary"), "cnn_dailymail": ("article", "highlights")}.get(
            task.subset, ("source", "target")
        )
        texts = [f"{TEXT[i % 3]} number {i} of {seed}" for i in range(rows)]
        lists = task.subset == "scitldr_a"
        return {
            document: [text.split() if lists else text for text in texts],
            summary: [[TEXT[i % 3]] if lists else TEXT[i % 3] for i in range(rows)],
        }
    labels = (
        [i % task.num_labels for i in range(rows)] if task.kind == "classification" else [i % 6 for i in range(rows)]
    )
    columns: dict[str, list[Any]] = {
        name: [f"{TEXT[i % 3]} {name} {i} of {seed}" for i in range(rows)] for name in task.text
    }
    kind = int if task.kind == "classification" else float
    return {**columns, "label": [kind(label) for label in labels], "idx": list(range(rows))}


GLUE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
GLUE_SPLITS = {"mnli": ("train", "validation_matched", "validation_mismatched")}


def glue_repo(real: Path | None = None, rows: int = 24) -> Repo:
    """nyu-mll/glue: a folder for each configuration, named in README.md; real rows where a folder has them."""
    files: dict[str, bytes] = {}
    configs = {}
    for name in GLUE:
        task = conf("task", name)
        splits = GLUE_SPLITS.get(name, ("train", "validation"))
        configs[name] = {split: f"{name}/{split}-*" for split in (*splits, "test")}
        for seed, split in enumerate((*splits, "test")):
            found = real / "glue" / name / f"{split}.parquet" if real else None
            if found is not None and found.is_file():
                files[f"{name}/{split}-00000-of-00001.parquet"] = found.read_bytes()
            else:
                files |= shards(name, split, made_up(task, rows, seed))
    commit = conf("task", "rte").hub_revision
    return Repo("nyu-mll/glue", {commit: {"README.md": card(**configs), **files}}, "datasets", {"main": commit})


def cifar_repo() -> Repo:
    """uoft-cs/cifar100 in its own layout and in that of the hub's copy: pixels in a struct, two kinds of labels."""
    picture = png(np.zeros((4, 4, 3), np.uint8))
    own: dict[str, bytes] = {}
    copy: dict[str, bytes] = {".gitattributes": b""}
    for split, each in (("train", 10), ("test", 1)):
        labels = [label for label in range(100) for _ in range(each)]
        cells = [{"bytes": picture, "path": f"{i}.png"} for i in range(len(labels))]
        columns = {"img": cells, "fine_label": labels, "coarse_label": [label // 5 for label in labels]}
        own |= shards("cifar100", split, columns)
        copy[f"cifar100/{split}/0000.parquet"] = table(columns)
    commits = {"8" * 40: {"README.md": b"# CIFAR-100\n", **own}, "9" * 40: copy}
    return Repo("uoft-cs/cifar100", commits, "datasets", {"main": "8" * 40, "refs/convert/parquet": "9" * 40})


def summary_repos(rows: int = 12) -> list[Repo]:
    """XSum in data/, CNN/DailyMail in a folder for each version, SciTLDR as a script and in the hub's own copy."""
    xsum, news, scitldr = (conf("task", name) for name in ("xsum", "cnn_dailymail", "scitldr"))
    splits = ("train", "validation", "test")
    short: dict[str, bytes] = {"README.md": b"---\nlanguage:\n- en\n---\n\n# XSum\n"}
    long: dict[str, bytes] = {
        "README.md": card(**{v: {split: f"{v}/{split}-*" for split in splits} for v in ("1.0.0", "3.0.0")})
    }
    copy: dict[str, bytes] = {".gitattributes": b""}
    for seed, split in enumerate(splits):
        short |= shards("data", split, made_up(xsum, rows, seed), 2 if split == "train" else 1)
        for version in ("1.0.0", "3.0.0"):
            long |= shards(version, split, made_up(news, rows, seed + (version == "1.0.0") * 9), 3 if seed == 0 else 1)
        for name in ("Abstract", "FullText"):
            copy[f"{name}/{split}/0000.parquet"] = table(made_up(scitldr, rows, seed + (name == "FullText") * 9))
    script = {"README.md": b"# SciTLDR\n", "scitldr.py": b"raise SystemExit('this script must not run')\n"}
    return [
        Repo(xsum.hub_id, {xsum.hub_revision: short}, "datasets", {"main": xsum.hub_revision}),
        Repo(news.hub_id, {news.hub_revision: long}, "datasets", {"main": news.hub_revision}),
        Repo(scitldr.hub_id, {UNPINNED: script, "6" * 40: copy}, "datasets",
             {"main": UNPINNED, "refs/convert/parquet": "6" * 40}),
    ]  # fmt: skip
