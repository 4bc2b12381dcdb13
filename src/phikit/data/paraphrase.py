"""Training texts that ask an evaluation item's question in other words.

No n-gram tells a paraphrase. A text is cut into passages of about the length of a question, and
what a passage means is compared with what every item means: the step is for what synthesis and
people write (samples, problems, answers), and costs a run of the encoder for each passage.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np

from phikit.data.decontaminate import Contamination
from phikit.data.vectors import Encodes, nearest

_SENTENCE = re.compile(r"\S.*?(?:[.!?](?=\s)|\n|$)", re.DOTALL)
_WORDS = 60  # of a passage, unless a sentence alone has more
_LEAST_WORDS = 6  # of a sentence that is a passage of its own
_MOST_WORDS = 120  # of a sentence
_LETTERS = 0.85  # of the visible characters of prose


class Paraphrases:
    """Evaluation items by their meaning.

    Args:
        items: (name, text) of each.
        threshold: cosine from which a passage says the same as an item.
    """

    def __init__(
        self, items: Iterable[tuple[str, str]], encoder: Encodes, threshold: float
    ) -> None:
        self.items = list(items)
        self._encoder, self._threshold = encoder, threshold
        # an item is itself a whole and its sentences: what is asked may stand in one of them
        parts = [
            (number, part)
            for number, (_, text) in enumerate(self.items)
            for part in dict.fromkeys([text, *filter(_is_prose, passages_of(text))])
        ]
        self._owners = [number for number, _ in parts]
        self._vectors = encoder.vectors([part for _, part in parts])

    def check_all(self, texts: Sequence[str]) -> dict[int, Contamination]:
        """The paraphrase in each of these texts that has one, by the text's number."""
        passages = [(n, passage) for n, text in enumerate(texts) for passage in passages_of(text)]
        vectors = self._encoder.vectors([passage for _, passage in passages])
        best: dict[int, tuple[float, int, int]] = {}
        for place, part, cosine in nearest(vectors, self._vectors):
            number = passages[place][0]
            if cosine >= self._threshold and cosine > best.get(number, (0.0, 0, 0))[0]:
                best[number] = cosine, self._owners[part], place
        return {
            number: Contamination(
                verdict="contaminated",
                rule="paraphrase",
                ratio=cosine,
                item=self.items[item][0],
                item_text=self.items[item][1],
                text=passages[place][1],
                shared="",
            )
            for number, (cosine, item, place) in best.items()
        }


def _is_prose(passage: str) -> bool:
    """Whether nearly all of a passage's visible characters are letters: no code, no figures."""
    visible = [c for c in passage if not c.isspace()]
    return sum(c.isalpha() for c in visible) >= _LETTERS * len(visible)


def passages_of(text: str) -> list[str]:
    """Sentences (or lines) alone, then runs of them of about 60 words.

    A question may be one sentence among others that say something else, or several. Each run begins
    in the middle of the one before.
    """
    sentences = list(_sentences(text))
    sizes = np.array([len(s.split()) for s in sentences])
    runs: list[tuple[int, int]] = []
    begin = end = 0
    while end < len(sentences):
        end = begin + max(1, int(np.searchsorted(np.cumsum(sizes[begin:]), _WORDS, side="right")))
        runs.append((begin, end))
        begin = end if end - begin == 1 else begin + (end - begin + 1) // 2
    alone = [(n, n + 1) for n in np.flatnonzero(sizes >= _LEAST_WORDS).tolist()]
    return [" ".join(sentences[a:b]) for a, b in dict.fromkeys([*alone, *runs])]


def _sentences(text: str) -> Iterator[str]:
    for found in _SENTENCE.finditer(text):
        words = iter(found[0].split())
        while part := list(islice(words, _MOST_WORDS)):
            yield " ".join(part)
