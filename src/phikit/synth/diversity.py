"""How much of a text was said before: by word n-grams, and by what compression gains from it."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence

_N = 8  # words of an n-gram
_WINDOW = 30_000  # bytes; zlib looks back 32 KB


def _grams(text: str, n: int) -> list[int]:
    words = text.lower().split()
    return [
        int.from_bytes(
            hashlib.blake2b(" ".join(words[i : i + n]).encode(), digest_size=8).digest(), "little"
        )
        for i in range(len(words) - n + 1)
    ]


class Nearness:
    """The texts so far: their word n-grams, as hashes of 8 bytes, and the last 30,000 bytes."""

    def __init__(self, n: int = _N) -> None:
        self.n = n
        self._seen: set[int] = set()
        self._last = b""

    def share(self, text: str) -> float:
        """The share of the text's n-grams that are there; 0 for a text too short to have one."""
        own = _grams(text, self.n)
        return sum(g in self._seen for g in own) / len(own) if own else 0.0

    def gain(self, text: str) -> float:
        """How much shorter the text compresses after the last ones, as a share of its own
        compressed length: near 0 for what is new, near 1 for a repetition."""
        data = text.encode("utf-8", "replace")
        alone = len(zlib.compress(data, 9))
        both = len(zlib.compress(self._last + data, 9)) - len(zlib.compress(self._last, 9))
        return max(0.0, 1 - both / alone)

    def add(self, text: str) -> None:
        """Remembers a text, for those that come after it."""
        self._seen.update(_grams(text, self.n))
        self._last = (self._last + b"\n" + text.encode("utf-8", "replace"))[-_WINDOW:]


def distinct(texts: Sequence[str], n: int) -> float:
    """Distinct word n-grams over all word n-grams (Li et al. 2016, distinct-n)."""
    grams = [g for text in texts for g in _grams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def compression(texts: Sequence[str]) -> float:
    """Bytes of all texts together over their compressed bytes: higher is more repetitive."""
    data = "\n".join(texts).encode("utf-8", "replace")
    return len(data) / len(zlib.compress(data, 9)) if data else 0.0
