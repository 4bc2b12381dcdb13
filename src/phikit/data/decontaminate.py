"""Training texts that hold evaluation items: the technical report's appendix B.

The report's rule, over normalised words: a text that shares any 13-gram with an evaluation item is
contaminated, unless the 13-gram is on an allow-list of common ones. Otherwise, for each item,
ratio = shared 7-grams / min(7-grams of the text, 7-grams of the item); the largest ratio makes the
text contaminated, partially contaminated (kept, but noted), or clean.

Three things the report leaves open are settled here. The two thresholds and the commonness of
allowed n-grams, never published, are settings. The allow-list holds for 7-grams as well: texts
that a program writes from templates share those of the template with every item of its kind, and
they say nothing about whether *this* item was seen. And an item with the very same words as a
text is contamination however short or common it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from phikit.data.ngrams import Hashes, WordHasher, ngrams, words
from phikit.records import Sample
from phikit.stage import Config

Verdict = Literal["contaminated", "partial"]
_EXCERPT = 2000  # characters of a long text that the ledger shows


class DecontaminationConfig(Config):
    """The rule's settings; the report publishes the two sizes and none of the others."""

    long_ngram: int = Field(
        default=13, gt=0, description="words; one shared n-gram is contamination"
    )
    short_ngram: int = Field(
        default=7, gt=0, description="words; the shared fraction of these counts"
    )
    contaminated_ratio: float = Field(
        default=0.5,
        gt=0,
        description="shared fraction of short n-grams from which a text is contaminated: half of "
        "the shorter one's wording. Never published",
    )
    partial_ratio: float = Field(
        default=0.2, gt=0, description="fraction from which it is noted as partial. Never published"
    )
    common_documents: int = Field(
        default=10,
        gt=0,
        description="n-grams found in at least so many different training texts are allowed, as "
        "idioms or as the wording of a template. Never published",
    )
    common_items: int = Field(
        default=3,
        gt=1,
        description="n-grams found in at least so many different items are allowed, too: they are "
        "the wording of the benchmark and tell no item from another. Never published",
    )


@dataclass(frozen=True)
class Contamination:
    """What was found: by which rule, in which item, and the words that both texts hold."""

    verdict: Verdict
    rule: str
    ratio: float
    item: str
    item_text: str
    text: str
    shared: str

    def row(self, document: str) -> dict[str, Any]:
        """A line of the ledger."""
        return {"document": document, **asdict(self)}


class _Index:
    """Which items hold an n-gram, and in how many different training texts it was found."""

    def __init__(self, items: list[Hashes], settings: DecontaminationConfig, n: int) -> None:
        self.n, self.settings = n, settings
        grams = [np.unique(ngrams(h, n)) for h in items]
        owners = np.repeat(np.arange(len(grams)), [len(g) for g in grams])
        flat = np.concatenate([np.zeros(0, np.uint64), *grams])
        order = np.argsort(flat, kind="stable")
        self.grams, starts = np.unique(flat[order], return_index=True)
        self.starts = np.append(starts, len(flat))
        self.owners = owners[order]
        self.found = np.zeros(len(self.grams), np.int64)
        self.settle()

    def positions(self, hashes: Hashes) -> NDArray[np.int64]:
        """For each n-gram of a text its place in the index, or -1."""
        grams = ngrams(hashes, self.n)
        if not len(self.grams):
            return np.full(len(grams), -1)
        at = np.minimum(np.searchsorted(self.grams, grams), len(self.grams) - 1)
        return np.where(self.grams[at] == grams, at, -1)

    def counting(self, at: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these positions are in the index and not on the allow-list."""
        return np.append(~self.allowed, False)[at]

    def count(self, at: NDArray[np.int64]) -> None:
        """Notes a training text with n-grams at these positions."""
        at = np.unique(at)
        self.found[at[at >= 0]] += 1

    def settle(self) -> None:
        """Draws up the allow-list, and the number of other n-grams of each item."""
        holders = np.diff(self.starts)
        self.allowed = (self.found >= self.settings.common_documents) | (
            holders >= self.settings.common_items
        )
        kept = np.repeat(~self.allowed, holders)
        count = int(self.owners.max()) + 1 if len(self.owners) else 0
        self.sizes = np.bincount(self.owners[kept], minlength=count)

    def holders(self, position: int) -> NDArray[np.int64]:
        """The items with this n-gram, in order."""
        return self.owners[self.starts[position] : self.starts[position + 1]]


class Decontaminator:
    """Compares texts with evaluation items; see the head of this file for the rule.

    First `count` every training text, then `settle` the allow-list, then `check` them. Memory goes
    with the items (tens of bytes per word) and 12 bytes per text counted.
    """

    def __init__(
        self, items: Iterable[tuple[str, str]], settings: DecontaminationConfig | None = None
    ) -> None:
        self.settings = settings or DecontaminationConfig()
        self.items: list[tuple[str, str]] = []
        self._hasher = WordHasher()
        self._whole: dict[bytes, int] = {}
        self._seen: set[bytes] = set()
        hashes: list[Hashes] = []
        for name, text in items:  # items with the same words count as one
            words_of = self._hasher.hashes(text)
            if len(words_of) and words_of.tobytes() not in self._whole:
                self._whole[words_of.tobytes()] = len(hashes)
                self.items.append((name, text))
                hashes.append(words_of)
        self._long = _Index(hashes, self.settings, self.settings.long_ngram)
        self._short = _Index(hashes, self.settings, self.settings.short_ngram)

    def count(self, text: str) -> bool:
        """Counts a training text for the allow-list; texts with equal words count once.

        Returns whether it shares anything with any item; if not, there is no need to `check` it.
        """
        hashes = self._hasher.hashes(text)
        long, short = self._long.positions(hashes), self._short.positions(hashes)
        key = hashlib.blake2b(hashes.tobytes(), digest_size=12).digest()
        if key not in self._seen:
            self._seen.add(key)
            self._long.count(long)
            self._short.count(short)
        return bool((long >= 0).any() or (short >= 0).any() or hashes.tobytes() in self._whole)

    def settle(self) -> dict[str, int]:
        """Fixes the allow-list; returns how many of the items' n-grams are on it, by size."""
        for index in (self._long, self._short):
            index.settle()
        return {f"{i.n}-grams": int(i.allowed.sum()) for i in (self._long, self._short)}

    def check(self, text: str) -> Contamination | None:
        """The contamination of a text, or None when it is clean."""
        hashes = self._hasher.hashes(text)
        if (same := self._whole.get(hashes.tobytes())) is not None:
            return self._found("contaminated", "same words", 1.0, same, text, 0, len(hashes))
        at = self._long.positions(hashes)
        hits = np.flatnonzero(self._long.counting(at))
        if len(hits):
            item, n = int(self._long.holders(at[hits[0]])[0]), self._long.n
            return self._found("contaminated", f"{n}-gram", 1.0, item, text, int(hits[0]), n)
        return self._by_ratio(text, hashes)

    def _by_ratio(self, text: str, hashes: Hashes) -> Contamination | None:
        index = self._short
        places = index.positions(hashes)
        at, begins = np.unique(places, return_index=True)
        counting = index.counting(at)
        if not counting.any():
            return None
        allowed = int(np.sum(~counting & (at >= 0)))
        distinct = len(np.unique(ngrams(hashes, index.n))) - allowed
        holders = [index.holders(a) for a in at[counting]]
        shared = np.bincount(np.concatenate(holders), minlength=len(index.sizes))
        ratios = shared / np.maximum(np.minimum(index.sizes, distinct), 1)
        item = int(np.argmax(ratios))
        ratio = round(float(ratios[item]), 4)
        if ratio < self.settings.partial_ratio:
            return None
        bad = ratio >= self.settings.contaminated_ratio
        begin = min(
            int(b) for b, owners in zip(begins[counting], holders, strict=True) if item in owners
        )
        verdict: Verdict = "contaminated" if bad else "partial"
        return self._found(verdict, f"{index.n}-gram ratio", ratio, item, text, begin, index.n)

    def _found(
        self,
        verdict: Verdict,
        rule: str,
        ratio: float,
        item: int,
        text: str,
        begin: int,
        size: int,
    ) -> Contamination:
        """Names the shared words; of a long text, shows the part around about where they are."""
        found = words(text)
        centre = int(len(text) * (begin + size / 2) / max(len(found), 1))
        start = max(0, min(centre - _EXCERPT // 2, len(text) - _EXCERPT))
        name, item_text = self.items[item]
        return Contamination(
            verdict=verdict,
            rule=rule,
            ratio=ratio,
            item=name,
            item_text=item_text,
            text=text[start : start + _EXCERPT],
            shared=" ".join(found[begin : begin + min(size, 50)]),
        )


def item_text(sample: Sample) -> str:
    """What of an evaluation item must not be trained on: its question."""
    return "\n".join(m["content"] for m in sample.prompt) or sample.text


def sample_text(sample: Sample) -> str:
    """What of a training sample is compared: all that is trained on or conditioned on."""
    return "\n".join(m["content"] for m in sample.messages) or sample.text
