"""Near-duplicate documents: MinHash signatures, banded, joined by a deterministic union-find.

Of each cluster the document that came first is kept. Two documents are joined when they share a
band of their signatures *and* the signatures agree in at least `threshold` of their places, which
estimates the Jaccard similarity of their sets of word n-grams.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from rensa import RMinHash

from phikit.data.ngrams import hash_words, text_keys, text_ngrams
from phikit.stage import Config

_LEADERS = 4  # members of a bucket that the others are compared with
_FLUSH = 1 << 19  # characters hashed at once: their arrays stay in the cores' caches


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

    Holds one integer and one signature (448 bytes) per document, not the texts.
    """

    def __init__(self, settings: DedupConfig, seed: int = 0) -> None:
        self.settings, self.seed = settings, seed
        self._waiting: list[str] = []
        self._waiting_chars = 0
        self._keys = array("Q")
        self._signatures: list[NDArray[np.uint32]] = []

    def add(self, text: str) -> None:
        """Takes the next text."""
        self._waiting.append(text)
        self._waiting_chars += len(text)
        if self._waiting_chars >= _FLUSH:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            keys, signatures = signatures_of(self._waiting, self.settings, self.seed)
            self._keys.frombytes(keys.tobytes())
            self._signatures.append(signatures)
            self._waiting.clear()
            self._waiting_chars = 0

    def exact(self) -> NDArray[np.int64]:
        """For each text the first one with the very same words.

        "The same" leaves case, punctuation and spacing out of account in prose and code alike.
        """
        self._flush()
        _, first, inverse = np.unique(
            np.frombuffer(self._keys, np.uint64), return_index=True, return_inverse=True
        )
        return first[inverse]

    def clusters(self) -> list[Cluster]:
        """All clusters of two or more, in order of their first members."""
        self._flush()
        if not self._keys:
            return []
        exact = self.exact()
        signatures = np.concatenate(self._signatures)
        sets = UnionFind(len(exact))
        for index in np.flatnonzero(exact != np.arange(len(exact))).tolist():
            sets.join(int(exact[index]), index)
        # copies follow their original into whatever cluster it joins
        for a, b in self._candidates(signatures, np.unique(exact)):
            if sets.find(a) != sets.find(b) and (
                np.mean(signatures[a] == signatures[b]) >= self.settings.threshold
            ):
                sets.join(a, b)
        members: dict[int, list[int]] = {}
        for index in range(len(exact)):
            members.setdefault(sets.find(index), []).append(index)
        return [_cluster(group, signatures) for group in members.values() if len(group) > 1]

    def _candidates(
        self, signatures: NDArray[np.uint32], different: NDArray[np.int64]
    ) -> Iterator[tuple[int, int]]:
        """Pairs that share a band, band by band: each document with its bucket's first members.

        Comparing with every member would be quadratic in a bucket of boilerplate, and with one
        alone would miss pairs whose first member is only similar to one of them.
        """
        rows = self.settings.hashes // self.settings.bands
        for band in range(self.settings.bands):
            part = np.ascontiguousarray(signatures[different, band * rows : (band + 1) * rows])
            for bucket in _equal_rows(part):
                members = different[bucket].tolist()
                for place, member in enumerate(members[1:], 1):
                    for leader in members[: min(place, _LEADERS)]:
                        yield leader, member


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


def _equal_rows(rows: NDArray[np.uint32]) -> Iterator[NDArray[np.int64]]:
    """The indices of rows that equal others, bucket by bucket, each in order."""
    packed = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel()
    _, inverse, counts = np.unique(packed, return_inverse=True, return_counts=True)
    order = np.argsort(inverse, kind="stable")
    ends = np.cumsum(counts)
    for bucket in np.flatnonzero(counts > 1).tolist():
        yield order[ends[bucket] - counts[bucket] : ends[bucket]]


def _cluster(group: list[int], signatures: NDArray[np.uint32]) -> Cluster:
    like = (signatures[group] == signatures[group[0]]).mean(axis=1)
    return Cluster(tuple(group), tuple(round(float(s), 3) for s in like))
