"""The "exact" verifier: the final answer is the gold text, up to how it is written.

Case, spaces, quotes, Markdown emphasis and trailing punctuation do not count. Where the gold answer
is a list ("A, B, C") the answer must be the same list in the same order; "A, B and C" is one, too.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence

from phikit.records import Verdict
from phikit.verify.answer import final_answer
from phikit.verify.base import Problem, register
from phikit.verify.verdicts import NO_ANSWER, shorten, verdict

_SEPARATOR = re.compile(r"\s*(?:,\s*and\b|,|;|\band\b)\s*")
_AROUND = " \t\n.,;:!?\"'`*_$"


def normalise(text: str) -> str:
    """The text without case, double spaces, and punctuation around it."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(text.split()).strip(_AROUND)


def items(text: str) -> list[str]:
    """The items of a normalised list."""
    return [item.strip(_AROUND) for item in _SEPARATOR.split(text.strip("[](){}"))]


@functools.lru_cache(maxsize=65_536)
def judge(gold: str, answer: str) -> Verdict:
    """Is the answer the expected text, or the same list?"""
    wanted, given = normalise(gold), normalise(answer)
    same = items(wanted) == items(given) if "," in wanted else wanted == given
    if same:
        return verdict("exact", True, "the answer is the expected text")
    return verdict("exact", False, f"answered {shorten(answer)}, expected {shorten(gold)}")


@register("exact")
class ExactVerifier:
    """`Problem.answer` is the expected text."""

    name = "exact"

    def verify(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        return [self._one(problem.answer, text) for problem, text in items]

    def _one(self, gold: str, text: str) -> Verdict:
        answer = final_answer(text)
        return verdict("exact", False, NO_ANSWER) if answer is None else judge(gold, answer)
