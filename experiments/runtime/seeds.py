"""Seeds: one for each use of randomness."""

from __future__ import annotations

import hashlib


def stream(seed: int, name: str) -> int:
    """A seed for one use of randomness, so that arms share what is named alike and nothing else."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % 2**63
