"""A teacher that errs, to measure what validators are worth: a share of its answers is wrong.

The wrong answer is a plausible one (another option, a number beside the right one, another name of
the question), written where the right one stood at the solution's end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from random import Random

from phikit.synth.teacher import Candidate, Order, Teacher

_OPTION = re.compile(r"^([A-D])\) ", re.MULTILINE)
_NAME = re.compile(
    r"(?<=[a-z,;] )[A-Z][a-z]+\b|^[A-Z][a-z]+(?= has| is| finds| buys)", re.MULTILINE
)
_SLIPS = (1, -1, 2, 10, -2, 3)


class SlippingTeacher:
    """Another teacher's candidates, of which about a `share` ends in a wrong answer."""

    def __init__(self, teacher: Teacher, share: float) -> None:
        self.teacher, self.share = teacher, share
        self.name = teacher.name

    def write(self, orders: Sequence[Order]) -> list[Candidate | None]:
        made = self.teacher.write(orders)
        return [self._slip(o, c) for o, c in zip(orders, made, strict=True)]

    def _slip(self, order: Order, candidate: Candidate | None) -> Candidate | None:
        rng = Random(f"{order.stream}/{order.kind}/{order.unanswerable}/{order.index}/slip")
        if candidate is None or candidate.text or rng.random() >= self.share:
            return candidate
        wrong = other_answer(candidate, rng)
        if wrong is None:
            return candidate
        lines = candidate.response.split("\n")
        stated = re.compile(rf"(?<![\w.]){re.escape(candidate.answer)}(?![\w.]*\w)")
        for i in (-2, -1):
            if len(lines) >= -i:
                lines[i] = stated.sub(wrong, lines[i])
        return replace(candidate, response="\n".join(lines), meta={**candidate.meta, "slip": wrong})


def other_answer(candidate: Candidate, rng: Random) -> str | None:
    """A wrong answer of the right form; None where there is no plain one."""
    answer = candidate.answer
    if re.fullmatch(r"\d+", answer):
        return str(rng.choice([int(answer) + s for s in _SLIPS if int(answer) + s >= 0]))
    options = _OPTION.findall(candidate.question)
    if candidate.verifier != "choice":
        options = sorted(set(_NAME.findall(candidate.question))) if answer.istitle() else []
    others = [o for o in options if o != answer]
    return rng.choice(others) if others else None
