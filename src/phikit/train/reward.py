"""Phi-4-reasoning-plus's reward: right and short, wrong but tried, and no going round in circles.

Source: Phi-4-reasoning report (arXiv 2504.21318), section 4.1. Lengths are in model tokens. The
constants and the overrides are the report's; the exact form of the length shares and of the
repetition penalty is known from a re-implementation whose end points agree with it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

REPORT_MAX, REPORT_POSITIVE, REPORT_NEGATIVE = 31_744, 25_600, 3_702
ACCURACY_WEIGHT, REPETITION_WEIGHT = 8 / 13, 1 / 13  # they do not sum to 1: as reported
NGRAM, FREQUENT = 5, 5


@dataclass(frozen=True, slots=True)
class Lengths:
    """Where the length terms begin and end.

    Attributes:
        longest: the longest response; a right one of this length earns 0.5.
        positive: up to here a right response earns the full 1.0.
        negative: from here on a wrong response loses only 0.5; an empty one loses 1.0.
    """

    longest: float
    positive: float
    negative: float

    @classmethod
    def scaled(cls, longest: int) -> Lengths:
        """The report's lengths in proportion to another longest response."""
        share = longest / REPORT_MAX
        return cls(longest, REPORT_POSITIVE * share, REPORT_NEGATIVE * share)


def accuracy_reward(right: bool, length: int, lengths: Lengths) -> float:
    """1.0 down to 0.5 for right answers as they grow long; -1.0 up to -0.5 for wrong ones."""
    if right:
        over = max(length - lengths.positive, 0) / (lengths.longest - lengths.positive)
        return 0.5 + 0.25 * (1 + math.cos(math.pi * min(1.0, over)))
    tried = min(1.0, length / lengths.negative)
    return -0.5 - 0.25 * (1 + math.cos(math.pi * tried))


def repetition_reward(ids: Sequence[int]) -> float:
    """0, or below it when some 5-gram of tokens comes more than 5 times."""
    total = len(ids) - NGRAM + 1
    if total <= FREQUENT:
        return 0.0
    counts = Counter(tuple(ids[i : i + NGRAM]) for i in range(total))
    frequent = [n for n in counts.values() if n > FREQUENT]
    if not frequent:
        return 0.0
    return -max(len(frequent) / total, max(frequent) / (len(ids) / NGRAM))


def reasoning_reward(
    ids: Sequence[int], right: bool, ended: bool, thought_ok: bool, lengths: Lengths
) -> float:
    """The whole reward of a response.

    Args:
        ids: the response's tokens, its end token included.
        ended: it ends with an end token; if not, its accuracy term is -0.5.
        thought_ok: it has exactly one well-formed <think> block (pass True where none is asked
            for); if not, its accuracy term is -1.0. A response that was cut off is judged as such.
    """
    if not ended:
        accuracy = -0.5
    elif not thought_ok:
        accuracy = -1.0
    else:
        accuracy = accuracy_reward(right, len(ids), lengths)
    return ACCURACY_WEIGHT * accuracy + REPETITION_WEIGHT * repetition_reward(ids)


def well_formed(text: str) -> bool:
    """One <think> block at the very beginning, closed once, with an answer after it."""
    before, opened, rest = text.partition("<think>")
    thought, closed, answer = rest.partition("</think>")
    parts_ok = bool(opened and closed and thought.strip() and answer.strip())
    return parts_ok and not before.strip() and "<think>" not in rest and "</think>" not in answer
