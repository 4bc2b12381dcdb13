"""Words and word n-grams of many texts, as stable 64-bit integers.

Decontamination and deduplication both compare texts by word n-grams. The same text gives the same
integers on every machine, so indexes can be stored and split over processes. The work is done by
`words.c`, or by arrays where there is no compiler (`ngram_work`): with the same results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phikit.data.folding import fold
from phikit.data.ngram_work import Bounds, Hashes, Wanted, Work, work

_MIX = np.uint64(0xFF51AFD7ED558CCD)


@dataclass(frozen=True)
class Words:
    """The hashes of the words of several texts; text t has hashes[bounds[t] : bounds[t + 1]].

    The same holds, with n-grams in place of words, for what `text_ngrams` makes of it.
    """

    hashes: Hashes
    bounds: Bounds

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def of(self, text: int) -> Hashes:
        """The hashes of one text's words."""
        return self.hashes[self.bounds[text] : self.bounds[text + 1]]

    def alone(self, text: int) -> Words:
        """The words of one of the texts."""
        return Words(self.of(text), np.array([0, len(self.of(text))]))

    def pick(self, texts: NDArray[np.int64]) -> Words:
        """The words of some of the texts."""
        return Words.join([self.alone(text) for text in texts.tolist()])

    @classmethod
    def join(cls, parts: Sequence[Words]) -> Words:
        """The words of the texts of all parts."""
        sizes = [np.diff(part.bounds) for part in parts]
        bounds = np.cumsum(np.concatenate([np.zeros(1, np.int64), *sizes]))
        return cls(np.concatenate([np.zeros(0, np.uint64), *(p.hashes for p in parts)]), bounds)


def hash_words(texts: Sequence[str], by: Work | None = None) -> Words:
    """The words of each text: runs of letters and runs of digits, as `folding.words` lists them.

    Args:
        by: does the work; the fastest there is when left out. So in the functions below.
    """
    folded = [fold(text).encode("utf-8", "replace") for text in texts]
    data = np.frombuffer(b"\n".join([*folded, b""]), np.uint8)
    sizes = np.fromiter((len(f) + 1 for f in folded), np.int64, len(folded))
    bounds = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return Words(*(by or work()).words(data, bounds))


def text_ngrams(found: Words, n: int, shorter: bool = False, by: Work | None = None) -> Words:
    """The n-grams of each of several texts, in order: Σ hash[i + j] · B^j modulo 2^64.

    Args:
        shorter: a text of fewer words than n gives one integer for all of them together.
    """
    sizes = np.diff(found.bounds)
    counts = np.maximum(sizes - n + 1, 0)
    if shorter:
        counts[(sizes > 0) & (sizes < n)] = 1
    bounds = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Words((by or work()).ngrams(found.hashes, found.bounds, n, bounds), bounds)


def text_keys(found: Words, by: Work | None = None) -> Hashes:
    """One integer per text for all its words in their order; 0 for a text without words."""
    sums = (by or work()).sums(found.hashes, found.bounds)
    sizes = np.diff(found.bounds).astype(np.uint64)
    # the number of words is mixed in, so that no text is a sum of others
    keys = (sums ^ sizes) * _MIX
    return np.where(sizes > 0, keys ^ (keys >> np.uint64(31)), np.uint64(0))


def find_ngrams(
    found: Words, n: int, wanted: Wanted, by: Work | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The n-grams of several texts that are wanted, in order.

    Returns of each the place of its first word in `found`, and its own in `wanted.sorted`.
    """
    return (by or work()).find(found.hashes, found.bounds, n, wanted)
