"""Many texts to token ids by their pieces, each of which is encoded once.

A byte-level BPE cuts a text into pieces (words, numbers, signs, white space) and encodes these one
by one. Texts consist of the same pieces over and over: cutting is done by `pieces.c`, and only a
piece that was not met before goes through the tokenizer. Ids are the same as without this.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from phikit.compiled import Compiler, Sources, opened
from phikit.errors import PhikitError

SOURCES = Sources(Path(__file__).parent, "pieces", ("pieces.c",))
Encode = Callable[[Sequence[str]], list[list[int]]]
# In the classic form of the patterns. The newer one writes `{1,3}+`, where this regex engine reads
# the plus as "once or more" and not as "possessive".
_RULE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CL100K_SPLIT = _RULE.format("{1,3}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K_SPLIT = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SHORT}"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SHORT}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Rule(NamedTuple):
    """How texts are cut.

    Attributes:
        digits: the most digits of a piece.
        cased: o200k's rule, which looks at the case of letters; else cl100k's.
    """

    digits: int
    cased: bool = False


_RULES = {_RULE.format(""): Rule(1), CL100K_SPLIT: Rule(3), O200K_SPLIT: Rule(3, cased=True)}
_AT_ONCE = 1 << 18  # bytes cut at once
_KEPT = 1 << 19  # pieces kept in memory, which takes some 50 MB in all
_KEPT_BYTES = 1 << 23
_SLOTS = 1 << 20
_log = logging.getLogger("phikit")


class _Pieces(ctypes.Structure):
    """`Pieces` of pieces.c."""

    _fields_ = (
        ("slots", ctypes.c_void_p), ("mask", ctypes.c_int64), ("hashes", ctypes.c_void_p),
        ("starts", ctypes.c_void_p), ("bytes", ctypes.c_void_p), ("count", ctypes.c_int64),
    )  # fmt: skip


@functools.cache
def _library(compiler: Compiler) -> ctypes.CDLL | None:
    try:
        library = opened(SOURCES, compiler)
    except PhikitError as e:
        _log.warning("texts are encoded by the tokenizer alone, which is slower: %s", e)
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.phikit_pieces.argtypes = (
        pointer, pointer, number, ctypes.c_int, ctypes.c_int, ctypes.POINTER(_Pieces), pointer,
        pointer,
    )  # fmt: skip
    library.phikit_gather.argtypes = (pointer, pointer, number, *(pointer,) * 4)
    library.phikit_pieces.restype = library.phikit_gather.restype = None
    return library


def piece_encoder(tokenizer: Mapping[str, Any], encode: Encode) -> PieceEncoder | None:
    """What encodes texts by their pieces, for a tokenizer that cuts them by a known rule.

    Args:
        tokenizer: what its `tokenizer.json` holds, without added tokens.
        encode: encodes texts one by one.
    """
    model, cut = tokenizer["model"], tokenizer["pre_tokenizer"] or {}
    steps = cut.get("pretokenizers", [])
    if tokenizer["normalizer"] or model.get("type") != "BPE" or model.get("dropout"):
        return None
    if [step["type"] for step in steps] != ["Split", "ByteLevel"]:
        return None
    split, level = steps
    isolated = split["behavior"] == "Isolated" and not split["invert"]
    rule = _RULES.get(split["pattern"].get("Regex", ""))
    if not isolated or rule is None or level["add_prefix_space"] or level["use_regex"]:
        return None
    return PieceEncoder(rule, encode)


class PieceEncoder:
    """Encodes texts by their pieces.

    Args:
        rule: how texts are cut.
        encode: encodes texts one by one; also what encodes all where there is no compiler.
    """

    def __init__(self, rule: Rule, encode: Encode, compiler: Compiler = Compiler()) -> None:
        self.rule, self._encode, self._compiler = rule, encode, compiler
        self._lock = threading.Lock()
        self._table: _Table | None = None  # made when it is first needed

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """The ids of each text."""
        library = _library(self._compiler)
        if library is None:
            return [np.array(ids, np.uint32) for ids in self._encode(texts)]
        with self._lock:  # the table is one for all threads
            if self._table is None:
                self._table = _Table(library, self.rule, self._encode)
            return [ids for batch in _batches(texts) for ids in self._table.encode(batch)]


def _batches(texts: Sequence[str]) -> Iterator[list[bytes]]:
    """Texts in UTF-8, up to `_AT_ONCE` bytes together; a longer one is alone."""
    batch: list[bytes] = []
    size = 0
    for text in texts:
        data = text.encode()
        if batch and size + len(data) > _AT_ONCE:
            yield batch
            batch, size = [], 0
        batch.append(data)
        size += len(data)
    if batch:
        yield batch


class _Table:
    """The pieces met so far with their ids; emptied when it is full."""

    def __init__(self, library: ctypes.CDLL, rule: Rule, encode: Encode) -> None:
        self._library, self._rule, self._encode = library, rule, encode
        room = _KEPT + _AT_ONCE
        self._slots = np.zeros(_SLOTS, np.int32)
        self._hashes = np.empty(room, np.uint64)
        self._starts = np.zeros(room + 1, np.int64)
        self._bytes = np.empty(_KEPT_BYTES + _AT_ONCE, np.uint8)
        self._id_starts = np.zeros(room + 1, np.int64)
        self._ids = np.empty(1 << 16, np.uint32)
        self._pieces = _Pieces(
            self._slots.ctypes.data, _SLOTS - 1, self._hashes.ctypes.data,
            self._starts.ctypes.data, self._bytes.ctypes.data, 0,
        )  # fmt: skip

    def encode(self, texts: list[bytes]) -> list[NDArray[np.uint32]]:
        """The ids of texts of `_AT_ONCE` bytes in all, or of one text."""
        sizes = np.fromiter(map(len, texts), np.int64, len(texts))
        if sizes.sum() > _AT_ONCE:
            return [np.array(self._encode([texts[0].decode()])[0], np.uint32)]
        before = self._pieces.count
        if before > _KEPT or self._starts[before] > _KEPT_BYTES:
            self._slots.fill(0)
            before = self._pieces.count = 0
        bounds = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        data = b"".join(texts)
        numbers, piece_bounds = np.empty(len(data), np.int32), np.empty_like(bounds)
        self._library.phikit_pieces(
            data, bounds.ctypes.data, len(texts), *self._rule, self._pieces,
            numbers.ctypes.data, piece_bounds.ctypes.data,
        )  # fmt: skip
        self._learn(before)
        numbers = numbers[: piece_bounds[-1]]
        sizes = self._id_starts[numbers + 1] - self._id_starts[numbers]
        out, text_bounds = np.empty(sizes.sum(), np.uint32), np.empty_like(bounds)
        self._library.phikit_gather(
            numbers.ctypes.data, piece_bounds.ctypes.data, len(texts),
            self._id_starts.ctypes.data, self._ids.ctypes.data,
            out.ctypes.data, text_bounds.ctypes.data,
        )  # fmt: skip
        return np.split(out, text_bounds[1:-1])

    def _learn(self, before: int) -> None:
        """Encodes the pieces from a number on."""
        count = self._pieces.count
        if count == before:
            return
        starts = self._starts[before : count + 1].tolist()
        data = self._bytes[starts[0] : starts[-1]].tobytes()
        new = [
            data[begin - starts[0] : end - starts[0]].decode() for begin, end in pairwise(starts)
        ]
        ids = self._encode(new)
        ends = self._id_starts[before] + np.cumsum([len(each) for each in ids])
        self._id_starts[before + 1 : count + 1] = ends
        if ends[-1] > len(self._ids):
            self._ids = np.resize(self._ids, 2 * int(ends[-1]))
        self._ids[self._id_starts[before] : ends[-1]] = [i for each in ids for i in each]
