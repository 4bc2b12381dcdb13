"""Runs a declared type: its steps over a teacher, one after the other, and then its validators.

A sample's parents are its seed's id and the ids of the stored replies that it was made of; its
`meta` holds the type, the teacher, what was drawn and each step's reply.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

from phikit.errors import BadRecord
from phikit.records import Verdict
from phikit.synth.declared_types import DeclaredType, Step, render
from phikit.synth.replies import Outcome, Request
from phikit.synth.seeds import Seed
from phikit.synth.teacher import Candidate
from phikit.verify.base import Problem, get


class AsyncTeacher(Protocol):
    """Whatever answers a request; see `phikit.synth.remote_teacher`."""

    name: str

    async def ask(self, request: Request) -> Outcome:
        """Answers a request, or says in the outcome why there is no answer."""
        ...


@dataclass(slots=True)
class Made:
    """One sample on its way: what was asked, what came, and how it ended.

    `status` is "done" when every step was accepted, otherwise the status of the step that was not.
    """

    kind: DeclaredType
    index: int
    seed: Seed
    values: dict[str, Any]
    asked: list[tuple[Step, Request, Outcome]] = field(default_factory=list)
    status: str = "done"
    reason: str = ""


def drawn(kind: DeclaredType, stream: str, index: int) -> dict[str, str]:
    """What is drawn from the type's lists for one sample: a function of stream, type and index."""
    rng = Random(f"{stream}/{kind.name}/{index}")
    return {name: rng.choice(entries) for name, entries in kind.vary.items()}


async def make(
    kind: DeclaredType, teacher: AsyncTeacher, seed: Seed, stream: str, index: int, longest: int = 0
) -> Made:
    """Runs the steps; stops at the first that is not accepted.

    Args:
        longest: tokens of a reply, at most, where the steps allow more; 0: as they say.
    """
    values = {"seed": seed.text, "tests": seed.tests, **drawn(kind, stream, index)}
    made = Made(kind, index, seed, values)
    draw = Random(f"{stream}/{kind.name}/{index}/draw").getrandbits(31)
    for step in kind.steps:
        try:
            request = _request(step, made.values, draw, longest)
        except BadRecord as e:
            made.status, made.reason = "rejected", f"{step.name}: {e.message}"
            return made
        outcome = await teacher.ask(request)
        made.asked.append((step, request, outcome))
        if outcome.status != "accepted":
            made.status, made.reason = outcome.status, f"{step.name}: {outcome.reason}"
            return made
        if outcome.cut and not step.reply:
            made.status = "rejected"
            made.reason = f"{step.name}: cut off at {request.max_tokens} tokens"
            return made
        made.values[step.name] = outcome.value
    return made


def _request(step: Step, values: Mapping[str, Any], draw: int, longest: int) -> Request:
    messages = [{"role": "user", "content": render(step.prompt, values)}]
    if step.role:
        messages.insert(0, {"role": "system", "content": render(step.role, values)})
    most = min(step.max_tokens, longest or step.max_tokens)
    return Request(tuple(messages), step.schema_of_reply, step.temperature, most, draw)


def candidate(made: Made, teacher: str) -> Candidate:
    """The finished sample with the verdicts of its own validators; its verifier comes later.

    Raises:
        BadRecord: a template of the result fails on these replies.
        PhikitError: the type's verifier cannot be run.
    """
    kind, values = made.kind, made.values
    messages = _messages(made)
    text = render(kind.result.text, values) if kind.result.text else ""
    answer = render(kind.result.answer, values) if kind.result.answer else ""
    last = messages[-1]["content"] if messages else text
    users = [m["content"] for m in messages if m["role"] == "user"]
    question = users[-1] if users else text
    replies = tuple(r for *_, outcome in made.asked for r in outcome.replies[-1:])
    return Candidate(
        kind=kind.name,
        source=kind.source,
        question=question,
        response=last,
        answer=answer,
        verifier=kind.validators.verifier,
        text=text or "\n\n".join(m["content"] for m in messages),
        messages=messages,
        plain=not messages,
        parents=(*filter(None, [made.seed.id]), *replies),
        meta={
            "teacher": teacher,
            "index": made.index,
            **({"topic": made.seed.topic} if made.seed.topic else {}),
            "drawn": {name: values[name] for name in kind.vary},
            "steps": {step.name: values[step.name] for step in kind.steps},
        },
        verdicts=tuple(_verdicts(made, last, question, answer)),
    )


def _messages(made: Made) -> tuple[Mapping[str, str], ...]:
    result = made.kind.result
    if result.turns:
        step, _, name = result.turns.partition(".")
        turns = made.values[step][name]
        if len(turns) % 2:
            raise BadRecord("the conversation does not end with an answer")
        return tuple(
            {"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(turns)
        )
    return tuple(
        {"role": t.role, "content": render(t.content, made.values)} for t in result.messages
    )


def _verdicts(made: Made, response: str, question: str, answer: str) -> list[Verdict]:
    rules = made.kind.validators
    words = len(response.split())
    found = [
        _verdict("length", rules.min_words <= words <= rules.max_words, f"{words} words"),
    ]
    for source in rules.require:
        shown = render(source, made.values)
        found.append(_verdict("require", shown == "True", f"{source} is {shown}"))
    if rules.grounded:
        share = grounded(response, made.seed.text)
        found.append(_verdict("grounded", share >= rules.grounded, f"{share:.2f}", share))
    if rules.confirm:
        problem = Problem(prompt=question, answer=answer, verifier=rules.verifier)
        second = render(rules.confirm, made.values)
        try:
            (verdict,) = get(rules.verifier).verify([(problem, second)])
            reason = f"a second answer: {verdict.reason}"
            found.append(_verdict("confirm", verdict.passed, reason, verdict.score))
        except BadRecord as e:  # the teacher's own tests or gold answer are of no use
            found.append(_verdict("confirm", False, e.message))
    return found


def _verdict(name: str, passed: bool, reason: str, score: float | None = None) -> Verdict:
    score = float(passed) if score is None else score
    return Verdict(passed=passed, score=score, reason=reason, verifier=name)


def grounded(response: str, seed: str) -> float:
    """The share of the response's word trigrams that occur in the seed."""

    def trigrams(text: str) -> list[tuple[str, ...]]:
        words = ["".join(c for c in w if c.isalnum()) for w in text.lower().split()]
        return list(zip(words, words[1:], words[2:], strict=False))

    own, there = trigrams(response), set(trigrams(seed))
    return sum(t in there for t in own) / len(own) if own else 0.0
