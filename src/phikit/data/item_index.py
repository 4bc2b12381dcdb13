"""The word n-grams of evaluation items: which item has which, and which tell nothing of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from phikit.data.ngram_work import Wanted
from phikit.data.ngrams import Words, find_ngrams, text_ngrams
from phikit.stage import Config


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

    @model_validator(mode="after")
    def _partial_is_less(self) -> DecontaminationConfig:
        if self.partial_ratio > self.contaminated_ratio:
            raise ValueError(
                f"partial_ratio {self.partial_ratio} is above contaminated_ratio "
                f"{self.contaminated_ratio}"
            )
        return self


class ItemIndex:
    """Which items hold an n-gram, and in how many different training texts it was found."""

    def __init__(self, items: Words, settings: DecontaminationConfig, n: int) -> None:
        self.n, self.settings = n, settings
        grams = text_ngrams(items, n)
        owners = np.repeat(np.arange(len(items)), np.diff(grams.bounds))
        # an n-gram counts once for an item
        flat, self.owners = _each_once(grams.hashes, owners)
        self.grams, starts = np.unique(flat, return_index=True)
        self.starts = np.append(starts, len(flat))
        self.found = np.zeros(len(self.grams), np.int64)
        self._wanted = Wanted(self.grams)
        self._wording = self._common_to_items()
        kept = np.repeat(~self._wording, np.diff(self.starts))
        self._sizes = np.bincount(self.owners[kept], minlength=len(items))
        self.settle()

    def _common_to_items(self) -> NDArray[np.bool_]:
        """Which n-grams are the wording of the benchmark."""
        holders = np.diff(self.starts)
        common = holders >= self.settings.common_items
        # an item of which nothing would be left keeps its n-grams, or its copies would not be found
        spread = np.repeat(common, holders)
        left = np.bincount(self.owners[~spread], minlength=int(self.owners.max(initial=-1)) + 1)
        places = np.repeat(np.arange(len(self.grams)), holders)
        common[places[left[self.owners] == 0]] = False
        return common

    def positions(self, text: Words) -> NDArray[np.int64]:
        """For each n-gram of one text its place in the index, or -1."""
        result = np.full(max(len(text.hashes) - self.n + 1, 0), -1)
        at, places = find_ngrams(text, self.n, self._wanted)
        result[at] = places
        return result

    def shared(self, texts: Words) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Every n-gram of several texts that is in the index: (number of the text, its place)."""
        at, places = find_ngrams(texts, self.n, self._wanted)
        return np.searchsorted(texts.bounds, at, side="right") - 1, places

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
        frequent = (self.found >= self.settings.common_documents) & ~self._wording
        self.allowed = self._wording | frequent
        lost = [self.holders(place) for place in np.flatnonzero(frequent).tolist()]
        owners = np.concatenate([np.zeros(0, np.int64), *lost])
        self.sizes = self._sizes - np.bincount(owners, minlength=len(self._sizes))

    def holders(self, position: int) -> NDArray[np.int64]:
        """The items with this n-gram, in order."""
        return self.owners[self.starts[position] : self.starts[position + 1]]

    def ratios(
        self, found: Words, texts: NDArray[np.int64], places: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Of texts and items that share n-grams: shared / min(those of the text, of the item).

        n-grams on the allow-list count in none of the three.

        Args:
            found: the words of all texts.
            texts, places: their n-grams in the index, as `shared` gives them.

        Returns:
            The numbers of the text and of the item, in ascending order, and the ratio.
        """
        texts, places = _each_once(texts, places)
        counting = self.counting(places)
        allowed = np.bincount(texts[~counting], minlength=len(found))
        texts, places = texts[counting], places[counting]
        begins, sizes = self.starts[places], self.starts[places + 1] - self.starts[places]
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        owners = self.owners[np.repeat(begins, sizes) + within]
        pairs = np.repeat(texts, sizes) * len(self.sizes) + owners
        pairs, shared = np.unique(pairs, return_counts=True)
        texts, items = np.divmod(pairs, len(self.sizes))
        holders, which = np.unique(texts, return_inverse=True)
        grams = text_ngrams(found.pick(holders), self.n)
        owned, _ = _each_once(np.repeat(np.arange(len(grams)), np.diff(grams.bounds)), grams.hashes)
        distinct = np.bincount(owned, minlength=len(grams)) - allowed[holders]
        return texts, items, shared / np.maximum(np.minimum(self.sizes[items], distinct[which]), 1)


def _each_once(firsts: NDArray[Any], seconds: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Every pair once, in ascending order."""
    order = np.lexsort((seconds, firsts))
    firsts, seconds = firsts[order], seconds[order]
    once = np.ones(len(firsts), np.bool_)
    once[1:] = (firsts[1:] != firsts[:-1]) | (seconds[1:] != seconds[:-1])
    return firsts[once], seconds[once]
