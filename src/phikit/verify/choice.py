"""The "choice" verifier: the letter of a multiple-choice question, as in simple-evals
("Answer: $LETTER"), but after the thought and the last one stated."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from phikit.records import Verdict
from phikit.verify.answer import final_answer
from phikit.verify.base import Problem, register
from phikit.verify.verdicts import NO_ANSWER, shorten, verdict

# "B", "(B)", "B.", "B) Paris", "$B$", "\text{B}"; "A dog" is no choice
_LETTER = re.compile(r"[\s$*(\[]*(?:\\text\{)?([A-Za-z])(?:\}|\b)[\s$*]*(?:$|[).:,\]])")


def letter(answer: str) -> str | None:
    """The letter at the beginning of an answer, in capitals; None when it begins with none."""
    found = _LETTER.match(answer)
    return found[1].upper() if found else None


@functools.lru_cache(maxsize=65_536)
def judge(gold: str, answer: str) -> Verdict:
    """Is the chosen letter the right one?"""
    given = letter(answer)
    if given is None:
        return verdict("choice", False, f"no letter in the answer {shorten(answer)}")
    if given == gold.strip().upper():
        return verdict("choice", True, f"chose {given}")
    return verdict("choice", False, f"chose {given}, expected {gold.strip().upper()}")


@register("choice")
class ChoiceVerifier:
    """`Problem.answer` is the right letter."""

    name = "choice"

    def verify(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        return [self._one(problem.answer, text) for problem, text in items]

    def _one(self, gold: str, text: str) -> Verdict:
        answer = final_answer(text)
        return verdict("choice", False, NO_ANSWER) if answer is None else judge(gold, answer)
