"""What the scheduler hands out and keeps: tickets, samples in the making, events, figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from phikit.engine.base import Request
from phikit.engine.radix import Node
from phikit.engine.sampling import Top
from phikit.engine.texts import Watch
from phikit.records import Rollout


@dataclass(eq=False, slots=True)
class Ticket:
    """A submitted request. `left` counts its samples that are not finished."""

    number: int
    request: Request
    limit: int  # the most tokens that each sample may have
    left: int
    cancelled: bool = False


@dataclass(eq=False, slots=True)
class Sample:
    """A sample in the making.

    Attributes:
        tokens, logprobs, raw_logprobs: what was drawn before it had to wait; while it runs, they
            are in the columns of the batch.
        table: its blocks; path: the prefix tree's nodes along them.
        computed, goal: how many positions are there, and must be before it can run.
        waits: nodes that others are computing; copy: a part-filled block to copy, and where to.
        state: its slot, for models that have states; after: the sample whose state it forks.
        order: when it was admitted.
        watch: its stop texts and constraint, if it has any.
        reused: prompt tokens that were found in the cache when it was first admitted.
        guesses: how many tokens to guess of it, where tokens are guessed.
    """

    ticket: Ticket
    number: int
    key: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    raw_logprobs: list[float] = field(default_factory=list)
    table: list[int] = field(default_factory=list)
    path: list[Node] = field(default_factory=list)
    long: bool = False
    computed: int = 0
    goal: int = 0
    waits: list[Node] = field(default_factory=list)
    copy: tuple[Node, int] | None = None
    state: int = -1
    after: Sample | None = None
    order: int = 0
    watch: Watch | None = None
    reused: int = 0
    guesses: float = 4.0

    @property
    def adapter(self) -> str:
        """The LoRA adapter that the request names; empty for none."""
        return self.ticket.request.adapter

    @property
    def regime(self) -> tuple[bool, str]:
        """What the keys and values depend on beside the tokens."""
        return self.long, self.adapter

    @property
    def context(self) -> tuple[int, ...]:
        """The prompt and what has been drawn, as token ids."""
        return (*self.ticket.request.prompt_ids, *self.tokens)


class Token(NamedTuple):
    """One new token of a sample; `place` counts from the start of the completion."""

    ticket: Ticket
    sample: int
    place: int
    token: int
    logprob: float
    raw_logprob: float
    top: Top


class Done(NamedTuple):
    """A finished sample; of its prompt, `reused` tokens were found in the cache."""

    ticket: Ticket
    sample: int
    rollout: Rollout
    reused: int = 0


@dataclass(slots=True)
class Events:
    """What one step brought: `finished` samples, and by `tokens()` every new token.

    The columns are of one entry per new token, in the order of the rows.
    """

    finished: list[Done] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    place: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    token: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    logprob: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    raw_logprob: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    top: list[Top] | None = None

    def tokens(self) -> Iterator[Token]:
        """The step's events, one object for each token."""
        top = self.top or [()] * len(self.samples)
        columns = (self.place, self.token, self.logprob, self.raw_logprob)
        for sample, likeliest, *values in zip(
            self.samples, top, *(c.tolist() for c in columns), strict=True
        ):
            place, token, logprob, raw = values
            yield Token(sample.ticket, sample.number, place, token, logprob, raw, likeliest)


@dataclass(frozen=True, slots=True)
class Stats:
    """Where a scheduler stands.

    Attributes:
        blocks, block_size: of the cache, and positions of a block.
        used: blocks that rows hold; cached: blocks that only the prefix cache holds.
        waiting, entering, running: samples in the queue, being computed, and being generated.
        generated, prefilled: tokens so far.
        reused: prompt tokens that were found in the cache; recomputed: tokens computed anew after
            a sample had to give its blocks up; preempted: how often that was.
    """

    blocks: int
    block_size: int
    used: int
    cached: int
    waiting: int
    entering: int
    running: int
    generated: int
    prefilled: int
    reused: int
    recomputed: int
    preempted: int
