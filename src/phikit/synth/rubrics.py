"""What a text is worth for teaching, on three scales from 1 to 5: by a teacher, or by a program.

educational value: would a learner take something from it? reasoning depth: does it derive, explain
or argue? factual density: how much does it state for its length? The program counts words and forms
that anyone can check; it is no judge of content, and says so in every grade's source.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from phikit.synth.replies import Request

SCALES = ("educational", "reasoning", "density")
_SCHEMA = {
    "type": "object",
    "properties": {name: {"type": "integer", "minimum": 1, "maximum": 5} for name in SCALES},
    "required": list(SCALES),
    "additionalProperties": False,
}
_PROMPT = """\
Grade this excerpt with three whole numbers from 1 (least) to 5 (most):
- educational: would somebody who studies the subject learn from it?
- reasoning: does it explain, derive or argue, step by step?
- density: how many facts does it state for its length?

Excerpt:
{text}"""


@dataclass(frozen=True, slots=True)
class Grade:
    """Three marks from 1 to 5."""

    educational: int
    reasoning: int
    density: int

    @property
    def total(self) -> float:
        """Their mean."""
        return (self.educational + self.reasoning + self.density) / 3


def request(text: str, draw: int) -> Request:
    """What a teacher is asked of an excerpt."""
    message = {"role": "user", "content": _PROMPT.format(text=text)}
    return Request((message,), _SCHEMA, temperature=0.3, max_tokens=60, draw=draw)


def read(value: dict[str, Any]) -> Grade:
    """The grade in a judge's reply that keeps to the schema."""
    return Grade(*(int(value[name]) for name in SCALES))


# --- by a program --------------------------------------------------------------------------------

_WORD = re.compile(r"[A-Za-z][a-z'-]+")
_FACT = re.compile(r"\b\d[\d.,]*\b|(?<=[a-z,;:] )[A-Z][a-z]{2,}|\b[A-Z]{2,}\b")
_TEACHES = re.compile(
    r"\b(?:example|for instance|note that|means?|is called|defin\w+|consists? of|used (?:to|for)|"
    r"allows?|describes?|introduc\w+|explain\w*|see also|represents?)\b",
    re.IGNORECASE,
)
_REASONS = re.compile(
    r"\b(?:because|therefore|thus|hence|since|so that|if|then|otherwise|however|although|unless|"
    r"implies|follows|consequently|while|whereas|in order to|due to|as a result)\b",
    re.IGNORECASE,
)


def by_rules(text: str) -> Grade:
    """Grades by counts per hundred words: explaining phrases, connectives, numbers and names."""
    words = _WORD.findall(text)
    if len(words) < 10:
        return Grade(1, 1, 1)
    hundred = len(words) / 100
    prose = len(words) / max(1, len(text.split()))  # the rest are symbols and markup
    teaches = len(_TEACHES.findall(text)) / hundred * min(1.0, prose)
    reasons = len(_REASONS.findall(text)) / hundred * min(1.0, prose)
    facts = len(_FACT.findall(text)) / hundred
    return Grade(
        _mark(teaches, (0.4, 1.2, 2.2, 3.6)),
        _mark(reasons, (0.8, 2.0, 3.2, 4.6)),
        _mark(facts, (1.5, 4.0, 8.0, 14.0)),
    )


def _mark(value: float, bounds: Sequence[float]) -> int:
    return 1 + sum(value >= bound for bound in bounds)
