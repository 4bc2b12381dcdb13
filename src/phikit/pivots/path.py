"""One solution, and what the rollouts of its question say about each of its prefixes.

Position i is the prefix of the first i solution tokens; p_i is its success probability. A rollout
starts at one position and follows the solution down to some *depth*, where it leaves it. It is a
draw from p_i for every position i from its start to its depth: given that it passed through, the
same model went on from there. So the rollouts of a question form a trie, of which a solution needs
only its own branch.

A stretch of tokens [low, high) with probability Π splits the rollouts that reached `low` into those
that went *through* it and those that went *astray* within, and as Π is known exactly,

    p_high - p_low = (1 - Π) · (q_through - q_astray),     q_through = p_high.

This is a difference of two independent arms, with far less variance than estimating both ends
apart. It also shows that |p_high - p_low| ≤ 1 - Π: a token more probable than 1 - gap cannot be a
pivot, whatever the rollouts say.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from phikit.pivots.evidence import JEFFREYS, Arm, Contrast


class Branch(NamedTuple):
    """An alternative to a solution's token, as seen in the rollouts that reached it.

    `final`: the completion ends with it, so that nothing can be drawn after it.
    """

    token: int
    probability: float
    arm: Arm
    final: bool


class Walk(NamedTuple):
    """A rollout as seen from one solution.

    Attributes:
        start: the position at which it was begun.
        depth: how many solution tokens it shares, counted from the solution's beginning.
        token: its first token off the solution; -1 if there is none.
        logprob: that token's log-probability under the sampling distribution.
        passed: its verdict.
        round: the round in which it was drawn.
        forced: it was begun with `token` given, so it says nothing of what precedes that token.
        final: it ended with `token`.
    """

    start: int
    depth: int
    token: int
    logprob: float
    passed: bool
    round: int
    forced: bool = False
    final: bool = False


class Path:
    """A solution with its evidence.

    Attributes:
        ids: the solution's tokens.
        probability: of each token under the sampling distribution, float64 [L].
        surprise: minus the model's own log-probability of each token, which places the splits.
        passed: the finished solution's own verdict, which is p at the last position.
    """

    def __init__(
        self,
        ids: Sequence[int],
        logprobs: Sequence[float],
        raw_logprobs: Sequence[float],
        passed: bool,
    ) -> None:
        self.ids = tuple(ids)
        self.passed = passed
        known = np.minimum(np.asarray(logprobs, np.float64), 0.0)
        self.probability = np.exp(known)
        self.surprise = np.maximum(-np.asarray(raw_logprobs, np.float64), 0.0)
        self._log_through = np.concatenate([[0.0], np.cumsum(known)])
        self.marks = {0, len(self.ids)}
        self._walks: list[Walk] = []
        self._chain: dict[int, tuple[float, float]] | None = None
        self._table: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, walk: Walk) -> None:
        """Takes in one more walk along the path."""
        self._walks.append(walk)
        self._table = self._chain = None

    def mark(self, *positions: int) -> None:
        """Makes these positions known to `change`."""
        self.marks.update(positions)
        self._chain = None

    @property
    def table(self) -> NDArray[np.int64]:
        """The walks as [N, 6]: start, depth, token, passed, round, forced."""
        if self._table is None:
            rows = [(w.start, w.depth, w.token, w.passed, w.round, w.forced) for w in self._walks]
            self._table = np.array(rows, np.int64).reshape(-1, 6)
        return self._table

    def shared(self, ids: Sequence[int]) -> int:
        """The length of the longest common beginning of these tokens and the solution."""
        limit = min(len(ids), len(self.ids))
        for i in range(limit):
            if ids[i] != self.ids[i]:
                return i
        return limit

    def through(self, low: int, high: int) -> float:
        """Π: the probability of the tokens [low, high) given the prefix before them."""
        return float(math.exp(self._log_through[high] - self._log_through[low]))

    def midpoint(self, low: int, high: int) -> int:
        """Where [low, high) is split: its cumulative log-probability is halved as nearly as can be,
        and both parts have a token."""
        mass = np.cumsum(self.surprise[low:high])
        inner = np.abs(mass[:-1] - 0.5 * mass[-1])
        return low + 1 + int(np.argmin(inner))

    def reached(self, position: int) -> Arm:
        """All evidence on p at one position."""
        table = self.table
        here = (table[:, 0] <= position) & (table[:, 1] >= position) & (table[:, 5] == 0)
        return _arm(table[here])

    def contrast(
        self, low: int, high: int, since: int = -1, until: int | None = None, informed: bool = False
    ) -> Contrast:
        """p_high - p_low from the rollouts of rounds `since` < round ≤ `until`.

        Args:
            informed: the bettor's priors come from the rounds up to `since`, at half their weight.
        """
        past, rows = self._split(since, until)
        apart = 1.0 - self.through(low, high)
        arms, coefficients, offset = [], [], 0.0
        if high == len(self.ids):
            offset = apart * self.passed
        else:
            arms.append(
                _through(rows, high, _prior(_through(past, high)) if informed else JEFFREYS)
            )
            coefficients.append(apart)
        astray = _prior(_astray(past, low, high)) if informed else JEFFREYS
        arms.append(_astray(rows, low, high, astray))
        coefficients.append(-apart)
        return Contrast(tuple(coefficients), tuple(arms), offset)

    def change(self, low: int, high: int) -> tuple[float, float]:
        """p_high - p_low by all evidence there is, and the estimate's variance.

        Between two marks [a, b) the rollouts go astray with a success rate q, or on to b:
        p_a = Π p_b + (1 - Π) q. From the known end backwards this gives p at every mark out of the
        rates alone, so that whatever is learnt of a later stretch also serves the earlier ones.
        """
        (p_low, v_low), (p_high, v_high) = self.chain[low], self.chain[high]
        share = self.through(low, high)
        rest = max(v_low - share * share * v_high, 0.0)
        return p_high - p_low, (1.0 - share) ** 2 * v_high + rest

    @property
    def chain(self) -> dict[int, tuple[float, float]]:
        """(p, its variance) at every mark."""
        if self._chain is None:
            marks = sorted(self.marks)
            p, variance = float(self.passed), 0.0
            self._chain = {marks[-1]: (p, variance)}
            for low, high in reversed(list(itertools.pairwise(marks))):
                arm, share = _astray(self.table, low, high), self.through(low, high)
                rate = arm.smooth
                apart = (1.0 - share) ** 2 * rate * (1.0 - rate) / (arm.n + 1)
                p = share * p + (1.0 - share) * rate
                variance = share * share * variance + apart
                self._chain[low] = (p, variance)
        return self._chain

    def against(self, position: int, other: int, probability: float, since: int) -> Contrast:
        """p(prefix + other) - p(prefix) from the rounds after `since`, for an alternative token.

        The prefix's own rollouts are the mixture of three arms: those that took the solution's
        token, the alternative, or any other.
        """
        _, rows = self._split(since, None)
        own = float(self.probability[position])
        rest = max(1.0 - own - probability, 0.0)
        here = (rows[:, 1] == position) & (rows[:, 0] <= position)
        took = rows[here & (rows[:, 2] == other)]
        others = rows[here & (rows[:, 2] != other) & (rows[:, 5] == 0)]
        arms = [_arm(took), _arm(others)]
        coefficients = [1.0 - probability, -rest]
        offset = 0.0
        if position + 1 == len(self.ids):
            offset = -own * self.passed
        else:
            arms.append(_through(rows, position + 1))
            coefficients.append(-own)
        return Contrast(tuple(coefficients), tuple(arms), offset)

    def branches(self, position: int) -> list[Branch]:
        """The other tokens that rollouts took at a position, most frequent first."""
        found: dict[int, list[Walk]] = {}
        for w in self._walks:
            if w.depth == position and w.start <= position and w.token >= 0:
                found.setdefault(w.token, []).append(w)
        rows = [
            Branch(
                token,
                min(math.exp(walks[0].logprob), 1.0),
                self.took(position, token),
                any(w.final for w in walks),
            )
            for token, walks in found.items()
        ]
        return sorted(rows, key=lambda b: (-b.arm.n, b.token))

    def took(self, position: int, token: int, since: int = -1, until: int | None = None) -> Arm:
        """The rollouts that left the solution at a position with this token."""
        _, rows = self._split(since, until)
        here = (rows[:, 0] <= position) & (rows[:, 1] == position) & (rows[:, 2] == token)
        return _arm(rows[here])

    def _split(self, since: int, until: int | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        table = self.table
        rounds = table[:, 4]
        later = rounds > since if until is None else (rounds > since) & (rounds <= until)
        return table[rounds <= since], table[later]


def _arm(rows: NDArray[np.int64], prior: tuple[float, float] = JEFFREYS) -> Arm:
    passed = int(rows[:, 3].sum())
    return Arm(passed, len(rows) - passed, prior)


def _through(rows: NDArray[np.int64], high: int, prior: tuple[float, float] = JEFFREYS) -> Arm:
    keep = (rows[:, 0] <= high) & (rows[:, 1] >= high) & (rows[:, 5] == 0)
    return _arm(rows[keep], prior)


def _astray(
    rows: NDArray[np.int64], low: int, high: int, prior: tuple[float, float] = JEFFREYS
) -> Arm:
    depth = rows[:, 1]
    keep = (rows[:, 0] <= low) & (depth >= low) & (depth < high) & (rows[:, 5] == 0)
    return _arm(rows[keep], prior)


def _prior(arm: Arm) -> tuple[float, float]:
    return 0.5 + 0.5 * arm.passed, 0.5 + 0.5 * arm.failed
