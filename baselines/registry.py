"""The names of all methods; importing this module imports no method, so listing them is instant.

Your own method needs no entry: name its class by `method.name=package.module:Class`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from elalora.errors import UserError

if TYPE_CHECKING:
    from elalora.method import Method

METHODS = {
    "elalora": "elalora.ela:ElaLoRA",
    "lora": "baselines.lora:LoRA",
    "svd_lora": "baselines.svd_lora:SVDLoRA",
    "rac_lora": "baselines.rac_lora:RACLoRA",
    "chain_lora": "baselines.rac_lora:ChainOfLoRA",
    "xgblora": "baselines.xgblora:XGBLoRA",
    "adalora": "baselines.adalora:AdaLoRA",
    "sora": "baselines.sora:SoRA",
    "prilora": "baselines.prilora:PRILoRA",
    "beamlora": "baselines.beamlora:BeamLoRA",
    "flexlora": "baselines.flexlora:FlexLoRA",
    "dora_dynamic": "baselines.dora_dynamic:DynamicDoRA",
    "l1ra": "baselines.l1ra:L1RA",
    "alora": "baselines.alora:ALoRA",
    "increlora": "baselines.increlora:IncreLoRA",
    "dylora": "baselines.dylora:DyLoRA",
    "gelora": "baselines.gelora:GeLoRA",
    "gora": "baselines.gora:GoRA",
    "eva": "baselines.eva:EVA",
    "peft": "baselines.peft_tuner:PeftTuner",
    "full": "baselines.reference_points:FullFineTuning",
    "head": "baselines.reference_points:HeadOnly",
    "bitfit": "baselines.reference_points:BitFit",
}


def method_class(name: str) -> type[Method]:
    """The class of a method, by its name or by "package.module:Class".

    Raises:
        UserError: the name is unknown, or the module or class cannot be loaded.
    """
    module_name, _, class_name = METHODS.get(name, name).partition(":")
    if not class_name:
        raise UserError(
            f"method={name} is unknown; allowed: {', '.join(METHODS)}, or your own as method.name=package.module:Class"
        )
    try:
        cls = getattr(import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UserError(f"method.name={name} cannot be loaded ({error}); it must be package.module:Class") from error
    from elalora.method import Method

    if not (isinstance(cls, type) and issubclass(cls, Method)):
        raise UserError(f"method.name={name} is not a method: it must be a subclass of elalora.method.Method")
    return cls
