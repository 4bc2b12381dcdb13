"""A model to generate with, from whatever file or folder it is in, quantised weights included; and
the engine of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from phikit.chat.format import ChatFormat, chat_format
from phikit.chat.load import load_tokenizer
from phikit.engine.base import Precision
from phikit.engine.guessers import check_guesser
from phikit.engine.local import LocalEngine
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


def guesser(how: str | Path, model: Any) -> Any:
    """What guesses a model's tokens.

    Args:
        how: "lookup", or the directory or GGUF file of a small model; empty for none.

    Raises:
        PhikitError: the small model cannot be loaded, or has another vocabulary.
    """
    found = how if how in ("", "lookup") else load(how)
    check_guesser(found, model)
    return found


def open_engine(
    path: str | Path,
    max_batch: int = 256,
    precision: Precision = "stored",
    speculate: str | Path = "",
    cache: str = "",
    invariant: bool = False,
) -> LocalEngine:
    """The engine of a model directory or GGUF file with its tokenizer, so that stop texts and
    constraints work.

    Args:
        speculate: see `guesser`; cache, invariant: see `LocalEngine`.

    Raises:
        PhikitError: the model or its tokenizer cannot be loaded, or is none that the engine runs.
    """
    path = Path(path)
    model = load(path, dtype_of(precision))
    return LocalEngine(
        model, max_batch, invariant=invariant, tokenizer=load_tokenizer(path),
        speculate=guesser(speculate, model), cache=cache,
    )  # fmt: skip


def open_chat(
    path: str | Path, max_batch: int = 256, precision: Precision = "stored"
) -> tuple[LocalEngine, ChatFormat]:
    """`open_engine`, and how to talk to its model.

    Raises:
        PhikitError: as `open_engine`; or the model has no chat format.
    """
    engine = open_engine(path, max_batch, precision)
    assert engine.tokenizer is not None
    return engine, chat_format(engine.tokenizer)
