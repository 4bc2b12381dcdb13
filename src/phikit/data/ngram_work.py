"""The sums over words that `ngrams` consists of: in C, or by arrays, with the same results.

Arrays are the bytes of all texts one after the other, their bounds, and from these the hash of
every word and of every n-gram. A sum over a stretch of them is a difference of running sums modulo
2^64, so no step has a loop over words.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from phikit.compiled import Compiler, Sources, opened
from phikit.data.folding import DIGIT, JOINING, OTHER, kinds, values
from phikit.errors import PhikitError

Hashes = NDArray[np.uint64]
Bounds = NDArray[np.int64]

BASE = 0x9E3779B97F4A7C15  # of a text's words in an n-gram
BYTE_BASE = 0xD1342543DE82EF95  # of a word's bytes in its hash
SOURCES = Sources(Path(__file__).parent, "words", ("words.c",))
_MODULUS = 1 << 64
_MIX = np.uint64(0xFF51AFD7ED558CCD)
_COMMA = ord(",")
_log = logging.getLogger("phikit")


class Wanted:
    """Integers that n-grams of texts are looked for among, in ascending order.

    Nearly all that are not there are told apart by one look into a table of their highest bits,
    which stays in a core's cache, where a search would take some twenty looks into memory.
    """

    BITS = 26  # a table of 8 MiB

    def __init__(self, ascending: Hashes) -> None:
        self.sorted = np.ascontiguousarray(ascending)
        self.table = np.zeros(1 << (self.BITS - 3), np.uint8)
        top = self.sorted >> np.uint64(64 - self.BITS)
        bit = np.left_shift(np.uint8(1), (top & np.uint64(7)).astype(np.uint8))
        np.bitwise_or.at(self.table, top >> np.uint64(3), bit)
        high = np.arange(1 << 16, dtype=np.uint64) << np.uint64(48)
        self.begins = np.append(np.searchsorted(self.sorted, high), len(self.sorted))


class Work(Protocol):
    """What has to be done; text t has data[bounds[t] : bounds[t + 1]], or hashes."""

    def words(self, data: NDArray[np.uint8], bounds: Bounds) -> tuple[Hashes, Bounds]:
        """The hashes of the words of folded texts, each of which ends in a byte of no word."""

    def sums(self, hashes: Hashes, bounds: Bounds) -> Hashes:
        """Of each text Σ hash[j] · B^j."""

    def ngrams(self, hashes: Hashes, bounds: Bounds, n: int, gram_bounds: Bounds) -> Hashes:
        """The n-grams of each text; one of all its words where there is room for one only."""

    def find(
        self, hashes: Hashes, bounds: Bounds, n: int, wanted: Wanted
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The n-grams that are wanted: the place of the first word of each, and its own."""


@functools.cache
def work(compiler: Compiler = Compiler()) -> Work:
    """C, or arrays where it cannot be had; the reason is logged once."""
    try:
        return InC(compiler)
    except PhikitError as e:
        _log.warning("texts are compared by array operations, which are slower: %s", e)
        return ByArrays()


class _Gram(ctypes.Structure):
    """`Gram` of words.c."""

    _fields_ = (
        ("n", ctypes.c_int64),
        *((name, ctypes.c_uint64) for name in ("base", "inverse", "top")),
    )


class _Wanted(ctypes.Structure):
    """`Wanted` of words.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("table", "sorted", "begins")),
        ("bits", ctypes.c_int64),
    )


class InC:
    """By the functions of words.c.

    Raises:
        PhikitError: they cannot be compiled or loaded.
    """

    def __init__(self, compiler: Compiler = Compiler()) -> None:
        self._library = opened(SOURCES, compiler)
        pointer, number, hashed = ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint64
        gram = ctypes.POINTER(_Gram)
        texts = (pointer, pointer, number)
        self._library.phikit_words.argtypes = (*texts, pointer, pointer, hashed, pointer, pointer)
        self._library.phikit_sums.argtypes = (*texts, hashed, pointer)
        self._library.phikit_ngrams.argtypes = (*texts, gram, pointer, pointer)
        self._library.phikit_find.argtypes = (
            *texts, gram, ctypes.POINTER(_Wanted), pointer, pointer
        )  # fmt: skip
        for name in ("words", "find"):
            getattr(self._library, f"phikit_{name}").restype = number
        for name in ("sums", "ngrams"):
            getattr(self._library, f"phikit_{name}").restype = None

    def words(self, data: NDArray[np.uint8], bounds: Bounds) -> tuple[Hashes, Bounds]:
        hashes, word_bounds = np.empty(len(data), np.uint64), np.empty(len(bounds), np.int64)
        count = self._library.phikit_words(
            *_texts(data, bounds), kinds().ctypes.data, values().ctypes.data, BYTE_BASE,
            hashes.ctypes.data, word_bounds.ctypes.data,
        )  # fmt: skip
        return hashes[:count], word_bounds

    def sums(self, hashes: Hashes, bounds: Bounds) -> Hashes:
        sums = np.empty(len(bounds) - 1, np.uint64)
        self._library.phikit_sums(*_texts(hashes, bounds), BASE, sums.ctypes.data)
        return sums

    def ngrams(self, hashes: Hashes, bounds: Bounds, n: int, gram_bounds: Bounds) -> Hashes:
        grams = np.empty(gram_bounds[-1], np.uint64)
        self._library.phikit_ngrams(
            *_texts(hashes, bounds), _gram(n), gram_bounds.ctypes.data, grams.ctypes.data
        )
        return grams

    def find(
        self, hashes: Hashes, bounds: Bounds, n: int, wanted: Wanted
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        at, places = np.empty(len(hashes), np.int64), np.empty(len(hashes), np.int64)
        looked = _Wanted(
            wanted.table.ctypes.data, wanted.sorted.ctypes.data, wanted.begins.ctypes.data,
            wanted.BITS,
        )  # fmt: skip
        count = self._library.phikit_find(
            *_texts(hashes, bounds), _gram(n), looked, at.ctypes.data, places.ctypes.data
        )
        return at[:count], places[:count]


def _texts(parts: NDArray[np.uint8] | Hashes, bounds: Bounds) -> tuple[int, int, int]:
    """Arrays and their number of texts as C takes them; both must be held until it returns."""
    assert parts.flags.c_contiguous and bounds.flags.c_contiguous and bounds.dtype == np.int64
    return parts.ctypes.data, bounds.ctypes.data, len(bounds) - 1


def _gram(n: int) -> _Gram:
    return _Gram(n, BASE, pow(BASE, -1, _MODULUS), pow(BASE, n - 1, _MODULUS))


class ByArrays:
    """By numpy, a whole array at a time."""

    def words(self, data: NDArray[np.uint8], bounds: Bounds) -> tuple[Hashes, Bounds]:
        begins, ends, data, bounds = _runs(data, bounds)
        running = np.zeros(len(data) + 1, np.uint64)
        np.cumsum(values()[data] * _powers(BYTE_BASE, len(data)), out=running[1:])
        back = _powers(pow(BYTE_BASE, -1, _MODULUS), len(data))
        hashes = (running[ends] - running[begins]) * back[begins]
        hashes = (hashes ^ (hashes >> np.uint64(32))) * _MIX
        return hashes ^ (hashes >> np.uint64(29)), np.searchsorted(begins, bounds)

    def sums(self, hashes: Hashes, bounds: Bounds) -> Hashes:
        running = _running_sums(hashes)
        begins, ends = bounds[:-1], bounds[1:]
        back = np.append(_powers(pow(BASE, -1, _MODULUS), len(hashes)), np.uint64(0))
        return np.asarray((running[ends] - running[begins]) * back[begins])

    def ngrams(self, hashes: Hashes, bounds: Bounds, n: int, gram_bounds: Bounds) -> Hashes:
        begins = _begins(bounds, gram_bounds)
        ends = np.minimum(begins + n, np.repeat(bounds[1:], np.diff(gram_bounds)))
        running = _running_sums(hashes)
        back = _powers(pow(BASE, -1, _MODULUS), len(hashes))
        return np.asarray((running[ends] - running[begins]) * back[begins])

    def find(
        self, hashes: Hashes, bounds: Bounds, n: int, wanted: Wanted
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if not len(wanted.sorted):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        counts = np.maximum(np.diff(bounds) - n + 1, 0)
        gram_bounds = np.concatenate([[0], np.cumsum(counts)])
        grams = self.ngrams(hashes, bounds, n, gram_bounds)
        top = grams >> np.uint64(64 - wanted.BITS)
        bit = wanted.table[top >> np.uint64(3)] >> (top & np.uint64(7)).astype(np.uint8)
        possible = np.flatnonzero(bit & 1)
        places = np.searchsorted(wanted.sorted, grams[possible])
        places = np.minimum(places, len(wanted.sorted) - 1)
        same = wanted.sorted[places] == grams[possible]
        return _begins(bounds, gram_bounds)[possible[same]], places[same]


def _begins(bounds: Bounds, gram_bounds: Bounds) -> NDArray[np.int64]:
    """The place of the first word of each n-gram."""
    counts = np.diff(gram_bounds)
    return np.arange(gram_bounds[-1]) + np.repeat(bounds[:-1] - gram_bounds[:-1], counts)


def _runs(
    data: NDArray[np.uint8], bounds: Bounds
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8], Bounds]:
    """Begin and end of each word; joining bytes are taken out of the data and the bounds."""
    kind = kinds()[data]
    joining = kind == JOINING
    joining[_thousands(data, kind)] = True
    if joining.any():
        keep = ~joining
        bounds = bounds - np.concatenate([[0], np.cumsum(joining)])[bounds]
        data, kind = data[keep], kind[keep]
    changes = np.flatnonzero(kind[1:] != kind[:-1]) + 1
    edges = np.concatenate([[0], changes, [len(kind)]])
    if not len(kind):
        edges = edges[:1]
    inside = kind[edges[:-1]] != OTHER
    return edges[:-1][inside], edges[1:][inside], data, bounds


def _thousands(data: NDArray[np.uint8], kind: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Commas with a digit before and exactly three after."""
    at = np.flatnonzero(data == _COMMA)
    at = at[(at > 0) & (at < len(data) - 4)]  # every text ends in a separator
    digit = kind == DIGIT
    near = digit[at - 1] & digit[at + 1] & digit[at + 2] & digit[at + 3] & ~digit[at + 4]
    return at[near]


def _running_sums(hashes: Hashes) -> Hashes:
    """The sums of hash[k] · B^k before each word; n-grams are differences, brought back by B^-i."""
    running = np.zeros(len(hashes) + 1, np.uint64)
    np.cumsum(hashes * _powers(BASE, len(hashes)), out=running[1:])
    return running


_kept_powers: dict[int, Hashes] = {}


def _powers(base: int, count: int) -> Hashes:
    """1, base, base², ... modulo 2^64; the longest list so far is kept for the next call."""
    known = _kept_powers.get(base)
    if known is None or len(known) < count:
        factors = np.full(max(count, 1 << 16), base, np.uint64)
        factors[0] = 1
        known = np.multiply.accumulate(factors)
        if len(known) <= 1 << 22:
            _kept_powers[base] = known
    return known[:count]
