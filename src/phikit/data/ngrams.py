"""Text as normalised words, and word n-grams as stable 64-bit integers.

Decontamination and deduplication both compare texts by word n-grams. The same text gives the same
integers on every machine, so indexes can be stored and split over processes.

Everything here works on many texts at once, as arrays: the bytes of all texts one after the other,
their bounds, and from these the hash of every word and of every n-gram. A sum over a stretch of
them is a difference of running sums modulo 2^64, so no step has a loop over words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Bounds = NDArray[np.int64]

# Letters of other scripts that look like Latin ones, after case folding. NFKC already folds
# full-width, mathematical and ligature forms.
LOOK_ALIKES = str.maketrans(
    {
        **dict(zip("авгекмнорстухіјѕѵԁԛԝһ", "abrekmhopctyxijsvdqwh", strict=True)),  # Cyrillic
        **dict(zip("αβγεζηικνορτυχω", "abyeznikvoptuxw", strict=True)),  # Greek
        "ı": "i", "ł": "l", "ø": "o", "đ": "d", "ɑ": "a", "ɡ": "g",
    }
)  # fmt: skip
_BASE = 0x9E3779B97F4A7C15  # of a text's words in an n-gram
_BYTE_BASE = 0xD1342543DE82EF95  # of a word's bytes in its hash
_MIX = np.uint64(0xFF51AFD7ED558CCD)
_OTHER, _LETTER, _DIGIT, _JOINING = range(4)  # what a byte can be
_COMMA = ord(",")
# writing without spaces: each character counts as a word
_IDEOGRAPH = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_UNSPACED = re.compile(f"([{_IDEOGRAPH}])")


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
        return self.hashes[self.bounds[text] : self.bounds[text + 1]]

    def pick(self, texts: NDArray[np.int64]) -> Words:
        """The words of some of the texts."""
        parts = [self.of(text) for text in texts.tolist()]
        bounds = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
        return Words(np.concatenate([np.zeros(0, np.uint64), *parts]), bounds.astype(np.int64))


def fold(text: str) -> str:
    """A text in which case, accents and look-alike letters are gone.

    All that is not ASCII and neither a letter nor a digit becomes a space; zero-width characters,
    soft hyphens and apostrophes vanish. Digits of all scripts become 0-9.
    """
    if text.isascii():
        return text.lower()
    text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    return _UNSPACED.sub(r" \1 ", text.translate(_FOLDING))


class _Folding(dict[int, str]):
    """What `fold` makes of each character after decomposition, found out when it is first met."""

    def __missing__(self, code: int) -> str:
        self[code] = folded = self._fold(chr(code))
        return folded

    @staticmethod
    def _fold(char: str) -> str:
        category = unicodedata.category(char)
        if ord(char) < 0x80:
            return char
        if category[0] == "M" or category == "Cf" or char in "’‘´ʼ":
            return ""
        if category == "Nd":
            return str(unicodedata.digit(char))
        return char.translate(LOOK_ALIKES) if category[0] in "LN" and char.isalnum() else " "


_FOLDING = _Folding()


@cache
def _classes() -> NDArray[np.uint8]:
    table = np.full(256, _LETTER, np.uint8)  # what is not ASCII is a letter after `fold`
    table[:128] = _OTHER
    for c in map(chr, range(128)):
        if c.isalpha():
            table[ord(c)] = _LETTER
        elif c.isdigit():
            table[ord(c)] = _DIGIT
    table[[ord("'"), ord("`")]] = _JOINING
    return table


@cache
def _lower() -> NDArray[np.uint64]:
    """Each byte in lower case, plus one: a zero would make words of different lengths equal."""
    return np.array([ord(chr(b).lower()) if b < 128 else b for b in range(256)], np.uint64) + 1


def hash_words(texts: Sequence[str]) -> Words:
    """The words of each text: runs of letters and runs of digits.

    What stands between parts of a word joins it: don't → dont, 12,000 → 12000.
    """
    folded = [(t if t.isascii() else fold(t)).encode("utf-8", "replace") for t in texts]
    data = np.frombuffer(b"\n".join([*folded, b""]), np.uint8)
    sizes = np.fromiter((len(f) + 1 for f in folded), np.int64, len(folded))
    return _hash_bytes(data, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))


def _hash_bytes(data: NDArray[np.uint8], bounds: Bounds) -> Words:
    """The words of folded texts, each ending in a byte that is in no word."""
    begins, ends, data, bounds = _runs(data, bounds)
    running = np.zeros(len(data) + 1, np.uint64)
    np.cumsum(_lower()[data] * _powers(_BYTE_BASE, len(data)), out=running[1:])
    hashes = (running[ends] - running[begins]) * _powers(pow(_BYTE_BASE, -1, 1 << 64), len(data))[
        begins
    ]
    hashes = (hashes ^ (hashes >> np.uint64(32))) * _MIX
    return Words(hashes ^ (hashes >> np.uint64(29)), np.searchsorted(begins, bounds))


def _runs(
    data: NDArray[np.uint8], bounds: Bounds
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8], Bounds]:
    """Begin and end of each word; joining bytes are taken out of the data and the bounds."""
    kinds = _classes()[data]
    joining = kinds == _JOINING
    joining[_thousands(data, kinds)] = True
    if joining.any():
        keep = ~joining
        bounds = bounds - np.concatenate([[0], np.cumsum(joining)])[bounds]
        data, kinds = data[keep], kinds[keep]
    changes = np.flatnonzero(kinds[1:] != kinds[:-1]) + 1
    edges = np.concatenate([[0], changes, [len(kinds)]])
    if not len(kinds):
        edges = edges[:1]
    inside = kinds[edges[:-1]] != _OTHER
    return edges[:-1][inside], edges[1:][inside], data, bounds


def _thousands(data: NDArray[np.uint8], kinds: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Commas with a digit before and exactly three after."""
    at = np.flatnonzero(data == _COMMA)
    at = at[(at > 0) & (at < len(data) - 4)]  # every text ends in a separator
    digit = kinds == _DIGIT
    near = digit[at - 1] & digit[at + 1] & digit[at + 2] & digit[at + 3] & ~digit[at + 4]
    return at[near]


_PLAIN_JOINING = re.compile(r"['`]|(?<=\d),(?=\d{3}(?!\d))")
_PLAIN_WORD = re.compile(r"[^\W\d_]+|\d+")


def words(text: str) -> list[str]:
    """The words that `hash_words` hashes, as text, for people to read.

    >>> words("It's  5kg of “Ѕalt” -- 1,200 cafés!")
    ['its', '5', 'kg', 'of', 'salt', '1200', 'cafes']
    """
    return _PLAIN_WORD.findall(_PLAIN_JOINING.sub("", fold(text)))


def running_sums(hashes: Hashes) -> Hashes:
    """The sums of hash[k] · B^k before each word, of which n-grams and keys are differences."""
    running = np.zeros(len(hashes) + 1, np.uint64)
    np.cumsum(hashes * _powers(_BASE, len(hashes)), out=running[1:])
    return running


def ngrams(hashes: Hashes, n: int) -> Hashes:
    """One integer per n-gram, in order; a text of fewer than n words has none.

    The integer is Σ hash[i + j] · B^j modulo 2^64, by differences of running sums of
    hash[k] · B^k, which are brought back by B^-i (B is odd, so it has an inverse).
    """
    return ngrams_of_sums(running_sums(hashes), n)


def ngrams_of_sums(running: Hashes, n: int) -> Hashes:
    """`ngrams` of words whose running sums are known."""
    count = len(running) - n
    if count <= 0:
        return np.zeros(0, np.uint64)
    return (running[n:] - running[:-n]) * _powers(pow(_BASE, -1, 1 << 64), count)


def text_ngrams(found: Words, n: int, shorter: bool = False) -> Words:
    """The n-grams of each of several texts.

    Args:
        shorter: a text of fewer words than n gives one integer for all of them together.
    """
    sizes = np.diff(found.bounds)
    counts = np.maximum(sizes - n + 1, 0)
    if shorter:
        counts[(sizes > 0) & (sizes < n)] = 1
    bounds = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    whole = ngrams(found.hashes, n)
    take = np.arange(bounds[-1]) + np.repeat(found.bounds[:-1] - bounds[:-1], counts)
    if not shorter:
        return Words(whole[take], bounds)
    brief = np.flatnonzero((sizes > 0) & (sizes < n))
    result = np.zeros(bounds[-1], np.uint64)
    rest = np.ones(bounds[-1], np.bool_)
    rest[bounds[brief]] = False
    result[rest] = whole[take[rest]]
    for text in brief.tolist():
        result[bounds[text]] = ngrams(found.of(text), int(sizes[text]))[0]
    return Words(result, bounds)


def text_keys(found: Words, running: Hashes | None = None) -> Hashes:
    """One integer per text for all its words in their order; 0 for a text without words.

    Args:
        running: the words' `running_sums`, if they are known.
    """
    if running is None:
        running = running_sums(found.hashes)
    begins, ends = found.bounds[:-1], found.bounds[1:]
    back = np.append(_powers(pow(_BASE, -1, 1 << 64), len(found.hashes)), np.uint64(0))
    keys = (running[ends] - running[begins]) * back[begins]
    # the number of words is mixed in, so that no text is a sum of others
    keys = (keys ^ (ends - begins).astype(np.uint64)) * _MIX
    return np.where(ends > begins, keys ^ (keys >> np.uint64(31)), np.uint64(0))


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
