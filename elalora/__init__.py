"""Low-rank adapters whose ranks adapt during training. Needs torch only, and imports it when a name is used.

from elalora import Budget, ElaLoRA, ElaLoRAConfig, RowwiseAdamW, Schedule
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elalora.budget import Budget as Budget
    from elalora.ela import ElaLoRA as ElaLoRA
    from elalora.ela import ElaLoRAConfig as ElaLoRAConfig
    from elalora.errors import UserError as UserError
    from elalora.low_rank import LowRankMethod as LowRankMethod
    from elalora.method import Capabilities as Capabilities
    from elalora.method import Method as Method
    from elalora.method import MethodFailure as MethodFailure
    from elalora.method import Round as Round
    from elalora.optim import RowwiseAdamW as RowwiseAdamW
    from elalora.schedules import Phases as Phases
    from elalora.schedules import Schedule as Schedule

__version__ = "0.1.0"

# module of each public name, imported on first use: a command line starts without torch
_HOMES = {
    "Budget": "budget",
    "Capabilities": "method",
    "ElaLoRA": "ela",
    "ElaLoRAConfig": "ela",
    "LowRankMethod": "low_rank",
    "Method": "method",
    "MethodFailure": "method",
    "Phases": "schedules",
    "Round": "method",
    "RowwiseAdamW": "optim",
    "Schedule": "schedules",
    "UserError": "errors",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'elalora' has no attribute '{name}'")
    return getattr(import_module(f"elalora.{_HOMES[name]}"), name)
