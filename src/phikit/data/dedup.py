"""Near-duplicate documents: MinHash signatures, banded, joined by a deterministic union-find.

Of each cluster the document that came first is kept. Two documents are joined when they share a
band of their signatures *and* the signatures agree in at least `threshold` of their places, which
estimates the Jaccard similarity of their sets of word n-grams.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from rensa import RMinHash

from phikit.data.ngrams import WordHasher, ngrams
from phikit.stage import Config

_FLUSH = 512  # documents per call of the signature library


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


@dataclass(frozen=True)
class Cluster:
    """Indices of documents alike, the kept one first; `similarity` is each one's to the first."""

    members: tuple[int, ...]
    similarity: tuple[float, ...]


class UnionFind:
    """Sets of integers; a set's representative is always its smallest member."""

    def __init__(self, size: int) -> None:
        self.parent = list(range(size))

    def find(self, i: int) -> int:
        while self.parent[i] != i:
            self.parent[i] = i = self.parent[self.parent[i]]
        return i

    def join(self, a: int, b: int) -> None:
        a, b = self.find(a), self.find(b)
        self.parent[max(a, b)] = min(a, b)


class Deduplicator:
    """Takes texts one after the other, then tells which are duplicates of earlier ones.

    Holds 16 bytes and one signature (448 bytes) per document, not the texts.
    """

    def __init__(self, settings: DedupConfig, seed: int = 0) -> None:
        self.settings, self.seed = settings, seed
        self.exact: dict[bytes, int] = {}
        self.exact_of: list[int] = []  # per document the first one with equal words
        self._hasher = WordHasher()
        self._waiting: list[NDArray[np.uint64]] = []
        self._signatures: list[NDArray[np.uint32]] = []

    def add(self, text: str) -> int | None:
        """Takes the next text; gives the index of the first one with the very same words, if any.

        "The same" leaves case, punctuation and spacing out of account in prose and code alike.
        """
        hashes = self._hasher.hashes(text)
        key = hashlib.blake2b(hashes.tobytes(), digest_size=16).digest()
        index = len(self.exact_of)
        first = self.exact.setdefault(key, index)
        self.exact_of.append(first)
        n = min(self.settings.ngram, len(hashes))
        self._waiting.append(np.unique(ngrams(hashes, n)) if n else np.zeros(0, np.uint64))
        if len(self._waiting) >= _FLUSH:
            self._flush()
        return first if first != index else None

    def _flush(self) -> None:
        if not self._waiting:
            return
        bounds = np.cumsum([0, *map(len, self._waiting)]).astype(np.uint64)
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(
            np.concatenate(self._waiting), bounds, self.settings.hashes, self.seed
        )
        self._signatures.append(np.array(matrix.to_rows(), np.uint32))
        self._waiting.clear()

    def clusters(self) -> list[Cluster]:
        """All clusters of two or more, in order of their first members."""
        self._flush()
        count = len(self.exact_of)
        if not count:
            return []
        signatures = np.concatenate(self._signatures)
        sets = UnionFind(count)
        for index, first in enumerate(self.exact_of):
            sets.join(first, index)
        for a, b in self._candidates(signatures):
            if sets.find(a) != sets.find(b) and (
                np.mean(signatures[a] == signatures[b]) >= self.settings.threshold
            ):
                sets.join(a, b)
        members: dict[int, list[int]] = {}
        for index in range(count):
            members.setdefault(sets.find(index), []).append(index)
        return [
            Cluster(
                tuple(group),
                tuple(
                    round(float(np.mean(signatures[group[0]] == signatures[i])), 3) for i in group
                ),
            )
            for _, group in sorted(members.items())
            if len(group) > 1
        ]

    def _candidates(self, signatures: NDArray[np.uint32]) -> Iterator[tuple[int, int]]:
        """Pairs that share a band, band by band: each document with its bucket's first members.

        Comparing with every member would be quadratic in a bucket of boilerplate, and with one
        alone would miss pairs whose first member is only similar to one of them.
        """
        rows = self.settings.hashes // self.settings.bands
        for band in range(self.settings.bands):
            buckets: dict[bytes, list[int]] = {}
            part = np.ascontiguousarray(signatures[:, band * rows : (band + 1) * rows])
            for index in range(len(part)):
                leaders = buckets.setdefault(part[index].tobytes(), [])
                for leader in leaders:
                    yield leader, index
                if len(leaders) < 4:
                    leaders.append(index)
