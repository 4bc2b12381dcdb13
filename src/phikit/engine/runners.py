"""Which runner runs which model."""

from __future__ import annotations

from typing import Any

import torch

from phikit.engine.flash import FlashRunner
from phikit.engine.invariant import InvariantRunner
from phikit.engine.native.build import library
from phikit.engine.native.runner import NativeRunner
from phikit.engine.native.step import packable, trained_obstacle
from phikit.engine.native.trained import TrainedRunner
from phikit.engine.packed import STEPS, worth_packing
from phikit.engine.runner import Runner
from phikit.errors import PhikitError
from phikit.models.decoder import Decoder
from phikit.models.flash.model import Flash

#: What the engine runs.
Model = Decoder | Flash


def rows_to_pack(
    model: Any, rows: int, steps: int = STEPS, invariant: bool = False, cache: str = ""
) -> int:
    """`runner_of`'s `pack`, when so many steps of so many rows are to come: 0 where packing does
    not pay, or is not for such a runner."""
    if invariant or not isinstance(model, Decoder):
        return 0
    kernels = not cache and packable(model)
    return rows if worth_packing(model, rows, steps, kernels) else 0


def check_as_trained(
    model: Any, invariant: bool = False, cache: str = "", dtype: torch.dtype | None = None
) -> None:
    """Whether `TrainedRunner` is to be had.

    Raises:
        PhikitError: it is not for this model or on this processor, or not with such settings.
    """
    other = "invariant=True" if invariant else f"a cache in {cache}" if cache else ""
    if dtype not in (None, torch.bfloat16):
        other = f"products in {dtype}"
    if other:
        raise PhikitError(f"as_trained does not go with {other}", "leave one of them out")
    reason = "it is no dense decoder"
    if isinstance(model, Decoder):
        reason = trained_obstacle(model, library())
    if reason:
        raise PhikitError(
            f"this model cannot be computed as training does: {reason}", "leave as_trained out"
        )


def runner_of(
    model: Any, pack: int = 0, invariant: bool = False, cache: str = "", as_trained: bool = False
) -> Runner:
    """The runner of a model.

    Args:
        pack: lay a dense decoder's weights out for steps of about so many rows.
        cache: "int8" holds keys and values in 8 bits; else they are of the model's precision.
        invariant: results of the same bits whatever else is in the batch; see `invariant`.
        as_trained: results of the same bits as training's forward pass; see `native.trained`.

    Raises:
        PhikitError: the engine does not run such models, or not so.
    """
    if as_trained:
        check_as_trained(model, invariant, cache)
        return TrainedRunner(model)
    if cache not in ("", "int8"):
        raise PhikitError(f"the cache is to be {cache!r}", "leave it out, or give 'int8'")
    if isinstance(model, Flash):
        if invariant:
            raise PhikitError(
                "phi-4-mini-flash has no invariant mode: its prompts are computed in padded groups",
                "leave `invariant` out",
            )
        return FlashRunner(model, int8_cache=cache == "int8")
    if isinstance(model, Decoder):
        if invariant:
            return InvariantRunner(model, cache=cache)
        return NativeRunner(model, pack=pack, cache=cache)
    raise PhikitError(
        f"the engine does not run a {type(model).__name__}",
        "give a dense decoder or phi-4-mini-flash",
    )
