"""The other methods, by the name that a wheel gives them: `from elalora.baselines.sora import SoRA`.

In a checkout they lie in baselines/ beside elalora/, and this module leads there. In a wheel that folder is the package
elalora/baselines, which Python takes before this file.
"""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parent.parent / "baselines")]
