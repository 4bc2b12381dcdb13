"""Pivotal tokens: searched solutions, token by token, with the curve of p(success) above them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from phikit.records import Sample
from phikit.reporting.curves import BOX, Axis, band, line
from phikit.reporting.run_dir import Done, Run

MOST_SOLUTIONS = 12
FEW = 20  # rollouts below which an untested token's change is too noisy to colour
Key = tuple[str, tuple[int, ...]]
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
    """Another token that rollouts took here; `p` is the share of its `n` rollouts that passed."""

    text: str
    probability: float
    p: float
    n: int
    accepted: bool


@dataclass(frozen=True)
class Token:
    """A token of a solution. `low` and `high` are the interval of a confirmed pivot's change.

    Attributes:
        change: of p(success) by this token; None where there is too little evidence to say.
        probability: of this token at its place.
    """

    text: str
    number: int
    probability: float
    before: float | None
    after: float | None
    change: float | None
    low: float | None = None
    high: float | None = None
    pivot: bool = False
    alternatives: tuple[Alternative, ...] = ()

    @property
    def strength(self) -> int:
        """How strongly to colour it: 0 (not at all) to 5 (a change of 0.5 and more)."""
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
        step = next(s for s in (5, 10, 20, 25, 50, 100, 200, 500, 1000, 10**9) if n / s <= 6)
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
    def columns(self) -> list[dict[str, Any]]:
        """Where the pivots stand on the curve, in units of the box."""
        return [
            {"x": BOX * self.x.share(t.number), "width": BOX / len(self.tokens), "token": t}
            for t in self.pivots
        ]


@dataclass(frozen=True)
class Search:
    """What one search stage found; `largest` are its largest confirmed pivots."""

    stage: Done
    solutions: tuple[Solution, ...]
    searched: int
    pivots: int
    up: int
    largest: tuple[tuple[Solution, Token], ...]


def searches(run: Run) -> list[Search]:
    """Every Pivotal Token Search of a run, the solutions with most to see first."""
    return [_search(run, stage) for stage in run.of("pivots.search")]


def _search(run: Run, stage: Done) -> Search:
    pivots = {pivot_key(p): p for p in stage.rows("pivots.jsonl")}
    traces = [row for row in stage.rows("searches.jsonl") if row["solutions"]]
    problems = _problems(run, stage) if traces else {}
    solutions = [
        solution(row, raw, problems.get(row["problem"]), pivots)
        for row in traces
        for raw in row["solutions"]
    ]
    # the eye wants two or three large changes in one solution, not one, and not ten
    ranked = sorted(solutions, key=lambda s: (-min(len(s.pivots), 3), -_largest(s)))
    changes = [(s, t) for s in solutions for t in s.pivots]
    changes.sort(key=lambda pair: -abs(pair[1].change or 0))
    return Search(
        stage=stage,
        solutions=tuple(ranked[:MOST_SOLUTIONS]),
        searched=len(solutions),
        pivots=len(pivots),
        up=sum(p["delta"] > 0 for p in pivots.values()),
        largest=tuple(changes[:10]),
    )


def _largest(solution: Solution) -> float:
    return max((abs(t.change or 0) for t in solution.pivots), default=0.0)


def _problems(run: Run, stage: Done) -> dict[str, Sample]:
    """The problems that were searched, by id."""
    given = run.by_name.get(stage.given("problems"))
    if given is None:
        return {}
    files = ("samples.parquet", "items.parquet")
    return {sample.id: sample for name in files for sample in given.records(name, Sample)}


def pivot_key(pivot: Mapping[str, Any]) -> Key:
    """What tells a row of pivots.jsonl from the others: its problem, prefix and token."""
    return pivot["problem"], (*pivot["prefix_ids"], pivot["token"])


def solution(
    row: Mapping[str, Any],
    raw: Mapping[str, Any],
    problem: Sample | None,
    pivots: Mapping[Key, Mapping[str, Any]],
) -> Solution:
    """One of the solutions (`raw`) of a row of searches.jsonl, with its confirmed pivots."""
    ids = raw["ids"]
    points = tuple(
        Point(p["position"], p["p"], p["lower"], p["upper"], p["n"]) for p in raw["points"]
    )
    known = {p.position: p for p in points}
    tested = {s["position"]: float(s["delta"]) for s in raw["suspects"]}
    prompt = tuple(row["prompt_ids"])
    tokens = []
    for i, text in enumerate(raw["tokens"]):
        pivot = pivots.get((row["problem"], (*prompt, *ids[: i + 1])))
        tokens.append(_token(text, i, raw["probability"][i], known, tested.get(i), pivot))
    users = [m["content"] for m in problem.messages if m["role"] == "user"] if problem else []
    return Solution(
        question=users[-1] if users else row["prompt"],
        gold=problem.answer if problem else "",
        passed=raw["passed"],
        tokens=tuple(tokens),
        points=points,
        rollouts=row["samples"],
    )


def _token(
    text: str,
    number: int,
    probability: float,
    known: Mapping[int, Point],
    tested: float | None,
    pivot: Mapping[str, Any] | None,
) -> Token:
    """A pivot's change is the confirmed one; a tested token's its test's; else the curve's."""
    before, after = known.get(number), known.get(number + 1)
    if pivot is not None:
        others: Sequence[Mapping[str, Any]] = pivot["alternatives"]
        return Token(
            text=text,
            number=number,
            probability=probability,
            before=_share(pivot["p_before"]),
            after=_share(pivot["p_after"]),
            change=pivot["delta"],
            low=pivot["lower"],
            high=pivot["upper"],
            pivot=True,
            alternatives=tuple(
                Alternative(a["token_text"], a["probability"], a["p"], a["n"], a["accepted"])
                for a in others
            ),
        )
    change = tested
    if change is None and before and after and min(before.n, after.n) >= FEW:
        change = after.p - before.p
    return Token(
        text, number, probability, before.p if before else None, after.p if after else None, change
    )


def _share(p: float) -> float:
    """An unbiased estimate of a probability may lie a little outside; what is shown does not."""
    return min(1.0, max(0.0, p))
