"""`phikit pivots show`: a search as one self-contained page that a person can walk through.

The page holds the searched solutions as data and draws the chosen one: its tokens shaded by their
change of p(success), the curve with its interval above them, how many rollouts speak for each
prefix, and the tree of segments by which the search went down.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phikit.errors import PhikitError
from phikit.files import write_atomic
from phikit.pivots import domains, statistics
from phikit.pivots.read import SearchFolder, search_folder
from phikit.records import Sample
from phikit.reporting.pages import template
from phikit.reporting.searches import Key, Solution, pivot_key, solution


@dataclass(frozen=True)
class Shown:
    """A solution with what the page's list says of it."""

    solution: Solution
    kind: str
    domain: str
    tree: Mapping[str, Any]

    @property
    def largest(self) -> float:
        return max((abs(t.change or 0.0) for t in self.solution.pivots), default=0.0)


def write(folder: Path, to: Path, most: int = 200) -> Path:
    """Writes the page of a finished search; returns its path.

    Args:
        most: solutions on the page; those with most and largest pivots come first.

    Raises:
        PhikitError: the folder holds no finished search, or none of its questions was searched.
    """
    found = search_folder(folder)
    chosen = _chosen(found, most)
    if not chosen:
        raise PhikitError(
            f"{folder}: no question passed the filter, so there is no solution to show",
            "search problems of which the model solves about half, or widen low and high",
        )
    page = template("pivots.html").render(
        name=folder.resolve().name,
        summary=found.record["summary"],
        config=found.record["config"],
        cost=found.record.get("cost", {}),
        searched=sum(1 for _ in _solutions(found)),
        kinds=sorted({s.kind for s in chosen}),
        domains={k: n for k, n in domains.count(found.pairs()).items() if n},
        solutions=[_data(s) for s in chosen],
        tables=statistics.tables(statistics.measure([found])) if found.pivots else [],
    )
    write_atomic(to, page)
    return to


def _chosen(found: SearchFolder, most: int) -> list[Shown]:
    """The richest solutions; memory holds at most twice as many as are shown."""
    best: list[Shown] = []
    for shown in _solutions(found):
        best.append(shown)
        if len(best) >= 2 * most:
            best = _ranked(best)[:most]
    return _ranked(best)[:most]


def _ranked(solutions: list[Shown]) -> list[Shown]:
    return sorted(solutions, key=lambda s: (-len(s.solution.pivots), -s.largest))


def _solutions(found: SearchFolder) -> Iterable[Shown]:
    pivots: dict[Key, Mapping[str, Any]] = {pivot_key(p): p for p in found.pivots}
    problems = found.problems()
    for trace in found.traces():
        problem: Sample | None = problems.get(trace["problem"])
        verifier = problem.verifier if problem else ""
        for raw in trace["solutions"]:
            yield Shown(
                solution(trace, raw, problem, pivots),
                trace["kind"],
                domains.domain(verifier, trace["kind"]),
                raw["tree"],
            )


def _data(shown: Shown) -> dict[str, Any]:
    """A solution as compact JSON for the page's script."""
    s = shown.solution
    return {
        "question": s.question,
        "gold": s.gold,
        "passed": s.passed,
        "kind": shown.kind,
        "rollouts": s.rollouts,
        "tokens": [_token(t) for t in s.tokens],
        "points": [[p.position, _p(p.p), _p(p.low), _p(p.high), p.n] for p in s.points],
        "tree": _tree(shown.tree, 0),
    }


def _token(t: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"t": t.text, "q": _p(t.probability)}
    if t.change is not None:
        row |= {"d": _p(t.change), "b": _p(t.before), "a": _p(t.after)}
    if t.pivot:
        row |= {"lo": _p(t.low), "hi": _p(t.high)}
        row["alt"] = [
            {"t": a.text, "q": _p(a.probability), "p": _p(a.p), "n": a.n, "ok": a.accepted}
            for a in t.alternatives
        ]
    return row


def _tree(segment: Mapping[str, Any], depth: int) -> list[list[Any]]:
    """The segments as rows [depth, low, high, outcome]."""
    rows: list[list[Any]] = [[depth, segment["low"], segment["high"], segment["outcome"]]]
    for part in segment.get("parts", ()):
        rows += _tree(part, depth + 1)
    return rows


def _p(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
