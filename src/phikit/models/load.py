"""A model from whatever file or folder it is in, its weights not quantised: see `phikit.load`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from phikit.models import checkpoint
from phikit.models.gguf import load_gguf


def load(
    path: str | Path,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> Any:
    """Loads a model directory, or a GGUF file.

    Args:
        path: a directory with `config.json` and safetensors weights, or a file `*.gguf`.
        dtype: the precision to hold the weights in; when left out, that of the files, and bfloat16
            for a GGUF file.

    Returns:
        a torch module, of the architecture that the files name (see `architectures`): called with
        token ids [B, L] it gives logits [B, L, V].

    Raises:
        PhikitError: a file is missing or corrupt, the architecture is not known, or the tensors do
            not fit.
    """
    path = Path(path)
    if path.suffix == ".gguf":
        return load_gguf(path, dtype or torch.bfloat16, device)
    return checkpoint.load_any(path, dtype, device)
