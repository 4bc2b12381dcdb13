"""The search of one question: which rollouts it wants next, and what it concludes from them.

A `QuestionSearch` never draws anything itself. Each round the driver asks it what to draw
(`plan`), draws that together with what all other questions want, and hands the rollouts back
(`absorb`). Its state is a function of the rollouts alone, so a stored search can be replayed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from phikit.pivots.config import SearchConfig
from phikit.pivots.evidence import SPREAD, Arm, normal_log_e_inside, proportion
from phikit.pivots.path import Path, Walk
from phikit.pivots.suspect import OPEN, Suspect, Wants, sizes
from phikit.verify.base import Problem


class Drawn(NamedTuple):
    """What is kept of one rollout: the tokens it added, their log-probabilities, its verdict."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    raw_logprobs: tuple[float, ...]
    passed: bool


class Start(NamedTuple):
    """Draw `n` rollouts that begin with these completion tokens.

    `forced` is the position of a token that was put there (it is then the last one of `ids`), or
    -1; `logprob` is that token's log-probability.
    """

    ids: tuple[int, ...]
    n: int
    forced: int = -1
    logprob: float = 0.0


@dataclass
class Segment:
    """A node of the subdivision: the tokens [low, high) of a solution.

    `outcome`: "open", "split", "below" (its ends were shown to agree), "empty" (no token in it is
    improbable enough to be a pivot) or "token" (it came down to one that may be).
    """

    low: int
    high: int
    outcome: str = "open"
    parts: list[Segment] = field(default_factory=list)


@dataclass
class Solution:
    """A solution under search; its first `seen` tokens are searched as another solution's."""

    path: Path
    root: Segment
    seen: int
    suspects: list[Suspect] = field(default_factory=list)


class QuestionSearch:
    """See the module's head.

    Attributes:
        state: "filter", "search", "done", or "refused" (too easy, too hard, or no solution).
        samples, tokens: generated for this question so far.
        drawn: how many rollouts were begun at each prefix: where its random stream stands.
        verdicts: by what of an answer they depend on.
    """

    def __init__(
        self,
        problem: Problem,
        prompt_ids: Sequence[int],
        config: SearchConfig,
        solution: Drawn | None = None,
    ) -> None:
        self.problem = problem
        self.prompt_ids = tuple(prompt_ids)
        self.config = config
        self.state = "filter"
        self.tokens = 0
        self.samples = 0
        self.solutions: list[Solution] = []
        self.drawn: dict[tuple[int, ...], int] = {}
        self.verdicts: dict[str, bool] = {}
        self._first: list[tuple[int, Drawn]] = []
        if solution is not None:
            self._open([solution])
            self._advance(-1, math.inf)

    @property
    def suspects(self) -> list[Suspect]:
        """The suspects of all its solutions."""
        return [suspect for s in self.solutions for suspect in s.suspects]

    @property
    def success(self) -> Arm:
        """The rollouts of the whole question that decided on its admission."""
        passed = sum(d.passed for _, d in self._first)
        return Arm(passed, len(self._first) - passed)

    # --- rounds ----------------------------------------------------------------------------------

    def plan(self, target: float) -> list[Start]:
        """What to draw in the next round; empty when the search of this question is over."""
        if self.state == "filter":
            n = len(self._first)
            return [Start((), min(max(self.config.filter_min, n // 2), self.config.filter_max - n)
                          if n else self.config.filter_min)]  # fmt: skip
        starts: dict[tuple[int, ...], Start] = {}
        for solution in self.solutions:
            for start in _starts(solution, target):
                # a token given for one solution may stand in another one: it is given all the same
                other = starts.get(start.ids, start)
                given = start if start.forced >= 0 else other
                starts[start.ids] = given._replace(n=max(start.n, other.n))
        return list(starts.values())

    def absorb(
        self, round_number: int, drawn: Sequence[tuple[Start, Sequence[Drawn]]], target: float
    ) -> None:
        """Takes in a round's rollouts and draws every conclusion they allow."""
        for start, rollouts in drawn:
            self.samples += len(rollouts)
            self.tokens += sum(len(d.ids) for d in rollouts)
            if self.state == "filter":
                self._first += [(round_number, d) for d in rollouts]
            else:
                for solution in self.solutions:
                    _record(solution.path, round_number, start, rollouts)
        if self.state == "filter":
            self._filter()
        if not drawn:
            self.abandon()
        elif self.state == "search":
            self._advance(round_number, target)

    def abandon(self) -> None:
        """Ends the search where it stands."""
        for suspect in self.suspects:
            suspect.abandon()
        self.state = "done" if self.solutions else "refused"

    # --- conclusions -----------------------------------------------------------------------------

    def _filter(self) -> None:
        low, high = self.config.low, self.config.high
        p = proportion(self.success)
        inside = low <= p.estimate <= high
        if inside:
            shown = min(p.log_e_at(low), p.log_e_at(high))
        else:
            shown = p.log_e_at(low if p.estimate < low else high)
        if shown >= -math.log(self.config.miss) or len(self._first) >= self.config.filter_max:
            if inside:
                self._open([d for _, d in self._first[: self.config.solutions]])
            else:
                self.state = "refused"

    def _open(self, solutions: Sequence[Drawn]) -> None:
        """Starts searching these solutions; the filter's other rollouts are evidence already."""
        self.state = "search"
        chosen: list[Drawn] = []
        for drawn in solutions:
            if drawn.ids not in [c.ids for c in chosen]:
                chosen.append(drawn)
        for drawn in chosen:
            path = Path(drawn.ids, drawn.logprobs, drawn.raw_logprobs, drawn.passed)
            seen = max((s.path.shared(path.ids) for s in self.solutions), default=0)
            self.solutions.append(Solution(path, Segment(0, len(path)), seen))
            for round_number, other in self._first:
                if other is not drawn:
                    _record(path, round_number, Start((), 1), [other])

    def _advance(self, round_number: int, target: float) -> None:
        for solution in self.solutions:
            _subdivide(solution, solution.root, self.config)
            for suspect in solution.suspects:
                suspect.advance(round_number, target)
        if self.tokens >= self.config.tokens_per_question:
            self.abandon()
        elif not any(s.state in OPEN for s in self.suspects) and not any(
            _open_segments(s.root) for s in self.solutions
        ):
            self.state = "done"


def _subdivide(solution: Solution, segment: Segment, config: SearchConfig) -> None:
    """Splits segments as far as the evidence asks for it (report §4.3.2, Figure 4).

    The report recurses where the ends differ by the gap. Here a segment is given up only when its
    ends are *shown* to agree; with look="everywhere", only when no token in it can be a pivot.
    """
    if segment.outcome == "split":
        for part in segment.parts:
            _subdivide(solution, part, config)
        return
    if segment.outcome != "open":
        return
    path, low, high = solution.path, segment.low, segment.high
    suspicious = [
        i for i in range(max(low, solution.seen), high)
        if 1.0 - path.probability[i] >= config.gap
    ]  # fmt: skip
    if not suspicious:
        segment.outcome = "empty"
        return
    if len(suspicious) == 1:
        segment.outcome = "token"
        solution.suspects.append(Suspect(path, suspicious[0], config))
        return
    if config.look == "ends":
        path.mark(low, high)
        through, astray = sizes(path, high, path.contrast(low, high))
        n = min(through, astray)
        if n < config.first:
            return
        delta, variance = path.change(low, high)
        count = len(suspicious)  # to drop many tokens at once asks for more evidence
        inside = normal_log_e_inside(
            delta, variance, config.gap + config.margin, SPREAD * math.sqrt(count)
        )
        if inside >= math.log(math.sqrt(count) / config.miss):
            segment.outcome = "below"
            return
        if abs(delta) < config.gap and n < config.explore_max:
            return
    segment.outcome = "split"
    middle = path.midpoint(low, high)
    segment.parts = [Segment(low, middle), Segment(middle, high)]
    for part in segment.parts:
        _subdivide(solution, part, config)


def _open_segments(segment: Segment) -> list[Segment]:
    if segment.outcome == "open":
        return [segment]
    return [s for part in segment.parts for s in _open_segments(part)]


def _starts(solution: Solution, target: float) -> list[Start]:
    """Where to begin rollouts so that every open test sees the arrivals it wants."""
    path, wants = solution.path, Wants()
    for segment in _open_segments(solution.root):
        low, high = segment.low, segment.high
        first = solution.suspects[0].config.first if solution.suspects else 1
        through, astray = sizes(path, high, path.contrast(low, high))
        goal = min(through, astray)
        goal += max(first, goal * 0.5)
        wants.arms(path, low, high, goal - through, goal - astray)
    for suspect in solution.suspects:
        suspect.wants(wants, target)
    starts: list[Start] = []
    begun: list[tuple[int, int]] = []
    for position in sorted(wants.arrive):
        passing = sum(n * path.through(before, position) for before, n in begun)
        n = math.ceil(wants.arrive[position] - passing - 0.5)
        if n > 0:
            begun.append((position, n))
            starts.append(Start(path.ids[:position], n))
    for (position, token), n in sorted(wants.forced.items()):
        logprob = next(
            math.log(b.probability) for s in solution.suspects if s.position == position
            for b, _ in s.tried if b.token == token
        )  # fmt: skip
        starts.append(Start((*path.ids[:position], token), n, forced=position, logprob=logprob))
    return starts


def _record(path: Path, round_number: int, start: Start, rollouts: Sequence[Drawn]) -> None:
    """Enters rollouts as evidence on a solution's prefixes, where they are any."""
    begun = len(start.ids)
    common = path.shared(start.ids)
    if start.forced >= 0 and common == start.forced:
        token, logprob = start.ids[start.forced], start.logprob
        for d in rollouts:
            path.add(Walk(common, common, token, logprob, d.passed, round_number, forced=True))
    elif common == begun:
        for d in rollouts:
            depth = begun + _common(d.ids, path.ids, begun)
            step = depth - begun
            off = step < len(d.ids)
            token, logprob = (d.ids[step], d.logprobs[step]) if off else (-1, 0.0)
            final = step + 1 == len(d.ids)
            path.add(Walk(begun, depth, token, logprob, d.passed, round_number, final=final))


def _common(ids: Sequence[int], path: Sequence[int], offset: int) -> int:
    limit = min(len(ids), len(path) - offset)
    for i in range(limit):
        if ids[i] != path[offset + i]:
            return i
    return limit
