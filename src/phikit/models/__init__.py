"""What a Phi is: configurations, layers, checkpoints. Needs torch and safetensors, nothing else.

`phikit.models.config("phi-4-mini")` is the published shape of a member of the family.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "config":
        from phikit.models.family import config

        return config
    raise AttributeError(f"module 'phikit.models' has no attribute {name!r}")
