"""phikit: the open home of the Phi-4 family.

    import phikit
    model = phikit.load("path/to/checkpoint")     # a torch module: model(ids) gives logits
    phikit.config("phi-4-mini")                   # the published shape of a member of the family

The six records everything passes around are in `phikit.records`; `phikit --help` lists the verbs.
Importing the package imports nothing heavy: names are resolved on first use.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "config", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from phikit.engine.load import load

        return load
    if name == "config":
        from phikit.models.family import config

        return config
    raise AttributeError(f"module 'phikit' has no attribute {name!r}")
