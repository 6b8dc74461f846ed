"""Seeds: one for each use of randomness."""

from __future__ import annotations

import hashlib


def stream(seed: int, name: str) -> int:
    """A seed for one named use of randomness: arms share exactly the uses that have the same name."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % 2**63
