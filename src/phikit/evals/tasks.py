"""Asking a model the items of an evaluation, and scoring what it answers.

An item is a `Sample` with a verifier and an answer. Each is asked several times at a temperature,
as the report does (section 5: simple-evals, temperature 0.5), and once greedily. What a model draws
depends on the item alone: two models are asked with the same random numbers, so that their
difference is theirs and not the dice's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from phikit.chat.tokenizer import Tokenizer
from phikit.engine.base import Generator, Request, Sampling
from phikit.errors import PhikitError
from phikit.records import Rollout, Sample, Score, Verdict
from phikit.verify.base import Problem, Verifier

GREEDY = -1  # the `Score.sample` of the greedy answer


@dataclass(frozen=True)
class Prompting:
    """How an item becomes token ids, and completion ids an answer.

    A chat model gets the item's messages in its chat format, a base model the item in the text form
    that it was pretrained on.

    Attributes:
        prompt: item → prompt ids.
        answer: completion ids → the answer as text, without end tokens.
        stop_ids: what ends an answer.
        context: the longest sequence that the model can read, in tokens.
        tokenizer: the model's own, where one asks for stop texts.
    """

    prompt: Callable[[Sample], Sequence[int]]
    answer: Callable[[Sequence[int]], str]
    stop_ids: tuple[int, ...]
    context: int
    tokenizer: Tokenizer | None = None


@dataclass(frozen=True)
class Asking:
    """How often and how each item is asked: `samples` times at `temperature`, and greedily once."""

    samples: int = 4
    temperature: float = 0.5
    greedy: bool = True
    max_tokens: int = 256


@dataclass(frozen=True)
class Answer:
    """One answer to one item, before it is judged. `rollout` is None when it did not fit."""

    item: Sample
    sample: int
    rollout: Rollout | None
    text: str


def seed_of(item: Sample) -> int:
    """The seed of an item's random streams: a function of its id alone."""
    return int.from_bytes(hashlib.blake2b(item.id.encode(), digest_size=7).digest(), "big")


def ask(
    generator: Generator,
    prompting: Prompting,
    items: Sequence[Sample],
    asking: Asking,
    done: Callable[[int, int], None] = lambda done, total: None,
) -> list[Answer]:
    """Asks every item and returns the answers in the order of the items, the greedy one first.

    An item whose prompt leaves no room for an answer in the model's context is not asked: its
    answers are empty, and will be judged wrong. `done(answers so far, of how many)` is called as
    answers come in.
    """
    requests: list[Request] = []
    asked: list[tuple[Sample, int]] = []  # each request's item, and its first sample's number
    answers: dict[tuple[str, int], Answer] = {}
    for item in items:
        prompt_ids = tuple(prompting.prompt(item))
        room = prompting.context - len(prompt_ids)
        for first, n, temperature in _rounds(asking):
            if room < 1:
                missing = {
                    (item.id, first + i): Answer(item, first + i, None, "") for i in range(n)
                }
                answers.update(missing)
                continue
            sampling = Sampling(
                temperature=temperature,
                max_tokens=min(asking.max_tokens, room),
                stop_ids=prompting.stop_ids,
            )
            requests.append(Request(prompt_ids, sampling, n=n, seed=seed_of(item)))
            asked.append((item, first))
    total = len(items) * (asking.samples + asking.greedy)
    for finished in generator.generate(requests):
        item, first = asked[finished.request]
        sample = first + finished.sample
        text = prompting.answer(finished.rollout.completion_ids)
        answers[item.id, sample] = Answer(item, sample, finished.rollout, text)
        done(len(answers), total)
    return [answers[item.id, sample] for item in items for sample in _numbers(asking)]


def judge(answers: Sequence[Answer], verifier: Verifier) -> list[Score]:
    """Scores answers, in order. Equal answers to one item are verified once."""
    first: dict[tuple[str, str], int] = {}
    questions: list[tuple[Problem, str]] = []
    for a in answers:
        if a.rollout is not None and (a.item.id, a.text) not in first:
            first[a.item.id, a.text] = len(questions)
            questions.append((Problem.of(a.item), a.text))
    verdicts = verifier.verify(questions)
    return [
        Score(
            parents=(a.item.id,),
            task=a.item.kind,
            item=a.item.id,
            sample=a.sample,
            verdict=_UNREAD if a.rollout is None else verdicts[first[a.item.id, a.text]],
            cost=len(a.rollout.completion_ids) if a.rollout else 0,
            text=a.text,
        )
        for a in answers
    ]


_UNREAD = Verdict(
    passed=False, score=0.0, reason="the prompt does not fit the model's context", verifier="length"
)


def _rounds(asking: Asking) -> Iterator[tuple[int, int, float]]:
    """(first sample number, how many, temperature) of the requests made per item."""
    if asking.greedy:
        yield GREEDY, 1, 0.0
    if asking.samples:
        yield 0, asking.samples, asking.temperature


def _numbers(asking: Asking) -> list[int]:
    return [first + i for first, n, _ in _rounds(asking) for i in range(n)]


def check_items(items: Sequence[Sample], where: str) -> None:
    """Refuses items that cannot be scored item by item.

    Raises:
        PhikitError: there are none, two have the same id, or one names no verifier.
    """
    if not items:
        raise PhikitError(f"{where}: there are no items to evaluate on")
    ids: set[str] = set()
    for number, item in enumerate(items):
        if item.id in ids:
            raise PhikitError(f"{where}: item {number} ({item.id}) is in the file twice")
        if not item.verifier:
            raise PhikitError(f"{where}: item {number} ({item.id}) names no verifier")
        ids.add(item.id)
