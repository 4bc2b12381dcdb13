"""A model to generate with, from whatever file or folder it is in, quantised weights included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from phikit.engine.base import Precision
from phikit.engine.quant.settings import METHOD
from phikit.errors import PhikitError
from phikit.models import load as whole
from phikit.models.checkpoint import quantisation


def load(
    path: str | Path,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> Any:
    """`models.load.load`, and directories that `phikit quantize` wrote.

    Raises:
        PhikitError: as `models.load.load`; or the weights are quantised in another way.
    """
    path = Path(path)
    method = quantisation(path) if (path / "config.json").is_file() else ""
    if not method:
        return whole.load(path, dtype, device)
    if method != METHOD:
        raise PhikitError(
            f"{path}: its weights are quantised by {method!r}, which is not read",
            "give the model in bfloat16; phikit quantize makes it small",
        )
    from phikit.engine.quant.files import load as quantised

    return quantised(path, dtype, device)


def dtype_of(precision: Precision) -> torch.dtype | None:
    """What `load` takes for a stage's setting; None for weights as they are stored."""
    return {"stored": None, "bf16": torch.bfloat16, "f32": torch.float32}[precision]
