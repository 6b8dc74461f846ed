"""Where a run is mirrored, as typed configuration; nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class TrackerName(Enum):
    """Mirrors that can be chosen."""

    none = "none"
    wandb = "wandb"


class TrackingMode(Enum):
    """Whether a mirror is kept on disk or sent as it grows."""

    offline = "offline"
    online = "online"


@dataclass
class TrackingConfig:
    """A mirror of the run store; no part of a run's identity.

    Attributes:
        name: none, or wandb.
        project: the project in W&B.
        mode: offline keeps the mirror in the run's folder (upload it with `wandb sync`); online sends it.
    """

    name: TrackerName = TrackerName.none
    project: str = "elalora"
    mode: TrackingMode = TrackingMode.offline
