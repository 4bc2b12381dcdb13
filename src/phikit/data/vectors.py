"""Texts as vectors of their meaning: which are alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from phikit.errors import PhikitError
from phikit.files import cache_folder

Vectors = NDArray[np.float32]
MODEL = "minilm"  # what `phikit fetch` calls the encoder
_BLOCK = 1024  # vectors compared at once


class Encodes(Protocol):
    """What makes vectors of texts."""

    width: int

    def vectors(self, texts: Sequence[str]) -> Vectors:
        """Of each text a vector of length 1, [texts, width]."""


def load_encoder(name: str = MODEL) -> Encodes:
    """The encoder in a folder, or one that was fetched by name.

    Raises:
        PhikitError: it is not on this machine, or is none.
    """
    from phikit.data.embedding import Encoder  # needs torch, which reading a recipe must not

    for place in (Path(name), cache_folder() / name):
        if (place / "model.safetensors").exists():
            return Encoder(place)
    raise PhikitError(f"no sentence encoder {name!r} on this machine", f"phikit fetch {MODEL}")


def nearest(vectors: Vectors, others: Vectors) -> Iterator[tuple[int, int, float]]:
    """For each vector (its number) the most alike of others and their cosine, to 4 digits.

    Rounding makes equal what differs in the last bits only; of equals the first counts.
    """
    for first in range(0, len(vectors) if len(others) else 0, _BLOCK):
        cosines = np.round(vectors[first : first + _BLOCK] @ others.T, 4)
        best = cosines.argmax(1)
        for row, place in enumerate(best.tolist()):
            yield first + row, place, round(float(cosines[row, place]), 4)
