"""phikit: the open home of the Phi-4 family.

    import phikit
    model = phikit.load("smollm2")                # a torch module: model(ids) gives logits
    engine, chat = phikit.open_chat("runs/nano")  # to generate with: see docs/python.md
    phikit.config("phi-4-mini")                   # the published shape of a member of the family

The six records everything passes around are in `phikit.records`; `phikit --help` lists the verbs.
Importing the package imports nothing heavy: names are resolved on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phikit.api import load as load
    from phikit.api import open_chat as open_chat
    from phikit.models.family import config as config

__version__ = "0.1.0"
__all__ = ["__version__", "config", "load", "open_chat"]


def __getattr__(name: str) -> object:
    if name in ("load", "open_chat"):
        from phikit import api

        return getattr(api, name)
    if name == "config":
        from phikit.models.family import config

        return config
    raise AttributeError(f"module 'phikit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
