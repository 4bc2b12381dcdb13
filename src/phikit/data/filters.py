"""Heuristics that keep broken, repetitive, generated or meaningless documents out.

A filter is a function (document, settings) → the reason to reject it, or None; `filter_steps` runs
those that a recipe names. The prose rules are those of the Gopher paper (Rae et al.
2021, appendix A1.1) with limits fitted to documentation, which holds more code and lists than web
pages do; outliers by compression and by character n-grams are the technical report's (§2.2).
"""

from __future__ import annotations

import ast
import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from phikit.records import Document
from phikit.stage import Config

STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with", "is", "a", "in", "for"}
_GENERATED = re.compile(
    r"(?i)\b(auto-?generated|generated (?:by|from|automatically)|do not (?:edit|modify))\b"
    r"|@generated\b"
)
_COMMENT = re.compile(r"\s*(#|//|/?\*|\"\"\"|\'\'\')")
_WORD = re.compile(r"\w+")
_LETTER = re.compile(r"[^\W\d_]")


class FilterConfig(Config):
    """Limits of the heuristics. A fraction is of words, lines or characters, as its name says."""

    min_chars: int = Field(default=120, description="shorter documents are rejected")
    max_chars: int = Field(default=100_000, description="longer documents are rejected")
    min_words: int = Field(default=20, description="prose of fewer words is rejected")
    min_word_length: float = Field(default=2.5, description="least mean length of a word in prose")
    max_word_length: float = Field(
        default=10.0, description="greatest mean length of a word in prose"
    )
    max_symbol_ratio: float = Field(
        default=0.1, description="greatest number of # and ... per word of prose (Gopher)"
    )
    min_alpha_words: float = Field(
        default=0.6, description="least fraction of words with a letter in prose (Gopher has 0.8)"
    )
    min_stop_words: int = Field(
        default=2, description="least number of different stop words in prose"
    )
    max_bullet_lines: float = Field(
        default=0.9, description="greatest fraction of bullet lines in prose"
    )
    max_ellipsis_lines: float = Field(
        default=0.3, description="greatest fraction of lines ending in ..."
    )
    max_duplicate_lines: float = Field(
        default=0.3,
        description="greatest fraction of characters in lines that stood before (Gopher: 0.2)",
    )
    max_top_4gram: float = Field(
        default=0.2,
        description="greatest fraction of words in the most frequent 4-gram (Gopher: 0.16)",
    )
    max_duplicate_5grams: float = Field(
        default=0.4, description="greatest fraction of 5-grams that stood before (Gopher: 0.15)"
    )
    min_compression: float = Field(
        default=0.12, description="texts that zlib shrinks below this fraction are repetitive"
    )
    max_compression: float = Field(
        default=0.7,
        description="texts of 1000 bytes or more that it cannot shrink below this are noise",
    )
    max_line_chars: int = Field(
        default=400, description="code with a longer line is minified or data"
    )
    max_mean_line_chars: float = Field(
        default=80, description="code with longer lines on average, too"
    )
    max_digit_fraction: float = Field(
        default=0.25, description="code with more of its visible characters digits is a table"
    )
    min_code_letters: float = Field(
        default=0.4,
        description="code with fewer of its visible characters letters is data or symbols",
    )
    outlier_deviations: float = Field(
        default=6.0,
        description="documents whose mean character-trigram surprise lies so many robust standard "
        "deviations above their class's median are rejected",
    )


Filter = Callable[[Document, FilterConfig], str | None]


def length(document: Document, settings: FilterConfig) -> str | None:
    """Too few or too many characters, blanks at the ends not counted."""
    visible = len(document.text.strip())
    if visible < settings.min_chars:
        return "too short"
    return "too long" if visible > settings.max_chars else None


def compression(document: Document, settings: FilterConfig) -> str | None:
    """A text that zlib shrinks very far repeats itself; one that it cannot shrink is noise."""
    data = document.text.encode()
    ratio = len(zlib.compress(data, 6)) / len(data)
    if ratio < settings.min_compression:
        return "compresses too well"
    noisy = len(data) >= 1000 and ratio > settings.max_compression
    return "compresses too badly" if noisy else None


def word_statistics(document: Document, settings: FilterConfig) -> str | None:
    """Gopher's rules about words (arXiv 2112.11446, appendix A.1): number, length, symbols."""
    words = document.text.split()
    if len(words) < settings.min_words:
        return "too few words"
    mean = sum(map(len, words)) / len(words)
    if not settings.min_word_length <= mean <= settings.max_word_length:
        return "mean word length"
    symbols = document.text.count("#") + document.text.count("...") + document.text.count("…")
    if symbols / len(words) > settings.max_symbol_ratio:
        return "symbols"
    if sum(map(bool, map(_LETTER.search, words))) / len(words) < settings.min_alpha_words:
        return "few words with letters"
    known = {w.strip(".,;:()").lower() for w in words} & STOP_WORDS
    return "no stop words" if len(known) < settings.min_stop_words else None


def line_shapes(document: Document, settings: FilterConfig) -> str | None:
    """Gopher's rules about lines (arXiv 2112.11446, appendix A.1): bullets and ellipses."""
    lines = [line.strip() for line in document.text.splitlines() if line.strip()]
    if sum(line[0] in "-*•‣" for line in lines) / len(lines) > settings.max_bullet_lines:
        return "bullet lines"
    if sum(line.endswith(("...", "…")) for line in lines) / len(lines) > (
        settings.max_ellipsis_lines
    ):
        return "ellipsis lines"
    return None


def repetition(document: Document, settings: FilterConfig) -> str | None:
    """Gopher's rules about repetition (arXiv 2112.11446, appendix A.1), of lines and n-grams."""
    lines = [line.strip() for line in document.text.splitlines() if _WORD.search(line)]
    counts = Counter(lines)
    repeated = sum((n - 1) * len(line) for line, n in counts.items())
    if repeated > settings.max_duplicate_lines * sum(map(len, lines)):
        return "duplicate lines"
    words = _WORD.findall(document.text.lower())
    if len(words) < 50:  # in a short text a phrase said twice is already a large fraction
        return None
    four = Counter(zip(*(words[i:] for i in range(4)), strict=False))
    if 4 * max(four.values()) > settings.max_top_4gram * len(words) and max(four.values()) > 2:
        return "repeated 4-gram"
    five = Counter(zip(*(words[i:] for i in range(5)), strict=False))
    if sum(n - 1 for n in five.values()) > settings.max_duplicate_5grams * five.total():
        return "duplicate 5-grams"
    return None


def parses(document: Document, settings: FilterConfig) -> str | None:
    """Python that is none; other documents pass."""
    if document.meta.get("format") != "python":
        return None
    try:
        ast.parse(document.text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "does not parse"
    return None


def handwritten(document: Document, settings: FilterConfig) -> str | None:
    """Code that a program wrote, or that is minified, data or symbols."""
    lines = document.text.splitlines()
    whole_file = document.meta.get("kind") in ("module", "file")
    if whole_file and any(_GENERATED.search(line) for line in lines[:10] if _COMMENT.match(line)):
        return "generated"
    longest, mean = max(map(len, lines)), sum(map(len, lines)) / len(lines)
    if longest > settings.max_line_chars or mean > settings.max_mean_line_chars:
        return "long lines"
    data = np.frombuffer(document.text.encode(), np.uint8)
    visible = data[data > ord(" ")]
    if np.mean((visible >= ord("0")) & (visible <= ord("9"))) > settings.max_digit_fraction:
        return "mostly digits"
    lower = visible | 0x20
    letters = ((lower >= ord("a")) & (lower <= ord("z"))) | (visible >= 0x80)
    return "few letters" if np.mean(letters) < settings.min_code_letters else None


class TrigramModel:
    """How usual a text's byte trigrams are among all texts of its class.

    Trigrams are hashed to 2^16 counters. `surprise` is the mean −log2 probability of a text's
    trigrams, in bits, each occurrence not counting for itself.
    """

    BUCKETS = 1 << 16

    def __init__(self) -> None:
        self._counts = np.zeros(self.BUCKETS, np.int64)
        self._waiting: list[NDArray[np.int64]] = []
        self._bits: NDArray[np.float64] | None = None

    def add(self, text: str) -> None:
        """Counts the character trigrams of a text."""
        self._waiting.append(self._buckets(text))
        self._bits = None
        if len(self._waiting) >= 1000:
            self._count()

    @property
    def counts(self) -> NDArray[np.int64]:
        """How often each hashed trigram was added."""
        self._count()
        return self._counts

    def add_counts(self, counts: NDArray[np.int64]) -> None:
        """Adds what another model counted."""
        self._counts = self._counts + counts
        self._bits = None

    def surprise(self, text: str) -> float:
        """For a text that has been added."""
        if self._bits is None:
            self._count()
            others = np.maximum(self._counts - 1, 0.5)
            self._bits = np.log2(max(self._counts.sum(), 1)) - np.log2(others)
        buckets = self._buckets(text)
        return float(self._bits[buckets].mean()) if len(buckets) else 0.0

    def _count(self) -> None:
        if self._waiting:
            self._counts += np.bincount(np.concatenate(self._waiting), minlength=self.BUCKETS)
            self._waiting.clear()

    def _buckets(self, text: str) -> NDArray[np.int64]:
        data = np.frombuffer(text.encode(), np.uint8).astype(np.uint64)
        key = data[:-2] << np.uint64(16) | data[1:-1] << np.uint64(8) | data[2:]
        mixed = key * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(48)
        return mixed.astype(np.int64)


def outlier_limit(surprises: Sequence[float] | NDArray[np.floating], deviations: float) -> float:
    """The value that lies `deviations` robust standard deviations (1.4826 MAD) above the median.

    Infinite among fewer than 50: what is usual cannot be told from so few.
    """
    values = np.asarray(surprises, np.float64)
    if len(values) < 50:
        return float("inf")
    middle = np.median(values)
    spread = 1.4826 * np.median(np.abs(values - middle))
    return float(middle + deviations * max(float(spread), 1e-9))
