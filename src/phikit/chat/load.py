"""The tokenizer of a model, whatever it is in."""

from __future__ import annotations

from pathlib import Path

from phikit.chat.gguf import tokenizer_of
from phikit.chat.tokenizer import Tokenizer
from phikit.models.gguf import GGUF


def load_tokenizer(model: Path) -> Tokenizer:
    """The tokenizer of a model directory or of a GGUF file.

    Raises:
        PhikitError: there is none, or it cannot be read.
    """
    return tokenizer_of(GGUF(model)) if model.suffix == ".gguf" else Tokenizer.load(model)
