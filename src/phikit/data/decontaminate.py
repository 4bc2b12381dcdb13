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

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from phikit.data.ngrams import (
    Hashes,
    Words,
    hash_words,
    ngrams,
    ngrams_of_sums,
    running_sums,
    text_keys,
    words,
)
from phikit.records import Sample
from phikit.stage import Config

Verdict = Literal["contaminated", "partial"]
_EXCERPT = 2000  # characters of a long text that the ledger shows
_AT_ONCE = 1 << 18  # characters hashed at once: their arrays stay in the cores' caches
_BITS = 26  # of an n-gram's integer that the first look takes: a table of 8 MiB


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
        self.table = np.zeros(1 << (_BITS - 3), np.uint8)
        top = self.grams >> np.uint64(64 - _BITS)
        np.bitwise_or.at(self.table, top >> np.uint64(3), _bit(top))
        self.settle()

    def possible(self, grams: Hashes) -> NDArray[np.int64]:
        """Where n-grams are that may be in the index: all that are, and few that are not.

        One look into a table that stays in the cache, where a search would take some twenty looks
        into memory.
        """
        top = grams >> np.uint64(64 - _BITS)
        return np.flatnonzero(self.table[top >> np.uint64(3)] & _bit(top))

    def positions(self, hashes: Hashes) -> NDArray[np.int64]:
        """For each n-gram of a text its place in the index, or -1."""
        grams = ngrams(hashes, self.n)
        result = np.full(len(grams), -1)
        at = self.possible(grams)
        result[at] = self._places(grams[at])
        return result

    def shared(self, found: Words, running: Hashes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Every n-gram of several texts that is in the index: (number of the text, its place).

        N-grams that reach from one text into the next are looked up like all others, and left out
        when they are found: they are few.
        """
        grams = ngrams_of_sums(running, self.n)
        at = self.possible(grams)
        places = self._places(grams[at])
        at, places = at[places >= 0], places[places >= 0]
        texts = np.searchsorted(found.bounds, at, side="right") - 1
        inside = at + self.n <= found.bounds[texts + 1]
        return texts[inside], places[inside]

    def _places(self, grams: Hashes) -> NDArray[np.int64]:
        if not len(self.grams):
            return np.full(len(grams), -1)
        at = np.minimum(np.searchsorted(self.grams, grams), len(self.grams) - 1)
        return np.where(self.grams[at] == grams, at, -1)

    def counting(self, at: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these positions are in the index and not on the allow-list."""
        if not len(self.allowed):
            return np.zeros(len(at), np.bool_)
        return (at >= 0) & ~self.allowed[at]

    def count(self, texts: NDArray[np.int64], places: NDArray[np.int64]) -> None:
        """Notes that texts have the n-grams at these places, each once."""
        if len(places):
            once = np.unique(texts * len(self.grams) + places) % len(self.grams)
            np.add.at(self.found, once, 1)

    def settle(self) -> None:
        """Draws up the allow-list, and the number of other n-grams of each item."""
        holders = np.diff(self.starts)
        frequent = self.found >= self.settings.common_documents
        count = int(self.owners.max()) + 1 if len(self.owners) else 0
        # an item of which nothing would be left keeps its n-grams, or its copies would not be found
        wording = np.repeat(holders >= self.settings.common_items, holders)
        left = np.bincount(self.owners[~wording], minlength=count)
        needed = np.zeros(len(self.grams), np.bool_)
        places = np.repeat(np.arange(len(self.grams)), holders)
        needed[places[left[self.owners] == 0]] = True
        self.allowed = frequent | ((holders >= self.settings.common_items) & ~needed)
        kept = np.repeat(~self.allowed, holders)
        self.sizes = np.bincount(self.owners[kept], minlength=count)

    def holders(self, position: int) -> NDArray[np.int64]:
        """The items with this n-gram, in order."""
        return self.owners[self.starts[position] : self.starts[position + 1]]


def _bit(top: Hashes) -> NDArray[np.uint8]:
    """The bit of its byte in the table that stands for an n-gram."""
    return np.left_shift(np.uint8(1), (top & np.uint64(7)).astype(np.uint8))


@dataclass(frozen=True)
class Sharing:
    """What some texts share with evaluation items.

    Attributes:
        numbers: which of the texts share anything.
        keys: of each of these, an integer for all its words.
        long_texts, short_texts: for each long or short n-gram that was found, whose it is, as a
            place in `numbers`.
        long_places, short_places: and which one it is.
    """

    numbers: NDArray[np.int64]
    keys: Hashes
    long_texts: NDArray[np.int64]
    short_texts: NDArray[np.int64]
    long_places: NDArray[np.int64]
    short_places: NDArray[np.int64]

    @classmethod
    def join(cls, parts: Sequence[Sharing], begins: Sequence[int] | None = None) -> Sharing:
        """All parts as one; with `begins`, numbers in part p begin at begins[p]."""
        before = np.cumsum([0, *(len(p.numbers) for p in parts)])
        empty = np.zeros(0, np.int64)
        moved = [
            (p.numbers + (begins[i] if begins else 0), p.keys, p.long_texts + before[i],
             p.short_texts + before[i], p.long_places, p.short_places)
            for i, p in enumerate(parts)
        ]  # fmt: skip
        if not moved:
            return cls(empty, empty.astype(np.uint64), empty, empty, empty, empty)
        return cls(*(np.concatenate(column) for column in zip(*moved, strict=True)))


class Decontaminator:
    """Compares texts with evaluation items; see the head of this file for the rule.

    First `count` every training text, then `settle` the allow-list, then `check` them. Memory goes
    with the items (tens of bytes per word); texts that share something take some 60 bytes each.
    """

    def __init__(
        self, items: Iterable[tuple[str, str]], settings: DecontaminationConfig | None = None
    ) -> None:
        self.settings = settings or DecontaminationConfig()
        self.items: list[tuple[str, str]] = []
        self._whole: dict[int, int] = {}
        self._seen: set[int] = set()
        hashes: list[Hashes] = []
        for name, text in items:  # items with the same words count as one
            found = hash_words([text])
            key = int(text_keys(found)[0])
            if len(found.hashes) and key not in self._whole:
                self._whole[key] = len(hashes)
                self.items.append((name, text))
                hashes.append(found.hashes)
        self._keys = np.array(sorted(self._whole), np.uint64)
        self._long = _Index(hashes, self.settings, self.settings.long_ngram)
        self._short = _Index(hashes, self.settings, self.settings.short_ngram)

    def count(self, texts: Sequence[str]) -> list[int]:
        """Counts training texts for the allow-list; texts with equal words count once.

        Returns which of them share anything with any item; there is no need to `check` the others.
        """
        sharing = self.sharing(texts)
        self.count_shared(sharing)
        return sharing.numbers.tolist()

    def sharing(self, texts: Sequence[str]) -> Sharing:
        """Which texts share anything with any item, and what; counts nothing.

        Texts in many places (shards, machines) are compared by this, and the findings of all of
        them are then counted in one place by `count_shared`.
        """
        parts = [self._sharing(*batch) for batch in _batches(texts)]
        return Sharing.join(parts)

    def _sharing(self, first: int, texts: Sequence[str]) -> Sharing:
        found = hash_words(texts)
        running = running_sums(found.hashes)
        keys = text_keys(found, running)
        sharing = self._same(keys)
        shared = self._shared(found, running)
        for holders, _ in shared:
            sharing[holders] = True
        numbers = np.flatnonzero(sharing)
        return Sharing(
            numbers + first,
            keys[numbers],
            *(np.searchsorted(numbers, holders) for holders, _ in shared),
            *(places for _, places in shared),
        )

    def _shared(
        self, found: Words, running: Hashes
    ) -> tuple[tuple[NDArray[np.int64], NDArray[np.int64]], ...]:
        """The long and the short n-grams that texts share with items.

        What shares a long one shares the short ones in it: only such texts are looked at twice.
        """
        short = self._short.shared(found, running)
        if self._short.n > self._long.n:
            return self._long.shared(found, running), short
        holders = np.unique(short[0])
        some = found.pick(holders)
        texts, places = self._long.shared(some, running_sums(some.hashes))
        return (holders[texts], places), short

    def count_shared(self, sharing: Sharing) -> None:
        """Counts what `sharing` found, for the allow-list; texts with equal words count once."""
        new = np.zeros(len(sharing.numbers), np.bool_)
        for at, key in enumerate(sharing.keys.tolist()):
            new[at] = key not in self._seen
            self._seen.add(key)
        for index, texts, places in (
            (self._long, sharing.long_texts, sharing.long_places),
            (self._short, sharing.short_texts, sharing.short_places),
        ):
            index.count(texts[new[texts]], places[new[texts]])

    @property
    def counts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """In how many texts the items' long and short n-grams were found, to be kept on a disk."""
        return self._long.found, self._short.found

    def settle_with(self, long: NDArray[np.int64], short: NDArray[np.int64]) -> None:
        """Settles the allow-list by counts that were kept."""
        self._long.found, self._short.found = long, short
        self.settle()

    def _same(self, keys: Hashes) -> NDArray[np.bool_]:
        """Which texts have the very same words as an item."""
        if not len(self._keys):
            return np.zeros(len(keys), np.bool_)
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return self._keys[at] == keys

    def settle(self) -> dict[str, int]:
        """Fixes the allow-list; returns how many of the items' n-grams are on it, by size."""
        for index in (self._long, self._short):
            index.settle()
        return {f"{i.n}-grams": int(i.allowed.sum()) for i in (self._long, self._short)}

    def check_all(self, texts: Sequence[str]) -> dict[int, Contamination]:
        """The contamination of each of these texts that is not clean, by its number."""
        result: dict[int, Contamination] = {}
        for first, batch in _batches(texts):
            found = hash_words(batch)
            running = running_sums(found.hashes)
            suspect = self._same(text_keys(found, running))
            shared = self._shared(found, running)
            for index, (holders, places) in zip((self._long, self._short), shared, strict=True):
                suspect[holders[index.counting(places)]] = True
            for number in np.flatnonzero(suspect).tolist():
                if (contamination := self.check(batch[number])) is not None:
                    result[first + number] = contamination
        return result

    def check(self, text: str) -> Contamination | None:
        """The contamination of a text, or None when it is clean."""
        found = hash_words([text])
        hashes = found.hashes
        if len(hashes) and (same := self._whole.get(int(text_keys(found)[0]))) is not None:
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


def _batches(texts: Sequence[str]) -> Iterator[tuple[int, Sequence[str]]]:
    """Stretches of texts, each with the number of its first."""
    begin = size = 0
    for number, text in enumerate(texts):
        size += len(text)
        if size >= _AT_ONCE:
            yield begin, texts[begin : number + 1]
            begin, size = number + 1, 0
    if begin < len(texts):
        yield begin, texts[begin:]


def item_text(sample: Sample) -> str:
    """What of an evaluation item must not be trained on: its question."""
    return "\n".join(m["content"] for m in sample.prompt) or sample.text


def sample_text(sample: Sample) -> str:
    """What of a training sample is compared: all that is trained on or conditioned on."""
    return "\n".join(m["content"] for m in sample.messages) or sample.text
