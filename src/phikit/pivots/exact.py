"""Language models so small that p(success | prefix) is known exactly: the search's ground truth.

An `Automaton` writes a fixed number of tokens. Its state is a level; each token moves the level by
an amount that depends on position and level, and the answer is right when the last level is high
enough. Backward dynamic programming gives the success probability of every prefix.

`instances` makes random ones of four kinds, each with one sampled solution:

- "planted": one token moves p by the gap or more;
- "none": none does, and most move it little;
- "steps": none does, but many move it by nearly the gap;
- "cancel": two do, in opposite directions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phikit.engine.base import Finished, Request
from phikit.pivots.question import Drawn
from phikit.pivots.search import Question
from phikit.records import Rollout, Verdict
from phikit.verify.base import Problem

END = 0
UP, DOWN, STAY = 1, 2, 3
VOCABULARY = 6
LEVELS = 40
KINDS = ("planted", "none", "steps", "cancel")


class Automaton:
    """A model over `VOCABULARY` tokens and levels 0 ... `LEVELS`.

    Attributes:
        probability: of each token, [position, level, token].
        move: the level after it, [position, level, token].
        success: p(right in the end | level before the position), [position, level]; the last row
            is the verdict itself.
    """

    def __init__(
        self, probability: NDArray[np.float64], move: NDArray[np.int64], first: int
    ) -> None:
        self.probability, self.move, self.first = probability, move, first
        self.length = len(probability)
        self.success = np.zeros((self.length + 1, LEVELS + 1))
        self.success[-1] = np.arange(LEVELS + 1) >= LEVELS // 2
        for t in reversed(range(self.length)):
            after = self.success[t + 1][move[t]]
            self.success[t] = np.clip((probability[t] * after).sum(axis=-1), 0.0, 1.0)
        self._cumulative = np.cumsum(probability, axis=-1)

    def levels(self, ids: Sequence[int]) -> list[int]:
        """The level before each token and after the last one; the end token does not count."""
        levels = [self.first]
        for t, token in enumerate(i for i in ids if i != END):
            levels.append(int(self.move[t, levels[-1], token]))
        return levels

    def curve(self, ids: Sequence[int]) -> NDArray[np.float64]:
        """p(success) at every position of a solution (end token included), [L + 1]."""
        levels = self.levels(ids)
        p = [self.success[t, level] for t, level in enumerate(levels)]
        return np.array([*p, p[-1]] if ids and ids[-1] == END else p)

    def passed(self, ids: Sequence[int]) -> bool:
        """Whether the level that a whole completion ends at counts as right."""
        return bool(self.success[-1, self.levels(ids)[-1]] > 0.5)

    def sample(
        self, prefix: Sequence[int], uniform: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Completions of a prefix, with log-probabilities, both [N, length - len(prefix) + 1].

        Args:
            uniform: random numbers in [0, 1), [N, at least length - len(prefix)].
        """
        n, begun = len(uniform), len(prefix)
        ids = np.full((n, self.length - begun + 1), END)
        logprobs = np.zeros(ids.shape)
        level = np.full(n, self.levels(prefix)[-1])
        for step, t in enumerate(range(begun, self.length)):
            edges = self._cumulative[t, level]
            token = (uniform[:, step, None] >= edges[:, :-1]).sum(axis=-1)
            ids[:, step] = token
            logprobs[:, step] = np.log(self.probability[t, level, token])
            level = self.move[t, level, token]
        return ids, logprobs


@dataclass(frozen=True)
class Instance:
    """A model, a solution that it wrote, and the change of p(success) at each of its tokens."""

    kind: str
    model: Automaton
    solution: Drawn
    deltas: NDArray[np.float64]


class ExactGenerator:
    """Implements `Generator` over automata: a prompt is one token, 100 + the automaton's index."""

    def __init__(self, models: Sequence[Automaton]) -> None:
        self.models = models

    def generate(self, requests: Sequence[Request]) -> Iterator[Finished]:
        for index, request in enumerate(requests):
            model = self.models[request.prompt_ids[0] - 100]
            prefix = request.prompt_ids[1:]
            samples = np.arange(request.first_sample, request.first_sample + request.n)
            uniform = _uniform(request.seed, samples, model.length - len(prefix) + 1)
            ids, logprobs = model.sample(prefix, uniform)
            for i, (row, lp) in enumerate(zip(ids.tolist(), logprobs.tolist(), strict=True)):
                rollout = Rollout(
                    id=f"{index}-{i}",
                    prompt_ids=request.prompt_ids,
                    completion_ids=tuple(row),
                    logprobs=tuple(lp),
                    raw_logprobs=tuple(lp),
                )
                yield Finished(index, i, rollout)


class ExactVerifier:
    """Judges the text of `exact_text` by the automaton that the problem's answer names."""

    name = "automaton"

    def __init__(self, models: Sequence[Automaton]) -> None:
        self.models = models

    def verify(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        verdicts = []
        for problem, text in items:
            passed = self.models[int(problem.answer)].passed([int(x) for x in text.split()])
            verdicts.append(
                Verdict(id="-", passed=passed, score=float(passed), reason="", verifier=self.name)
            )
        return verdicts


def exact_text(ids: Sequence[int]) -> str:
    """The text of token ids: their numbers, with spaces between."""
    return " ".join(str(i) for i in ids)


def questions(found: Sequence[Instance], given: bool = True) -> list[Question]:
    """The instances as questions, with their solutions or (not `given`) to be sampled."""
    return [
        Question(
            Problem(f"automaton {i}", str(i), "automaton", kind=instance.kind, id=f"{i:04d}"),
            (100 + i,),
            instance.solution if given else None,
        )
        for i, instance in enumerate(found)
    ]


def instances(
    count: int, seed: int, gap: float = 0.2, length: tuple[int, int] = (48, 80)
) -> list[Instance]:
    """Random instances, the kinds in turn."""
    return [_instance(KINDS[i % 4], np.random.default_rng([seed, i]), gap, length)
            for i in range(count)]  # fmt: skip


def _instance(kind: str, rng: np.random.Generator, gap: float, length: tuple[int, int]) -> Instance:
    while True:
        model = _model(kind, rng, int(rng.integers(*length)))
        if not 0.2 <= model.success[0, model.first] <= 0.8:
            continue
        ids, logprobs = model.sample((), rng.random((200, model.length)))
        for row, lp in zip(ids.tolist(), logprobs.tolist(), strict=True):
            deltas = np.diff(model.curve(row))
            if _fits(kind, deltas, gap):
                solution = Drawn(tuple(row), tuple(lp), tuple(lp), model.passed(row))
                return Instance(kind, model, solution, deltas)


def _fits(kind: str, deltas: NDArray[np.float64], gap: float) -> bool:
    large = deltas[np.abs(deltas) >= gap]
    if kind == "planted":
        return len(large) == 1
    if kind == "cancel":
        return len(large) == 2 and bool(large[0] * large[1] < 0)
    many = bool((np.abs(deltas) >= 0.5 * gap).sum() >= 4)
    return len(large) == 0 and many == (kind == "steps")


def _model(kind: str, rng: np.random.Generator, length: int) -> Automaton:
    """At most positions the model is nearly sure of a token that changes nothing; at some it takes
    a step up or down; at the planted ones it takes a leap."""
    probability = np.zeros((length, LEVELS + 1, VOCABULARY))
    move = np.tile(np.arange(LEVELS + 1)[:, None], (length, 1, VOCABULARY))
    leaps = {"planted": 1, "cancel": 2}.get(kind, 0)
    leaping = rng.choice(np.arange(3, length - 8), leaps, replace=False).tolist()
    largest = 6 if kind == "steps" else 4
    for t in range(length):
        if t in leaping:
            _step(probability[t], move[t], rng, int(rng.integers(10, 22)), rng.uniform(0.15, 0.5))
        elif rng.random() < 0.3:
            size = int(rng.integers(largest // 2, largest + 1))
            _step(probability[t], move[t], rng, size, rng.uniform(0.15, 0.5))
        else:
            sure = rng.uniform(0.85, 0.995)
            probability[t, :, STAY] = sure
            probability[t, :, STAY + 1 :] = (1.0 - sure) / (VOCABULARY - STAY - 1)
    return Automaton(probability, move, int(rng.integers(10, 31)))


def _step(
    probability: NDArray[np.float64],
    move: NDArray[np.int64],
    rng: np.random.Generator,
    size: int,
    chance: float,
) -> None:
    """A fair step: up by `size` with `chance`, down by as much as makes it even; smaller near the
    two ends, where the level stays for good."""
    down = max(1, round(size * rng.uniform(0.6, 1.6)))
    still = rng.dirichlet([3.0, 1.0, 0.5])
    for level in range(1, LEVELS):
        up_by = min(size, LEVELS - level)
        down_by = min(down, level)
        up = chance * min(1.0, down_by / up_by)
        fall = up * up_by / down_by
        if up + fall > 0.95:
            up, fall = 0.95 * up / (up + fall), 0.95 * fall / (up + fall)
        probability[level, UP], probability[level, DOWN] = up, fall
        probability[level, STAY:] = (1.0 - up - fall) * still
        move[level, UP], move[level, DOWN] = level + up_by, level - down_by
    probability[[0, LEVELS], STAY:] = still


def _uniform(seed: int, samples: NDArray[Any], count: int) -> NDArray[np.float64]:
    """Random numbers [len(samples), count], each made of (seed, sample, place) alone (SplitMix)."""
    base = _mix(np.array([seed & (2**63 - 1)], np.uint64))
    keys = _mix(base + samples.astype(np.uint64)[:, None] * np.uint64(0x9E3779B97F4A7C15))
    places = np.arange(1, count + 1, dtype=np.uint64)[None] * np.uint64(0xD1B54A32D192ED03)
    return (_mix(keys + places) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
