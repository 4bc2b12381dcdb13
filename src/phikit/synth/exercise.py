"""What a dataset type is, and the exercise that it writes.

A dataset type is a program that writes problems of one skill. It states a question, the steps of a
short solution, the answer, and the verifier that can judge an answer; the longer worked thought is
derived from the steps unless the type writes its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Literal

from phikit.errors import PhikitError
from phikit.synth.arithmetic import thought_lines

Style = Literal["short", "thought"]
UNKNOWN = "unknown"
EASIEST, HARDEST = 1, 5


@dataclass(frozen=True, slots=True)
class Exercise:
    """One problem with its worked solution.

    Attributes:
        question: as the user asks it.
        steps: the lines of the short solution, one calculation or deduction each.
        answer: what stands after "Answer: ".
        verifier: the verifier that can judge an answer.
        thought: the lines of the longer worked thought; derived from `steps` when empty.
        gold: what the verifier is given, when that is not `answer` (tests as JSON).
        closing: the last lines of the solution, when they are not "Answer: ...".
        wrong: plausible wrong answers, for multiple choice.
        program: Python that must run without an error for the exercise to be kept; it checks the
            answer by executing what the question is about.
        document: a plain document that teaches the same, for pretraining in place of the
            question-and-solution form.
    """

    question: str
    steps: tuple[str, ...]
    answer: str
    verifier: str = "math"
    thought: tuple[str, ...] = ()
    gold: str = ""
    closing: str = ""
    wrong: tuple[str, ...] = ()
    program: str = ""
    document: str = ""

    def response(self, style: Style) -> str:
        """The worked solution in one of the two styles; the report's form for thoughts is
        `<think>…</think>` and then the solution (section 5.1 of the facts)."""
        closing = self.closing or f"Answer: {self.answer}"
        if style == "short":
            return "\n".join((*self.steps, closing))
        ending = "\n".join((*self.steps[-1:], closing))
        return f"<think>\n{chr(10).join(self.thought_steps)}\n</think>\n{ending}"

    @property
    def thought_steps(self) -> tuple[str, ...]:
        return self.thought or tuple(thought_lines(self.steps))


Writer = Callable[[Random, int], Exercise]


@dataclass(frozen=True, slots=True)
class DatasetType:
    """A named kind of problem.

    Attributes:
        name: the name in recipes, and `Sample.kind`.
        skill: what it teaches, in a sentence.
        write: (random stream, difficulty 1..5) → an exercise.
        unanswerable: the same, for a problem that cannot be answered from what it says.
        source: the class of its samples in the mixture.
        dial: what difficulty changes, for people who tune it.
    """

    name: str
    skill: str
    write: Writer
    unanswerable: Writer | None = None
    source: str = "synthetic"
    dial: str = "size of the numbers"


def decline(question: str, missing: str) -> Exercise:
    """An exercise whose only right answer is to say that it cannot be answered (appendix A.1).

    Args:
        missing: what is not given: "the number of shells that Mia finds".
    """
    return Exercise(
        question=question,
        steps=(f"I cannot answer this: {missing} is not given.",),
        answer=UNKNOWN,
        verifier="refusal",
        thought=(f"To answer I need {missing}.", "The text does not say it."),
    )


def top_number(difficulty: int) -> int:
    """The largest number that problems of a difficulty start from.

    Raises:
        PhikitError: the difficulty is not in 1..5.
    """
    if not EASIEST <= difficulty <= HARDEST:
        raise PhikitError(f"difficulty is {difficulty}; it must be between 1 and 5")
    return (9, 20, 50, 99, 300)[difficulty - 1]


def near_misses(answer: int, rng: Random, also: tuple[int, ...] = ()) -> tuple[str, ...]:
    """Three wrong numbers: given traps first (intermediate results), then slips of 1, 2 or 10."""
    slips = [answer + d for d in (1, -1, 2, 10, -10, -2) if answer + d >= 0]
    rng.shuffle(slips)
    chosen: list[int] = []
    for value in (*also[:2], *slips):
        if value != answer and value not in chosen:
            chosen.append(value)
    return tuple(map(str, chosen[:3]))
