"""Text as normalised words, and word n-grams as stable 64-bit integers.

Decontamination and deduplication both compare texts by word n-grams. The same text gives the same
integers on every machine, so indexes can be stored and split over processes.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

# Letters of other scripts that look like Latin ones, after case folding. NFKC already folds
# full-width, mathematical and ligature forms.
LOOK_ALIKES = str.maketrans(
    {
        **dict(zip("авгекмнорстухіјѕѵԁԛԝһ", "abrekmhopctyxijsvdqwh", strict=True)),  # Cyrillic
        **dict(zip("αβγεζηικνορτυχω", "abyeznikvoptuxw", strict=True)),  # Greek
        "ı": "i", "ł": "l", "ø": "o", "đ": "d", "ɑ": "a", "ɡ": "g",
    }
)  # fmt: skip
# Joins what it stands in: don't → dont, 12,000 → 12000. Soft hyphens and zero-width characters.
_JOINING = re.compile(r"['’‘`´ʼ\u00ad\u200b-\u200f\u2060\ufeff]|(?<=\d),(?=\d{3}(?!\d))")
_WORD = re.compile(r"[^\W\d_]+|\d+")
_MAX_CACHED = 1 << 20
_BASE = 0x9E3779B97F4A7C15
_BASE_INVERSE = pow(_BASE, -1, 1 << 64)


def words(text: str) -> list[str]:
    """Runs of letters and runs of digits; case, punctuation, spacing and accents are gone.

    >>> words("It's  5kg of “Ѕalt” -- 1,200 cafés!")
    ['its', '5', 'kg', 'of', 'salt', '1200', 'cafes']
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
        text = "".join(c for c in text if not unicodedata.combining(c)).translate(LOOK_ALIKES)
    return _WORD.findall(_JOINING.sub("", text.lower()))


class WordHasher(dict[str, int]):
    """Word → the first 8 bytes of its BLAKE2b, remembered, within bounds."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _MAX_CACHED:
            self.clear()
        digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        self[word] = value = int.from_bytes(digest, "little")
        return value

    def hashes(self, text: str) -> Hashes:
        """One integer per word of the text."""
        found = words(text)
        return np.fromiter(map(self.__getitem__, found), np.uint64, len(found))


def ngrams(hashes: Hashes, n: int) -> Hashes:
    """One integer per n-gram, in order; a text of fewer than n words has none.

    The integer is Σ hash[i + j] · B^j modulo 2^64, by differences of running sums of
    hash[k] · B^k, which are brought back by B^-i (B is odd, so it has an inverse).
    """
    count = len(hashes) - n + 1
    if count <= 0:
        return np.zeros(0, np.uint64)
    running = np.zeros(len(hashes) + 1, np.uint64)
    np.cumsum(hashes * _powers(_BASE, len(hashes)), out=running[1:])
    return (running[n:] - running[:-n]) * _powers(_BASE_INVERSE, count)


def _powers(base: int, count: int) -> Hashes:
    """1, base, base², ... modulo 2^64."""
    factors = np.full(count, base, np.uint64)
    factors[0] = 1
    return np.multiply.accumulate(factors)
