"""How much of a text was said before: by word n-grams, and by what compression gains from it."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Sequence

_N = 8  # words of an n-gram
_WINDOW = 30_000  # bytes that zlib looks back


def _grams(text: str, n: int) -> list[int]:
    words = text.lower().split()
    return [
        int.from_bytes(
            hashlib.blake2b(" ".join(words[i : i + n]).encode(), digest_size=8).digest(), "little"
        )
        for i in range(len(words) - n + 1)
    ]


class Nearness:
    """Word n-grams of the texts so far, as hashes of 8 bytes."""

    def __init__(self, n: int = _N) -> None:
        self.n = n
        self._seen: set[int] = set()

    def share(self, text: str) -> float:
        """The share of the text's n-grams that are there; 0 for a text too short to have one."""
        own = _grams(text, self.n)
        return sum(g in self._seen for g in own) / len(own) if own else 0.0

    def add(self, text: str) -> None:
        self._seen.update(_grams(text, self.n))


def gain(text: str, there: Iterable[str]) -> float:
    """How much shorter the text compresses after the given ones, as a share of its own compressed
    length: near 0 for what is new, near 1 for a repetition. zlib looks back 32 KB."""
    before = "\n".join(there).encode("utf-8", "replace")[-_WINDOW:]
    data = text.encode("utf-8", "replace")
    alone = len(zlib.compress(data, 9))
    both = len(zlib.compress(before + data, 9)) - len(zlib.compress(before, 9))
    return max(0.0, 1 - both / alone)


def distinct(texts: Sequence[str], n: int) -> float:
    """Distinct word n-grams over all word n-grams (Li et al. 2016, distinct-n)."""
    grams = [g for text in texts for g in _grams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def compression(texts: Sequence[str]) -> float:
    """Bytes of all texts together over their compressed bytes: higher is more repetitive."""
    data = "\n".join(texts).encode("utf-8", "replace")
    return len(data) / len(zlib.compress(data, 9)) if data else 0.0
