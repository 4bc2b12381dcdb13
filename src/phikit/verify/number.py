r"""The "number" verifier: is the last number that the response states the right one?

For models that do not keep to a form: where there is a \boxed{...} or a line "Answer: ..." its
content counts, as for "math"; else the last number anywhere in what follows the thought. The usual
lenient score of grade-school problems. A guess that ends a long wrong solution passes, too, so
"math" is the better verifier for a model that keeps to the form.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from phikit.records import Verdict
from phikit.verify.answer import after_thought, final_answer
from phikit.verify.base import Problem, register
from phikit.verify.math import judge, quantity
from phikit.verify.verdicts import NO_ANSWER, verdict

# a sign belongs to the number only where nothing that could be subtracted from stands before it
_NUMBER = re.compile(r"(?<![\w.])(?:(?<![\w)\]])[-−])?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?!\w)")
_SUBTRACTED = re.compile(r"[\d)\]%]\s*$")


def last_number(text: str) -> str | None:
    """The last number of the text, thousands' commas left out; None if there is none."""
    found = None
    for found in _NUMBER.finditer(text):  # noqa: B007 (the last one is wanted)
        pass
    if found is None:
        return None
    number = found[0].replace(",", "").replace("−", "-")
    subtracted = number.startswith("-") and _SUBTRACTED.search(text[: found.start()])
    return number[1:] if subtracted else number


@register("number")
class NumberVerifier:
    """`Problem.answer` is the number, with or without its unit."""

    name = "number"

    def verify(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        return [self._one(problem.answer, text) for problem, text in items]

    def _one(self, gold: str, text: str) -> Verdict:
        stated = final_answer(text)
        if stated is not None and quantity(stated):
            return _renamed(judge(gold, stated))
        answer = last_number(stated or after_thought(text) or "")
        if answer is None:
            return verdict("number", False, NO_ANSWER)
        return _renamed(judge(gold, answer))


def _renamed(judged: Verdict) -> Verdict:
    return verdict("number", judged.passed, judged.reason)
