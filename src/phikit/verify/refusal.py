"""The "refusal" verifier: does the response decline to answer? (Phi-4 report, appendix A.1)

It looks at the final answer where one is stated, otherwise at all that follows the thought. A
response that says it does not know and then states an answer has not declined.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from phikit.records import Verdict
from phikit.verify.answer import after_thought, final_answer
from phikit.verify.base import Problem, register
from phikit.verify.verdicts import shorten, verdict

# What counts as declining.
PHRASES = (
    r"\bi (?:do not|don't|can ?not|can't) (?:know|tell|say|answer|determine|help|verify|find)",
    r"\bi(?:'m| am) (?:not (?:sure|certain|aware|able)|unsure|unable)",
    r"\bi(?:'m| am) sorry\b",
    r"\bi (?:do not|don't) have (?:enough |sufficient |any )?(?:information|data|knowledge)",
    r"\b(?:can ?not|can't|could not) be (?:determined|answered|known|solved|found|computed)",
    r"\b(?:it|this) is (?:not possible|impossible) to (?:know|tell|say|answer|determine)",
    r"\b(?:not enough|insufficient|too little) (?:information|data)",
    r"\bunanswerable\b",
    r"^(?:unknown|undetermined|none of the above can be known)\b",
    r"\bthere is no (?:way to know|such (?:person|place|event|thing))\b",
)
_DECLINES = re.compile("|".join(PHRASES), re.IGNORECASE)

_STATED = re.compile(r"\banswer:", re.IGNORECASE)  # also within a line


def is_refusal(text: str) -> bool:
    """True if the text contains one of `PHRASES`."""
    return _DECLINES.search(text.replace("’", "'").strip()) is not None


@register("refusal")
class RefusalVerifier:
    """Passes when the response declines; `Problem.answer` is not looked at."""

    name = "refusal"

    def verify(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        return [self._one(text) for _, text in items]

    def _one(self, text: str) -> Verdict:
        said = final_answer(text)
        if said is None:
            said = after_thought(text)
        if said is None:
            return verdict("refusal", False, "the thought is unfinished")
        said = _STATED.split(said)[-1]
        if is_refusal(said):
            return verdict("refusal", True, "declined to answer")
        return verdict("refusal", False, f"did not decline, but said {shorten(said)}")
