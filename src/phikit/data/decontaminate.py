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

from phikit.data.folding import words
from phikit.data.item_index import DecontaminationConfig, ItemIndex
from phikit.data.ngram_work import Hashes
from phikit.data.ngrams import Words, hash_words, text_keys
from phikit.records import Sample

Verdict = Literal["contaminated", "partial"]
_EXCERPT = 2000  # characters of a long text that the ledger shows
_AT_ONCE = 1 << 19  # characters hashed at once: their arrays stay in the cores' caches


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
        named = list(items)
        kept: list[Words] = []
        for first, batch in _batches([text for _, text in named]):
            found = hash_words(batch)
            new = []
            for number, key in enumerate(text_keys(found).tolist()):
                if key and key not in self._whole:  # items with the same words count as one
                    self._whole[key] = len(self.items)
                    self.items.append(named[first + number])
                    new.append(number)
            kept.append(found.pick(np.array(new, np.int64)))
        words_of_items = Words.join(kept)
        self._keys = np.array(sorted(self._whole), np.uint64)
        self._long = ItemIndex(words_of_items, self.settings, self.settings.long_ngram)
        self._short = ItemIndex(words_of_items, self.settings, self.settings.short_ngram)

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
        keys = text_keys(found)
        sharing = self._same(keys)
        shared = self._shared(found)
        for holders, _ in shared:
            sharing[holders] = True
        numbers = np.flatnonzero(sharing)
        return Sharing(
            numbers + first,
            keys[numbers],
            *(np.searchsorted(numbers, holders) for holders, _ in shared),
            *(places for _, places in shared),
        )

    def _shared(self, found: Words) -> tuple[tuple[NDArray[np.int64], NDArray[np.int64]], ...]:
        """The long and the short n-grams that texts share with items.

        What shares a long one shares the short ones in it: only such texts are looked at twice.
        """
        short = self._short.shared(found)
        if self._short.n > self._long.n:
            return self._long.shared(found), short
        holders = np.unique(short[0])
        texts, places = self._long.shared(found.pick(holders))
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

    def settle_with(self, long: NDArray[np.int64], short: NDArray[np.int64]) -> dict[str, int]:
        """Settles the allow-list by counts that were kept."""
        self._long.found, self._short.found = long, short
        return self.settle()

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
            suspect = self._same(text_keys(found))
            (holders, places), (near, near_places) = self._shared(found)
            suspect[holders[self._long.counting(places)]] = True
            near, _, ratios = self._short.ratios(found, near, near_places)
            suspect[near[_rounded(ratios) >= self.settings.partial_ratio]] = True
            for number in np.flatnonzero(suspect).tolist():
                if contamination := self._judge(batch[number], found.alone(number)):
                    result[first + number] = contamination
        return result

    def check(self, text: str) -> Contamination | None:
        """The contamination of a text, or None when it is clean."""
        return self._judge(text, hash_words([text]))

    def same_words(self, texts: Sequence[str]) -> dict[int, Contamination]:
        """What `check_all` finds of those texts that have the very same words as an item."""
        result: dict[int, Contamination] = {}
        for first, batch in _batches(texts):
            found = hash_words(batch)
            for number in np.flatnonzero(self._same(text_keys(found))).tolist():
                if contamination := self._judge(batch[number], found.alone(number)):
                    result[first + number] = contamination
        return result

    def _judge(self, text: str, found: Words) -> Contamination | None:
        """`check` of a text whose words are known."""
        size = len(found.hashes)
        if size and (same := self._whole.get(int(text_keys(found)[0]))) is not None:
            return self._found("contaminated", "same words", 1.0, same, text, 0, size)
        at = self._long.positions(found)
        hits = np.flatnonzero(self._long.counting(at))
        if len(hits):
            item, n = int(self._long.holders(at[hits[0]])[0]), self._long.n
            return self._found("contaminated", f"{n}-gram", 1.0, item, text, int(hits[0]), n)
        return self._by_ratio(text, found)

    def _by_ratio(self, text: str, found: Words) -> Contamination | None:
        index = self._short
        at = index.positions(found)
        places = at[at >= 0]
        _, items, ratios = index.ratios(found, np.zeros(len(places), np.int64), places)
        if not len(items):
            return None
        best = int(np.argmax(ratios))
        item, ratio = int(items[best]), float(_rounded(ratios[best]))
        if ratio < self.settings.partial_ratio:
            return None
        bad = ratio >= self.settings.contaminated_ratio
        counting = np.flatnonzero(index.counting(at)).tolist()
        begin = next(word for word in counting if item in index.holders(int(at[word])))
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


def _rounded(ratios: NDArray[np.float64]) -> NDArray[np.float64]:
    """As the ledger shows them, which is what the thresholds are for."""
    return np.round(ratios, 4)


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
