"""Judges grade responses on accuracy, style and detail, each from 1 to 5 (Phi-4 report, 4.2, A.2).

`RubricJudge` is a program; `LlmJudge` asks a model. A judge never invents a grade: where it cannot
give one it says so with None.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from phikit.engine.base import Generator, Request, Sampling, collect
from phikit.verify.answer import final_answer
from phikit.verify.base import ByName, Problem, Verifier
from phikit.verify.code import program_of
from phikit.verify.refusal import is_refusal
from phikit.verify.statements import statements


@dataclass(frozen=True, slots=True)
class Grades:
    """1 (poor) to 5 (excellent) each; halves where a judge's two readings differ by one."""

    accuracy: float
    style: float
    detail: float
    reason: str = ""

    @property
    def overall(self) -> float:
        """The mean of the three."""
        return (self.accuracy + self.style + self.detail) / 3


class Judge(Protocol):
    """Grades the responses to one problem, in their order; None where it could not."""

    name: str

    def judge(self, problem: Problem, responses: Sequence[str]) -> list[Grades | None]:
        """Grades for each response, in their order."""
        ...


# --- a program -----------------------------------------------------------------------------------


class RubricJudge:
    """Grades by rules that anyone can check. Each response is graded alone: their order is nothing.

    Accuracy: 5 the verifier passes it; 3 it passes in part (some tests); 2 it states an answer of
    its own, or declines to; 1 it states none, or answers what cannot be answered.
    Style: 5, less 1 for each: no final answer as its last line; a line repeated; a phrase of six
    words said three times or more; several steps on one line; an unfinished thought; control
    tokens spelled out. 1 when empty.
    Detail: 1 no step before the answer, 3 one, 4 two or more; 1 more for arithmetic that is all
    true, or for a third step where there is no arithmetic; 1 less for each false statement.
    """

    name = "rubric"

    def __init__(self, verifier: Verifier | None = None) -> None:
        self.verifier = verifier or ByName()

    def judge(self, problem: Problem, responses: Sequence[str]) -> list[Grades | None]:
        verdicts = self.verifier.verify([(problem, text) for text in responses])
        return [
            self._grade(problem, text, verdict.passed, verdict.score, verdict.reason)
            for text, verdict in zip(responses, verdicts, strict=True)
        ]

    def _grade(
        self, problem: Problem, text: str, passed: bool, score: float, reason: str
    ) -> Grades:
        faults = style_faults(text, code=problem.verifier == "code")
        return Grades(
            accuracy=5 if passed else _wrong(problem, text, score),
            style=max(1, 5 - len(faults)) if text.strip() else 1,
            detail=detail(text),
            reason="; ".join([reason, *faults]),
        )


def _wrong(problem: Problem, text: str, score: float) -> int:
    if score > 0:
        return 3
    if problem.verifier == "refusal":
        return 1
    stated = program_of(text) if problem.verifier == "code" else final_answer(text)
    return 2 if stated or is_refusal(text) else 1


def style_faults(text: str, code: bool = False) -> list[str]:
    """What is wrong with how a response is written. A program's response ends in no answer line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    words = text.split()
    phrases = Counter(tuple(words[i : i + 6]) for i in range(len(words) - 5))
    checks = [
        (not code and (not lines or final_answer(lines[-1]) is None),
         "does not end with its answer"),
        (len(set(lines)) < len(lines) and not code, "repeats a line"),
        (max(phrases.values(), default=0) >= 3, "repeats a phrase"),
        (not code and any(len(statements(line)) > 1 for line in lines), "several steps on a line"),
        (text.count("<think>") != text.count("</think>"), "an unfinished thought"),
        ("<|" in text, "spells out control tokens"),
    ]  # fmt: skip
    return [name for wrong, name in checks if wrong]


def detail(text: str) -> int:
    """How far the way to the answer is shown, 1 to 5."""
    plain = text.replace("<think>", "\n").replace("</think>", "\n")
    lines = list(dict.fromkeys(line.strip() for line in plain.splitlines() if line.strip()))
    steps = [line for line in lines if final_answer(line) is None]
    stated = statements(plain)
    grade = {0: 1, 1: 3}.get(len(steps), 4)
    false = sum(not s.true for s in stated)
    if steps and not false and (stated or len(steps) > 2):
        grade += 1
    return max(1, min(5, grade - false))


# --- a model -------------------------------------------------------------------------------------

INSTRUCTIONS = """\
You grade {count} responses to one question. Give each response three whole numbers from 1 (poor) \
to 5 (excellent):
- accuracy: are the result and every step towards it correct?
- style: is it clear, well ordered, free of repetition, and in the form that was asked for?
- detail: does it show what a reader needs to follow it, and nothing else?
Judge each response by itself. Neither its place in this list nor its length is a merit.

<question>
{question}
</question>
{reference}{responses}
Reply with one JSON object and nothing else:
{{"grades": [{{"response": 1, "accuracy": 1, "style": 1, "detail": 1, "reason": "a few words"}}]}}
with one entry for each response, in their order."""


@dataclass
class JudgeReport:
    """How an `LlmJudge` fared.

    Attributes:
        replies: replies read, good or bad.
        malformed: of these, how many were not what was asked for.
        failed: presentations given up after all retries; their responses have no grades.
        too_long: presentations that were not made, for they leave no room in the judge's context;
            their responses have no grades either.
        compared, agreed: pairs of responses that both presentation orders graded, and how many of
            them both orders ranked alike (a tie is a rank).
    """

    replies: int = 0
    malformed: int = 0
    failed: int = 0
    too_long: int = 0
    compared: int = 0
    agreed: int = 0

    @property
    def agreement(self) -> float | None:
        return self.agreed / self.compared if self.compared else None


class LlmJudge:
    """Asks a model for grades, once with the responses in order and once in reverse.

    A response's grades are the mean of the two readings. A reply that is not exactly what was asked
    for is counted and asked for again; when no retry helps, there are no grades. Neither are there
    where the question and its responses do not fit the judge's context.

    Attributes:
        reasons: why there are no grades, by the problem's id.

    Args:
        render: the judge's instructions → prompt ids, in its chat format.
        read: completion ids → text.
        sampling: with a temperature above 0, or every retry says the same.
        show_reference: tell the judge the problem's gold answer.
        context: the most tokens that the judge reads and writes; None: whatever it is asked.
    """

    name = "llm"

    def __init__(
        self,
        generator: Generator,
        render: Callable[[str], Sequence[int]],
        read: Callable[[Sequence[int]], str],
        sampling: Sampling,
        retries: int = 2,
        seed: int = 0,
        show_reference: bool = True,
        context: int | None = None,
    ) -> None:
        self.generator, self.render, self.read = generator, render, read
        self.sampling, self.retries, self.seed = sampling, retries, seed
        self.show_reference, self.context = show_reference, context
        self.report = JudgeReport()
        self.reasons: dict[str, str] = {}

    def judge(self, problem: Problem, responses: Sequence[str]) -> list[Grades | None]:
        if not responses:
            return []
        forward = self._ask(problem, responses)
        backward = self._ask(problem, responses[::-1])
        if forward is None or backward is None:
            return [None] * len(responses)
        backward = backward[::-1]
        self._compare(forward, backward)
        return [_mean(a, b) for a, b in zip(forward, backward, strict=True)]

    def _ask(self, problem: Problem, responses: Sequence[str]) -> list[Grades] | None:
        prompt_ids = tuple(self.render(self.prompt(problem, responses)))
        if self.context is not None and len(prompt_ids) >= self.context:
            self.report.too_long += 1
            self.reasons[problem.id] = (
                f"question and responses have {len(prompt_ids)} tokens, the judge's context "
                f"{self.context}"
            )
            return None
        for attempt in range(self.retries + 1):
            request = Request(prompt_ids, self.sampling, seed=self.seed, first_sample=attempt)
            [[rollout]] = collect(self.generator, [request])
            self.report.replies += 1
            grades = parse_grades(self.read(rollout.completion_ids), len(responses))
            if grades is not None:
                return grades
            self.report.malformed += 1
        self.report.failed += 1
        self.reasons[problem.id] = f"{self.retries + 1} replies, none of them as asked for"
        return None

    def prompt(self, problem: Problem, responses: Sequence[str]) -> str:
        shown = "".join(
            f'<response number="{number}">\n{text}\n</response>\n'
            for number, text in enumerate(responses, 1)
        )
        tell = self.show_reference and problem.answer
        reference = f"<reference>\n{problem.answer}\n</reference>\n" if tell else ""
        return INSTRUCTIONS.format(
            count=len(responses), question=problem.prompt, reference=reference, responses=shown
        )

    def _compare(self, forward: Sequence[Grades], backward: Sequence[Grades]) -> None:
        for i, j in itertools.combinations(range(len(forward)), 2):
            self.report.compared += 1
            first = _sign(forward[i].overall - forward[j].overall)
            second = _sign(backward[i].overall - backward[j].overall)
            self.report.agreed += first == second


def _sign(value: float) -> int:
    return (value > 1e-9) - (value < -1e-9)


def _mean(a: Grades, b: Grades) -> Grades:
    return Grades(
        accuracy=(a.accuracy + b.accuracy) / 2,
        style=(a.style + b.style) / 2,
        detail=(a.detail + b.detail) / 2,
        reason=a.reason,
    )


def parse_grades(reply: str, count: int) -> list[Grades] | None:
    """The grades in a reply that is exactly the JSON asked for, else None. Nothing is guessed."""
    try:
        value = json.loads(reply)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or set(value) != {"grades"}:
        return None
    rows = value["grades"]
    if not isinstance(rows, list) or len(rows) != count:
        return None
    grades = [_grades(row, number) for number, row in enumerate(rows, 1)]
    complete = [g for g in grades if g is not None]
    return complete if len(complete) == count else None


def _grades(row: Any, number: int) -> Grades | None:
    names = ("accuracy", "style", "detail")
    if not isinstance(row, dict) or set(row) != {"response", "reason", *names}:
        return None
    marks = [row[name] for name in names]
    if row["response"] != number or not isinstance(row["reason"], str):
        return None
    if not all(type(mark) is int and 1 <= mark <= 5 for mark in marks):
        return None
    accuracy, style, detailed = marks
    return Grades(accuracy, style, detailed, row["reason"])
