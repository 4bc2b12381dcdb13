"""Which documents of all shards are duplicates: joined on the disk, the same however it is done.

Documents are ranked by what they say (the longer first, then by a hash), so which of a cluster
stays, and which are compared with which, depends on the documents alone, not on files, order,
shards or workers. What joins two documents: the same words; the same web address; or a band of
their MinHash signatures in common and signatures that agree in `threshold` of their places.

Bands are units of their own and can be cut further by their keys (`parts`), so that each takes
a bounded memory (about 60 bytes for each of its documents). Sets are joined in an array on the
disk, a stretch of pairs at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phikit.data.corpus.config import CorpusConfig

PART_DOCUMENTS = 16_000_000  # of a band that are sorted at once
_LEADERS = 4  # members of a bucket that the others are compared with
_PAIRS = 1 << 16  # compared at once: their signatures take 60 MB
_JOINED = 1 << 22  # pairs joined at once
REASONS = ("", "exact duplicate", "near duplicate", "same address")
Integers = NDArray[np.int64]


def column(shards: Sequence[str], name: str) -> NDArray[Any]:
    """An array of all shards, one after the other."""
    return np.concatenate([np.load(Path(s) / f"{name}.npy", allow_pickle=False) for s in shards])


def rank(folder: Path, shards: list[str], settings: dict[str, Any]) -> None:
    """The unit that ranks all documents and joins those with the same words or address.

    Leaves `ranks.npy` (place of each document in the ranking), `different.npy` (the documents that
    are the first of those with their words), and pairs of ranks in `pairs.npy`.
    """
    config = CorpusConfig.model_validate(settings)
    order = np.lexsort((column(shards, "texts"), -column(shards, "sizes")))
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    first = _first_of_equal(column(shards, "keys"), ranks)
    pairs = [np.stack([ranks, ranks[first]], axis=1)[first != np.arange(len(first))]]
    if config.by_url:
        urls = column(shards, "urls")
        first_url = _first_of_equal(urls, ranks)
        same = (urls != 0) & (first_url != np.arange(len(urls)))
        pairs.append(np.stack([ranks, ranks[first_url]], axis=1)[same])
    np.save(folder / "ranks.npy", ranks)
    np.save(folder / "different.npy", first == np.arange(len(first)))
    np.save(folder / "pairs.npy", np.concatenate(pairs))


def _first_of_equal(keys: NDArray[np.uint64], ranks: Integers) -> Integers:
    """For each document the best ranked one with its key."""
    order = np.lexsort((ranks, keys))
    first = np.empty(len(keys), np.int64)
    if len(keys):
        begins = np.flatnonzero(np.r_[True, keys[order][1:] != keys[order][:-1]])
        first[order] = np.repeat(order[begins], np.diff(np.r_[begins, len(keys)]))
    return first


def band(
    folder: Path, shards: list[str], ranked: str, number: int, part: int, parts: int,
    settings: dict[str, Any],
) -> None:  # fmt: skip
    """The unit of one part of one band: pairs of ranks that are alike, in `pairs.npy`."""
    config = CorpusConfig.model_validate(settings)
    keys = np.concatenate(
        [np.load(Path(s) / "bands.npy", mmap_mode="r", allow_pickle=False)[number] for s in shards]
    )
    mine = np.load(Path(ranked) / "different.npy")
    if parts > 1:
        mine = mine & (keys % np.uint64(parts) == part)
    documents = np.flatnonzero(mine)
    keys = keys[documents]
    ranks = np.load(Path(ranked) / "ranks.npy", mmap_mode="r")[documents]
    order = np.lexsort((ranks, keys))
    documents, ranks, keys = documents[order], ranks[order], keys[order]
    signatures = Signatures(shards)
    found = [np.zeros((0, 2), np.int64)]
    for a, b in _candidates(keys):
        alike = signatures.similarity(documents[a], documents[b]) >= config.dedup.threshold
        found.append(np.stack([ranks[b[alike]], ranks[a[alike]]], axis=1))
    np.save(folder / "pairs.npy", np.concatenate(found))


def _candidates(keys: NDArray[np.uint64]) -> Iterator[tuple[Integers, Integers]]:
    """Pairs of places with equal keys, in sorted keys: each with its bucket's first members.

    Comparing with every member would be quadratic in a bucket of boilerplate, and with one alone
    would miss pairs whose first member is only similar to one of them.
    """
    if not len(keys):
        return
    begins = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
    begin = np.repeat(begins, np.diff(np.r_[begins, len(keys)]))
    places = np.arange(len(keys)) - begin
    for leader in range(_LEADERS):
        later = np.flatnonzero(places > leader)
        for start in range(0, len(later), _PAIRS):
            at = later[start : start + _PAIRS]
            yield begin[at] + leader, at


class Signatures:
    """MinHash signatures of all documents, on the disk, read a few at a time."""

    def __init__(self, shards: Sequence[str]) -> None:
        self.paths = [Path(s) / "signatures.npy" for s in shards]
        sizes = [np.load(p, mmap_mode="r", allow_pickle=False).shape[0] for p in self.paths]
        self.bounds = np.cumsum([0, *sizes])

    def similarity(self, a: Integers, b: Integers) -> NDArray[np.float64]:
        """The share of places in which two documents' signatures agree, pair by pair."""
        needed, places = np.unique(np.concatenate([a, b]), return_inverse=True)
        rows = self._rows(needed)
        one, two = places[: len(a)], places[len(a) :]
        return np.asarray((rows[one] == rows[two]).mean(axis=1))

    def _rows(self, documents: Integers) -> NDArray[np.uint32]:
        """The signatures of documents in ascending order."""
        found = []
        cuts = np.searchsorted(documents, self.bounds)
        for shard, (begin, end) in enumerate(pairwise(cuts)):
            if end > begin:
                # opened and closed each time: what is mapped counts as this process's memory
                held = np.load(self.paths[shard], mmap_mode="r", allow_pickle=False)
                found.append(held[documents[begin:end] - self.bounds[shard]])
        return np.concatenate(found)


def join(folder: Path, shards: list[str], ranked: str, bands: list[str]) -> None:
    """The unit that joins all pairs: `kept.npy`, for each document the one that stands for it.

    Also `similarity.npy`, of each to that one, by their signatures, and `reasons.npy`, places in
    `REASONS`.
    """
    ranks = np.load(Path(ranked) / "ranks.npy")
    parent = np.lib.format.open_memmap(
        folder / "sets.npy", mode="w+", dtype=np.int64, shape=(max(len(ranks), 1),)
    )
    parent[:] = np.arange(len(parent))
    for source in [ranked, *bands]:
        pairs = np.load(Path(source) / "pairs.npy", mmap_mode="r", allow_pickle=False)
        for begin in range(0, len(pairs), _JOINED):
            _join(parent, np.array(pairs[begin : begin + _JOINED]))
    number_of = np.empty(len(ranks), np.int64)
    number_of[ranks] = np.arange(len(ranks))
    kept = number_of[parent[: len(ranks)][ranks]] if len(ranks) else ranks
    similarity = np.ones(len(ranks), np.float32)
    removed = np.flatnonzero(kept != np.arange(len(kept)))
    signatures = Signatures(shards)
    for begin in range(0, len(removed), _PAIRS):
        these = removed[begin : begin + _PAIRS]
        similarity[these] = signatures.similarity(these, kept[these])
    keys, urls = column(shards, "keys"), column(shards, "urls")
    reasons = np.zeros(len(ranks), np.uint8)
    reasons[removed] = 2
    reasons[removed[(urls[removed] != 0) & (urls[removed] == urls[kept[removed]])]] = 3
    reasons[removed[keys[removed] == keys[kept[removed]]]] = 1
    np.save(folder / "reasons.npy", reasons)
    np.save(folder / "kept.npy", kept)
    np.save(folder / "similarity.npy", similarity)
    del parent
    (folder / "sets.npy").unlink()


def _join(parent: Integers, pairs: Integers) -> None:
    """Joins the sets of pairs; a set's root is always its smallest member, whatever the order.

    Every root that a pair would join to smaller ones takes the smallest of these as its parent;
    then all paths are made short, until no pair joins anything.
    """
    one, two = pairs[:, 0], pairs[:, 1]
    while True:
        one, two = _roots(parent, one), _roots(parent, two)
        apart = one != two
        if not apart.any():
            return
        one, two = one[apart], two[apart]
        np.minimum.at(parent, np.maximum(one, two), np.minimum(one, two))
        _shorten(parent)


def _roots(parent: Integers, members: Integers) -> Integers:
    while True:
        above = parent[members]
        if np.array_equal(above, members):
            return members
        members = above


def _shorten(parent: Integers) -> None:
    """Makes every member point at its root."""
    while True:
        above = parent[parent]
        if np.array_equal(above, parent):
            return
        parent[:] = above
