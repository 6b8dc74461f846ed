"""The types in which a model's frozen weights are held: float32, bfloat16, or quantised by bitsandbytes.

What trains is always float32: the factors of the adapters are (`elalora.adapters`), modules that train whole become it
here, and a method that would train other weights in bfloat16 is refused, because AdamW's updates are smaller than its
rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from elalora.errors import UserError
from experiments.config.schema import Dtype, ModelConfig, Quantization

OUTPUT = "lm_head"  # never quantised


def loading(model: ModelConfig, head: Iterable[str]) -> dict[str, Any]:
    """Arguments of `from_pretrained` for the type of the weights.

    Args:
        model: its dtype and quantisation.
        head: modules that train whole, which are not quantised.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    dtype = torch.bfloat16 if model.dtype == Dtype.bfloat16 else torch.float32
    if model.quantization is None:
        return {"dtype": dtype}
    if find_spec("bitsandbytes") is None:
        raise UserError(
            f"model.quantization={model.quantization} needs bitsandbytes; type pip install 'bitsandbytes>=0.49', or "
            "model.quantization=null"
        )
    from transformers import BitsAndBytesConfig

    eight = model.quantization == Quantization.int8
    return {
        "dtype": dtype,
        "quantization_config": BitsAndBytesConfig(
            load_in_8bit=eight,
            load_in_4bit=not eight,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=[*head, OUTPUT],
        ),
    }


def prepare_weights(network: Any, model: ModelConfig, head: Sequence[str]) -> None:
    """Makes a loaded model trainable: modules in `head` in float32, quantised layers as training needs them."""
    if model.quantization is not None:
        from elalora.hf import prepare_quantised

        prepare_quantised(network)
    for name in head:
        module = network.get_submodule(name)
        if any(p.dtype == torch.bfloat16 for p in module.parameters()):
            nn.Module.to(module, torch.float32)
            module.register_forward_pre_hook(_in_float32)


def _in_float32(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.float() if torch.is_tensor(x) and x.is_floating_point() else x for x in inputs)


def refuse_rounded_training(network: nn.Module, method: str) -> None:
    """Raises UserError if a parameter that trains is held in less than float32."""
    for name, parameter in network.named_parameters():
        if parameter.requires_grad and torch.finfo(parameter.dtype).bits < 32:
            raise UserError(
                f"method={method} trains {name}, which model.dtype=bfloat16 holds in bfloat16, too coarse for AdamW's "
                "updates; type model.dtype=float32"
            )
