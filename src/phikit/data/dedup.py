"""What near-duplicate documents are, and the MinHash signatures by which they are found.

Two documents are joined when they share a band of their signatures *and* the signatures agree in at
least `threshold` of their places, which estimates the Jaccard similarity of their sets of word
n-grams. `corpus.duplicates` does the joining.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from rensa import RMinHash

from phikit.data.ngrams import hash_words, text_keys, text_ngrams
from phikit.stage import Config


class DedupConfig(Config):
    """How alike two documents may be."""

    threshold: float = Field(
        default=0.75,
        gt=0,
        le=1,
        description="Jaccard similarity from which two documents are duplicates",
    )
    ngram: int = Field(default=5, gt=0, description="words per compared n-gram")
    hashes: int = Field(default=112, gt=0, description="length of a signature")
    bands: int = Field(
        default=14,
        gt=0,
        description="a signature is cut into so many bands; sharing one makes two documents "
        "candidates. With 14 bands of 8, pairs of similarity 0.75 are found with probability 0.77, "
        "of 0.85 with 0.99",
    )

    @model_validator(mode="after")
    def _bands_hold_hashes(self) -> DedupConfig:
        if self.bands > self.hashes:
            raise ValueError(f"{self.bands} bands cannot be cut from {self.hashes} hashes")
        return self


def signatures_of(
    texts: Sequence[str], settings: DedupConfig, seed: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    """Of each text one integer for all its words, and its MinHash signature [texts, hashes].

    Texts without words have equal ones; that is for the filters to keep out.
    """
    found = hash_words(texts)
    grams = text_ngrams(found, settings.ngram, shorter=True)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        grams.hashes, grams.bounds.astype(np.uint64), settings.hashes, seed
    )
    return text_keys(found), np.array(matrix.to_rows(), np.uint32).reshape(-1, settings.hashes)
