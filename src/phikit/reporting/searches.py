"""Pivotal tokens: searched solutions, token by token, with the curve of p(success) above them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from phikit.reporting.curves import BOX, Axis, band, line
from phikit.reporting.run_dir import Done, Run

MOST_SOLUTIONS = 12
UNIT = Axis(0.0, 1.0, tuple((i / 4, i / 4) for i in range(5)))


@dataclass(frozen=True)
class Point:
    """p(success) after the first `position` tokens, with its interval, from `n` rollouts."""

    position: int
    p: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Alternative:
    """Another token that rollouts took here; `p` is its share of passes, among `n` rollouts."""

    text: str
    probability: float
    p: float | None
    n: int


@dataclass(frozen=True)
class Token:
    """A token of a solution. `change` of p(success) is None where it was not resolved.

    Attributes:
        strength: 0 to 5, how strongly to colour it.
    """

    text: str
    number: int
    before: float | None
    after: float | None
    change: float | None
    low: float | None
    high: float | None
    pivot: bool
    alternatives: tuple[Alternative, ...]

    @property
    def strength(self) -> int:
        return 0 if self.change is None else min(5, round(abs(self.change) * 10))

    @property
    def direction(self) -> str:
        return "" if not self.strength else "up" if (self.change or 0) > 0 else "down"


@dataclass(frozen=True)
class Solution:
    """A searched solution and the geometry of its curve over token positions."""

    question: str
    gold: str
    passed: bool
    tokens: tuple[Token, ...]
    points: tuple[Point, ...]
    rollouts: int

    @property
    def pivots(self) -> list[Token]:
        return [t for t in self.tokens if t.pivot]

    @property
    def x(self) -> Axis:
        n = max(1, len(self.tokens))
        step = next(s for s in (5, 10, 20, 25, 50, 100, 200, 500, 1000) if n / s <= 6)
        return Axis(0.0, float(n), tuple((float(i), i / n) for i in range(0, n + 1, step)))

    @property
    def y(self) -> Axis:
        return UNIT

    @property
    def curve(self) -> str:
        return line([p.position for p in self.points], [p.p for p in self.points], self.x, UNIT)

    @property
    def interval(self) -> str:
        xs = [p.position for p in self.points]
        return band(xs, [p.low for p in self.points], [p.high for p in self.points], self.x, UNIT)

    @property
    def steps(self) -> list[dict[str, Any]]:
        """Where the pivots' jumps stand on the curve, as shares of the box."""
        return [
            {
                "x": BOX * self.x.share(t.number + 0.5),
                "width": BOX / max(1, len(self.tokens)),
                "direction": "up" if (t.change or 0) > 0 else "down",
                "number": t.number,
            }
            for t in self.pivots
        ]


@dataclass(frozen=True)
class Search:
    """What one search stage found."""

    stage: Done
    solutions: tuple[Solution, ...]
    searched: int
    pivots: int
    up: int
    largest: tuple[tuple[Solution, Token], ...]
    summary: Mapping[str, Any]


def searches(run: Run) -> list[Search]:
    """Every Pivotal Token Search of a run, its most telling solutions first."""
    found = []
    for stage in run.of("pivots.search"):
        solutions = [s for row in stage.rows("searches.jsonl") for s in read_solutions(row)]
        ranked = sorted(
            enumerate(solutions),
            key=lambda pair: (-min(len(pair[1].pivots), 3), -_largest(pair[1]), pair[0]),
        )
        pivots = [(s, t) for s in solutions for t in s.pivots]
        pivots.sort(key=lambda pair: -abs(pair[1].change or 0))
        found.append(
            Search(
                stage=stage,
                solutions=tuple(s for _, s in ranked[:MOST_SOLUTIONS]),
                searched=len(solutions),
                pivots=len(pivots),
                up=sum((t.change or 0) > 0 for _, t in pivots),
                largest=tuple(pivots[:10]),
                summary=stage.summary,
            )
        )
    return found


def _largest(solution: Solution) -> float:
    return max((abs(t.change or 0) for t in solution.pivots), default=0.0)


def read_solutions(row: Mapping[str, Any]) -> list[Solution]:
    """The solutions of one line of searches.jsonl, one line per question.

    A line holds `question`, `gold` and `solutions`; each of these `tokens` (their texts), `passed`,
    `points` (`position`, `p`, `low`, `high`, `n`) and `changes` (`position`, `change`, `low`,
    `high`, `pivot`, `alternatives`).
    """
    return [_solution(row, solution) for solution in row.get("solutions", ())]


def _solution(row: Mapping[str, Any], raw: Mapping[str, Any]) -> Solution:
    points = sorted((Point(**p) for p in raw["points"]), key=lambda p: p.position)
    known = {p.position: p.p for p in points}
    changes = {c["position"]: c for c in raw["changes"]}
    tokens = tuple(_token(text, i, known, changes.get(i)) for i, text in enumerate(raw["tokens"]))
    return Solution(
        question=row["question"],
        gold=row["gold"],
        passed=raw["passed"],
        tokens=tokens,
        points=tuple(points),
        rollouts=int(raw.get("rollouts", 0)),
    )


def _token(
    text: str, number: int, known: Mapping[int, float], change: Mapping[str, Any] | None
) -> Token:
    found: Sequence[Mapping[str, Any]] = change["alternatives"] if change else ()
    return Token(
        text=text,
        number=number,
        before=known.get(number),
        after=known.get(number + 1),
        change=change["change"] if change else None,
        low=change["low"] if change else None,
        high=change["high"] if change else None,
        pivot=bool(change and change["pivot"]),
        alternatives=tuple(Alternative(**a) for a in found),
    )
