"""What the pivots of finished searches are: which tokens, where in a solution, how large.

Every share stands beside the same share of all tokens of the searched solutions, which are what a
pivot was found among.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from phikit.errors import PhikitError
from phikit.pivots import domains
from phikit.pivots.read import Row, SearchFolder

SIZES = (0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
PARTS = 5  # of a solution, by the tokens before
IMPROBABLE = 0.8  # a token above it cannot move p by the usual gap

_CLASSES = (
    ("number", re.compile(r"\s*[-−]?[\d.,]*\d[\d.,]*")),
    ("sign of arithmetic", re.compile(r"\s*[-+*/=<>×÷−%^()]+")),
    ("end of line or answer", re.compile(r"\s*\n\s*|<\|[^|]*\|>")),
    ("punctuation or space", re.compile(r"[\s\W_]+")),
    ("name or capitalised word", re.compile(r"\s*[^\W\d_a-z][^\W\d_]*")),
)
WORD = "other word or part of one"


def token_class(text: str) -> str:
    """The class of a token by its text."""
    return next((name for name, form in _CLASSES if form.fullmatch(text)), WORD)


@dataclass
class Share:
    """How often something is so among pivots, and among all tokens of the solutions."""

    pivots: int = 0
    tokens: int = 0


@dataclass
class Statistics:
    """Counts over one or more searches.

    Attributes:
        classes, parts, probable: per token class; per fifth of the solution; whether the model
            itself gave the token less than one half.
        sizes: pivots per |Δp|, by SIZES, [helping, harming].
        tokens: the commonest pivot tokens: text → their changes.
        kinds: pivots per kind of problem, [helping, harming], and questions searched.
    """

    pivots: int = 0
    helping: int = 0
    questions: int = 0
    searched: int = 0
    solutions_with: int = 0
    solution_tokens: int = 0
    improbable: int = 0
    in_right: list[int] = field(default_factory=lambda: [0, 0])
    before: list[float] = field(default_factory=list)
    changes: list[float] = field(default_factory=list)
    classes: dict[str, Share] = field(default_factory=lambda: defaultdict(Share))
    parts: list[Share] = field(default_factory=lambda: [Share() for _ in range(PARTS)])
    unlikely: Share = field(default_factory=Share)
    sizes: list[list[int]] = field(default_factory=lambda: [[0, 0] for _ in SIZES[:-1]])
    tokens: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    kinds: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0, 0]))
    pairs: Counter[str] = field(default_factory=Counter)


def measure(folders: Iterable[SearchFolder]) -> Statistics:
    """The statistics of finished searches, put together.

    Raises:
        PhikitError: none of them confirmed a pivot.
    """
    s = Statistics()
    paths = []
    for folder in folders:
        paths.append(str(folder.path))
        for trace in folder.traces():
            s.questions += 1
            s.kinds[trace["kind"]][2] += bool(trace["solutions"])
            for solution in trace["solutions"]:
                _count_solution(s, solution)
        _count_pivots(s, folder.pivots, _by_problem(folder))
        s.pairs.update({k: n for k, n in domains.count(folder.pairs()).items() if n})
    if not s.pivots:
        raise PhikitError(
            f"{', '.join(paths)}: no pivot was confirmed, so there is nothing to count"
        )
    return s


def _by_problem(folder: SearchFolder) -> dict[str, list[Row]]:
    """The solutions of each problem in which a pivot was found, without the others."""
    wanted = {p["problem"] for p in folder.pivots}
    return {t["problem"]: t["solutions"] for t in folder.traces() if t["problem"] in wanted}


def _count_solution(s: Statistics, solution: Row) -> None:
    s.searched += 1
    length = len(solution["ids"])
    s.solution_tokens += length
    for i, (text, p) in enumerate(zip(solution["tokens"], solution["probability"], strict=True)):
        s.classes[token_class(text)].tokens += 1
        s.parts[i * PARTS // length].tokens += 1
        s.improbable += p < IMPROBABLE
        s.unlikely.tokens += p < 0.5


def _count_pivots(s: Statistics, pivots: Sequence[Row], solutions: dict[str, list[Row]]) -> None:
    with_pivot = set()
    for p in pivots:
        helps = p["delta"] > 0
        index, length = _place(p, solutions[p["problem"]])
        with_pivot.add((p["problem"], index))
        s.pivots += 1
        s.helping += helps
        s.in_right[not helps] += p["solution_passed"]
        s.before.append(p["p_before"])
        s.changes.append(p["delta"])
        s.classes[token_class(p["token_text"])].pivots += 1
        s.parts[p["position"] * PARTS // length].pivots += 1
        s.unlikely.pivots += p["probability"] < 0.5
        s.tokens[p["token_text"]].append(p["delta"])
        s.kinds[p["kind"]][not helps] += 1
        size = sum(abs(p["delta"]) >= edge for edge in SIZES[1:-1])
        s.sizes[size][not helps] += 1
    s.solutions_with += len(with_pivot)


def _place(pivot: Row, solutions: Sequence[Row]) -> tuple[int, int]:
    """The solution that the pivot stands in, the one that begins with its tokens: index, length."""
    position = pivot["position"]
    own = [*pivot["prefix_ids"][len(pivot["prefix_ids"]) - position :], pivot["token"]]
    begins = (s["ids"][: position + 1] == own for s in solutions)
    index = list(begins).index(True)
    return index, len(solutions[index]["ids"])


# --- For people ----------------------------------------------------------------------------------


def tables(s: Statistics, most: int = 12) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, column heads, rows of cells) for each question one may ask of them."""
    harming = s.pivots - s.helping
    sizes = [
        [f"{low:.1f} to {high:.1f}", str(up), str(down), _percent(up + down, s.pivots)]
        for low, high, (up, down) in zip(SIZES, SIZES[1:], s.sizes, strict=False)
    ]
    classes = [
        [name, str(c.pivots), _percent(c.pivots, s.pivots), _percent(c.tokens, s.solution_tokens)]
        for name, c in sorted(s.classes.items(), key=lambda item: -item[1].pivots)
    ]
    parts = [
        [f"{100 * i // PARTS} to {100 * (i + 1) // PARTS} %", str(part.pivots),
         _percent(part.pivots, s.pivots), _percent(part.tokens, s.solution_tokens)]
        for i, part in enumerate(s.parts)
    ]  # fmt: skip
    common = sorted(s.tokens.items(), key=lambda item: (-len(item[1]), item[0]))[:most]
    tokens = [
        [repr(text), str(len(d)), str(sum(x > 0 for x in d)), str(sum(x < 0 for x in d)),
         f"{median(map(abs, d)):.2f}"]
        for text, d in common
    ]  # fmt: skip
    kinds = [
        [kind, str(asked), str(up), str(down), f"{(up + down) / asked:.2f}" if asked else "–"]
        for kind, (up, down, asked) in sorted(s.kinds.items(), key=lambda item: -sum(item[1][:2]))
        if asked
    ]
    whole = [
        ["confirmed pivots", f"{s.pivots} ({s.helping} help, {harming} harm)"],
        ["searched solutions", f"{s.searched}, of {s.questions} problems tried"],
        ["solutions with a pivot", _percent(s.solutions_with, s.searched)],
        ["tokens of searched solutions", f"{s.solution_tokens:,}"],
        ["improbable enough to be one", _percent(s.improbable, s.solution_tokens)],
        ["median |Δp|", f"{median(map(abs, s.changes)):.2f}"],
        ["median p before", f"{median(s.before):.2f}"],
        ["pivots with a probability below one half", _percent(s.unlikely.pivots, s.pivots)],
        ["tokens with one", _percent(s.unlikely.tokens, s.solution_tokens)],
        ["helping ones in right solutions", _percent(s.in_right[0], s.helping)],
        ["harming ones in right solutions", _percent(s.in_right[1], harming)],
    ]  # fmt: skip
    return [
        ("In all", ["", ""], whole),
        ("How large", ["|Δp|", "help", "harm", "share"], sizes),
        ("Which tokens", ["class", "pivots", "share", "of all tokens"], classes),
        ("The commonest", ["token", "pivots", "help", "harm", "median |Δp|"], tokens),
        ("Where in a solution", ["part", "pivots", "share", "of all tokens"], parts),
        ("In which problems", ["kind", "searched", "help", "harm", "a solution"], kinds),
        ("Pairs", ["class", "pairs"], [[name, str(n)] for name, n in s.pairs.items()]),
    ]


def text(s: Statistics) -> str:
    """The tables as text."""
    return "\n\n".join(_table(*table) for table in tables(s))


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    grid = [list(heads), *rows] if any(heads) else list(rows)
    widths = [max(len(row[i]) for row in grid) for i in range(len(heads))]
    lines = [
        "  " + "  ".join(
            cell.ljust(w) if i == 0 or not any(heads) else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in grid
    ]  # fmt: skip
    return "\n".join([title, *lines])


def as_json(s: Statistics) -> dict[str, Any]:
    """The tables as objects: title → rows by column."""
    found: dict[str, Any] = {}
    for title, heads, rows in tables(s):
        named = [dict(zip(heads, row, strict=True)) for row in rows]
        found[title] = named if any(heads) else dict(rows)
    return found


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "–"
