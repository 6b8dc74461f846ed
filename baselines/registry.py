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
    "lora": f"{__package__}.lora:LoRA",
    "svd_lora": f"{__package__}.svd_lora:SVDLoRA",
    "rac_lora": f"{__package__}.rac_lora:RACLoRA",
    "chain_lora": f"{__package__}.rac_lora:ChainOfLoRA",
    "xgblora": f"{__package__}.xgblora:XGBLoRA",
    "sd_lora": f"{__package__}.sd_lora:SDLoRA",
    "o_lora": f"{__package__}.increment_pieces:OLoRA",
    "task_lora": f"{__package__}.increment_pieces:TaskLoRA",
    "adalora": f"{__package__}.adalora:AdaLoRA",
    "sora": f"{__package__}.sora:SoRA",
    "prilora": f"{__package__}.prilora:PRILoRA",
    "beamlora": f"{__package__}.beamlora:BeamLoRA",
    "flexlora": f"{__package__}.flexlora:FlexLoRA",
    "dora_dynamic": f"{__package__}.dora_dynamic:DynamicDoRA",
    "l1ra": f"{__package__}.l1ra:L1RA",
    "alora": f"{__package__}.alora:ALoRA",
    "increlora": f"{__package__}.increlora:IncreLoRA",
    "dylora": f"{__package__}.dylora:DyLoRA",
    "gelora": f"{__package__}.gelora:GeLoRA",
    "gora": f"{__package__}.gora:GoRA",
    "eva": f"{__package__}.eva:EVA",
    "peft": f"{__package__}.peft_tuner:PeftTuner",
    "full": f"{__package__}.reference_points:FullFineTuning",
    "head": f"{__package__}.reference_points:HeadOnly",
    "class_means": f"{__package__}.class_means:ClassMeans",
    "bitfit": f"{__package__}.reference_points:BitFit",
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
