"""What `import phikit` offers: a model by its path or name, to compute with or to generate with.

model = phikit.load("phi-4-mini")             # a torch module
engine, chat = phikit.open_chat("runs/nano")  # an engine, and its model's chat format
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from phikit import fetch

if TYPE_CHECKING:
    import torch

    from phikit.chat.format import ChatFormat
    from phikit.engine.base import Precision
    from phikit.engine.local import LocalEngine


def load(
    model: str | Path, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> Any:
    """A model as a torch module: `load("smollm2")(ids_BL)` gives logits of [B, L, vocabulary].

    Args:
        model: a model or run directory, a GGUF file, a member's name (`phi-4-mini`, `smollm2`) or
            a repository of the hub (`microsoft/phi-4`); what is not here is fetched.
        dtype: of the weights; None for what they are stored in.

    Raises:
        PhikitError: there is no such model, or it cannot be fetched or read.
    """
    from phikit.engine.load import load as load_path

    return load_path(fetch.resolve(str(model)), dtype, device)


def open_chat(
    model: str | Path, max_batch: int = 256, precision: Precision = "stored"
) -> tuple[LocalEngine, ChatFormat]:
    """A model's engine, which generates token ids in batches, and the chat format that makes
    prompts for it and text of its answers.

    Args:
        model: as for `load`.
        max_batch: sequences generated at once, at most.
        precision: of the weights: "stored", "bf16" or "f32".

    Raises:
        PhikitError: as `load`; or the engine does not run it, or it has no chat format.
    """
    from phikit.engine.load import open_chat as open_path

    return open_path(fetch.resolve(str(model)), max_batch, precision)
