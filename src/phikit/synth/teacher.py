"""Teachers: whatever writes new training data, behind one interface.

A teacher is given orders (which dataset type, which random stream, perhaps a seed document) and
returns candidates: a question, a worked solution, the gold answer and the name of the verifier that
must pass the solution before it becomes a `Sample`. The procedural teacher is a program, and is
called so in every sample's lineage; a language model stands behind the same interface.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

from phikit.errors import PhikitError
from phikit.records import Document, Sample, Verdict
from phikit.synth.exercise import Style
from phikit.synth.types.catalogue import find
from phikit.verify.base import Problem

UNANSWERABLE = "unanswerable"


@dataclass(frozen=True, slots=True)
class Order:
    """One sample asked of a teacher. Equal orders get equal candidates from a procedural teacher.

    Attributes:
        kind: the dataset type.
        stream: what names the random streams of this job ("0/train"); another stream writes
            other problems.
        index: which problem of the stream.
        difficulty: 1 (easiest) to 5; each type says what it changes.
        unanswerable: ask for a problem that has to be declined.
        document: the seed, for types that start from one.
    """

    kind: str
    stream: str
    index: int
    difficulty: int = 1
    style: Style = "short"
    unanswerable: bool = False
    document: Document | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a teacher hands in, before validation.

    Attributes:
        question, response: the user's and the assistant's message.
        answer: the gold answer or what else the verifier needs.
        text: the pretraining form; made from question and response when empty.
        program: Python that has to run without an error, if the type states one.
        messages: the whole conversation, where it is more than question and response.
        plain: only text, no messages.
        verdicts: of validators that have judged it already.
    """

    kind: str
    source: str
    question: str
    response: str
    answer: str
    verifier: str
    text: str = ""
    program: str = ""
    parents: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    messages: tuple[Mapping[str, str], ...] = ()
    plain: bool = False
    verdicts: tuple[Verdict, ...] = ()

    @property
    def problem(self) -> Problem:
        """What a verifier needs to judge the response."""
        return Problem(
            prompt=self.question, answer=self.answer, verifier=self.verifier, kind=self.kind
        )

    def sample(self, verdicts: tuple[Verdict, ...] = ()) -> Sample:
        """The candidate as a record to train on."""
        pair = (
            {"role": "user", "content": self.question},
            {"role": "assistant", "content": self.response},
        )
        return Sample(
            parents=self.parents,
            kind=self.kind,
            source=self.source,
            text=self.text or pretraining_text(self.question, self.response),
            messages=() if self.plain else self.messages or pair,
            verifier=self.verifier,
            answer=self.answer,
            verdicts=verdicts,
            meta=self.meta,
        )


class Teacher(Protocol):
    """Orders in, candidates out, in the same order; None where it could not write one."""

    name: str

    def write(self, orders: Sequence[Order]) -> list[Candidate | None]:
        """A candidate for each order, in their order; None where it could not write one."""
        ...


class ProceduralTeacher:
    """A program that writes problems with worked, checked solutions.

    Each candidate is a function of its order alone: its random stream is seeded by the order's
    stream, type and index.
    """

    name = "procedural"

    def write(self, orders: Sequence[Order]) -> list[Candidate | None]:
        """
        Raises:
            PhikitError: an order names an unknown type, a difficulty outside 1..5, or an
                unanswerable variant where there is none.
        """
        return [self._write(order) for order in orders]

    def _write(self, order: Order) -> Candidate:
        kind = find(order.kind)
        variant = UNANSWERABLE if order.unanswerable else "plain"
        write = kind.unanswerable if order.unanswerable else kind.write
        if write is None:
            raise PhikitError(f"the dataset type {kind.name!r} has no unanswerable variant")
        rng = Random(f"{order.stream}/{order.kind}/{variant}/{order.index}")
        exercise = write(rng, order.difficulty)
        meta: dict[str, Any] = {
            "teacher": self.name,
            "stream": order.stream,
            "index": order.index,
            "difficulty": order.difficulty,
            "style": order.style,
        }
        if order.unanswerable:
            meta["of"] = order.kind
        return Candidate(
            kind=UNANSWERABLE if order.unanswerable else order.kind,
            source=kind.source,
            question=exercise.question,
            response=exercise.response(order.style),
            answer=exercise.gold or exercise.answer,
            verifier=exercise.verifier,
            text=exercise.document,
            program=exercise.program,
            meta=meta,
        )


def pretraining_text(question: str, response: str) -> str:
    """A question and its solution as one plain document.

    A thought becomes a line "Thought:", so that the control tokens of the chat format do not occur
    as spelled-out text in pretraining.
    """
    if not response.startswith("<think>"):
        return f"{_prompt_text(question)} {response}"
    thought, solution = response.removeprefix("<think>").split("</think>", 1)
    return f"Question: {question}\nThought: {thought.strip()}\nSolution: {solution.strip()}"


def _prompt_text(question: str) -> str:
    return f"Question: {question}\nSolution:"


def pretraining_prompt(sample: Sample) -> str:
    """The text up to where the solution begins, to evaluate a base model with."""
    return _prompt_text(Problem.of(sample).prompt)
