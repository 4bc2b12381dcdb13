"""Which runner runs which model."""

from __future__ import annotations

from typing import Any

from phikit.engine.flash import FlashRunner
from phikit.engine.native.runner import NativeRunner
from phikit.engine.runner import Runner
from phikit.errors import PhikitError
from phikit.models.decoder import Decoder
from phikit.models.flash.model import Flash

#: What the engine runs.
Model = Decoder | Flash


def runner_of(model: Any, pack: int = 0) -> Runner:
    """The runner of a model.

    Args:
        pack: lay a dense decoder's weights out for steps of about so many rows.

    Raises:
        PhikitError: the engine does not run such models.
    """
    if isinstance(model, Flash):
        return FlashRunner(model)
    if isinstance(model, Decoder):
        return NativeRunner(model, pack=pack)
    raise PhikitError(
        f"the engine does not run a {type(model).__name__}",
        "give a dense decoder or phi-4-mini-flash",
    )
