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

_EXCERPT = 2000  # characters of a long text that the ledger shows


class DecontaminationConfig(Config):
    """The rule's settings; the report publishes the two sizes and none of the others."""

    long_ngram: int = Field(13, gt=0, description="words; one shared n-gram is contamination")
    short_ngram: int = Field(7, gt=0, description="words; the shared fraction of these counts")
    contaminated_ratio: float = Field(
        0.5,
        gt=0,
        description="shared fraction of short n-grams from which a text is contaminated: half of "
        "the shorter one's wording. Never published",
    )
    partial_ratio: float = Field(
        0.2, gt=0, description="fraction from which it is noted as partial. Never published"
    )
    common_documents: int = Field(
        10,
        gt=0,
        description="n-grams found in at least so many different training texts are allowed, as "
        "idioms or as the wording of a template. Never published",
    )


@dataclass(frozen=True)
class Contamination:
    """What was found: by which rule, in which item, and the words that both texts hold."""

    verdict: Literal["contaminated", "partial"]
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

    def __init__(self, items: list[Hashes], n: int) -> None:
        self.n = n
        grams = [np.unique(ngrams(h, n)) for h in items]
        owners = np.repeat(np.arange(len(grams)), [len(g) for g in grams])
        flat = np.concatenate([np.zeros(0, np.uint64), *grams])
        order = np.argsort(flat, kind="stable")
        self.grams, starts = np.unique(flat[order], return_index=True)
        self.starts = np.append(starts, len(flat))
        self.owners = owners[order]
        self.found = np.zeros(len(self.grams), np.int64)
        self.allowed = np.zeros(len(self.grams), np.bool_)
        self.sizes = np.bincount(owners, minlength=len(items))  # per item, allowed ones left out

    def positions(self, hashes: Hashes) -> NDArray[np.int64]:
        """For each n-gram of a text its place in the index, or -1."""
        grams = ngrams(hashes, self.n)
        if not len(self.grams):
            return np.full(len(grams), -1)
        at = np.minimum(np.searchsorted(self.grams, grams), len(self.grams) - 1)
        return np.where(self.grams[at] == grams, at, -1)

    def count(self, hashes: Hashes) -> None:
        at = np.unique(self.positions(hashes))
        self.found[at[at >= 0]] += 1

    def allow(self, documents: int) -> int:
        self.allowed = self.found >= documents
        kept = np.repeat(~self.allowed, np.diff(self.starts))
        self.sizes = np.bincount(self.owners[kept], minlength=len(self.sizes))
        return int(self.allowed.sum())


class Decontaminator:
    """Compares texts with evaluation items; see the head of this file for the rule.

    Memory goes with the items, not with the texts: tens of bytes per word of theirs.
    """

    def __init__(
        self, items: Iterable[tuple[str, str]], settings: DecontaminationConfig | None = None
    ) -> None:
        self.settings = settings or DecontaminationConfig()
        self.items = list(items)
        self._hasher = WordHasher()
        hashes = [self._hasher.hashes(text) for _, text in self.items]
        self._long = _Index(hashes, self.settings.long_ngram)
        self._short = _Index(hashes, self.settings.short_ngram)
        self._whole: dict[bytes, int] = {}
        for i, h in enumerate(hashes):
            if len(h):
                self._whole.setdefault(h.tobytes(), i)

    def allow_common(self, texts: Iterable[str]) -> dict[str, int]:
        """Learns the allow-list from the training texts; equal texts count once.

        To be called once, with all texts, before `check`. Returns how many n-grams of the items
        are now allowed, by their size.
        """
        seen: set[bytes] = set()
        for text in texts:
            hashes = self._hasher.hashes(text)
            key = hashlib.blake2b(hashes.tobytes(), digest_size=12).digest()
            if key not in seen:
                seen.add(key)
                self._long.count(hashes)
                self._short.count(hashes)
        least = self.settings.common_documents
        return {f"{i.n}-grams": i.allow(least) for i in (self._long, self._short)}

    def check(self, text: str) -> Contamination | None:
        """The contamination of a text, or None when it is clean."""
        hashes = self._hasher.hashes(text)
        if (same := self._whole.get(hashes.tobytes())) is not None:
            return self._found("contaminated", "same words", 1.0, same, text, 0, len(hashes))
        at = self._long.positions(hashes)
        hits = np.flatnonzero((at >= 0) & ~self._long.allowed[at]) if len(self._long.grams) else at
        if len(hits):
            item = int(self._long.owners[self._long.starts[at[hits[0]]]])
            n = self._long.n
            return self._found("contaminated", f"{n}-gram", 1.0, item, text, int(hits[0]), n)
        return self._ratio(text, hashes)

    def _ratio(self, text: str, hashes: Hashes) -> Contamination | None:
        index = self._short
        where = index.positions(hashes)
        at, first = np.unique(where, return_index=True)
        at, first = at[at >= 0], first[at >= 0]
        counted = at[~index.allowed[at]]
        if not len(counted):
            return None
        distinct = len(np.unique(ngrams(hashes, index.n))) - (len(at) - len(counted))
        owners = np.concatenate([index.owners[index.starts[a] : index.starts[a + 1]] for a in counted])
        shared = np.bincount(owners, minlength=len(self.items))
        ratios = shared / np.maximum(np.minimum(index.sizes, distinct), 1)
        item = int(np.argmax(ratios))
        ratio = round(float(ratios[item]), 4)
        if ratio < self.settings.partial_ratio:
            return None
        contaminated = ratio >= self.settings.contaminated_ratio
        begins = [
            int(f)
            for a, f in zip(at, first, strict=True)
            if not index.allowed[a] and item in index.owners[index.starts[a] : index.starts[a + 1]]
        ]
        return self._found(
            "contaminated" if contaminated else "partial",
            f"{index.n}-gram ratio", ratio, item, text, min(begins), index.n,
        )  # fmt: skip

    def _found(
        self,
        verdict: Literal["contaminated", "partial"],
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
