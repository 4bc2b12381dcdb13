"""The one interface through which all of phikit gets tokens.

Synthesis, Pivotal Token Search, GRPO, judging and evaluation ask a `Generator`; which model runs,
and where, is the generator's business. Prompts go in as token ids and rollouts come out as ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from phikit.errors import PhikitError
from phikit.records import Rollout


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw tokens. Filters apply in the order: temperature, top-k, top-p, min-p.

    Attributes:
        temperature: 0 is greedy.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches this; 1 keeps all.
        min_p: drop tokens below this fraction of the most probable one's probability.
        max_tokens: the longest completion, the end token included.
        stop_ids: tokens that end a completion; the one that did is its last id.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    max_tokens: int = 256
    stop_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise PhikitError(f"temperature is {self.temperature}; it must be 0 or more")
        if not 0 < self.top_p <= 1:
            raise PhikitError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise PhikitError(f"min_p is {self.min_p}; it must be between 0 and 1")
        if self.top_k < 0 or self.max_tokens < 1:
            raise PhikitError(
                f"top_k is {self.top_k} and max_tokens {self.max_tokens}; "
                "they must be at least 0 and 1"
            )


@dataclass(frozen=True, slots=True)
class Request:
    """Ask for `n` rollouts of one prompt.

    Sample i of the request draws from a random stream that depends on (`seed`, `first_sample` + i)
    alone, so asking for 8, or for 4 and then 4 more with first_sample=4, draws the same tokens.
    """

    prompt_ids: tuple[int, ...]
    sampling: Sampling
    n: int = 1
    seed: int = 0
    first_sample: int = 0


class Finished(NamedTuple):
    """One rollout, with the index of its request and its number within that request."""

    request: int
    sample: int
    rollout: Rollout


class Generator(Protocol):
    """Prompts as token ids in, rollouts out, streamed as they finish."""

    def generate(self, requests: Sequence[Request]) -> Iterator[Finished]:
        """Yields every sample of every request exactly once, in order of finishing.

        Raises:
            PhikitError: a prompt is empty or longer than the model's context.
        """
        ...


def collect(generator: Generator, requests: Sequence[Request]) -> list[list[Rollout]]:
    """Generates, and returns the rollouts grouped by request, in the order of their numbers."""
    groups: list[list[Rollout | None]] = [[None] * r.n for r in requests]
    for done in generator.generate(requests):
        groups[done.request][done.sample] = done.rollout
    complete = [[r for r in group if r is not None] for group in groups]
    missing = sum(len(g) - len(c) for g, c in zip(groups, complete, strict=True))
    if missing:
        raise PhikitError(f"the generator lost {missing} rollouts of {len(requests)} requests")
    return complete
