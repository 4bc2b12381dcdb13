"""What a search hands back: pivots with their evidence, traces to draw, totals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from phikit.pivots.config import SearchConfig
from phikit.pivots.evidence import Arm, Contrast, proportion
from phikit.pivots.path import Branch
from phikit.pivots.question import Drawn, QuestionSearch, Segment, Solution
from phikit.pivots.suspect import PIVOTAL, State, Suspect

# log-probabilities are float32, so a change that is as large as the token's probability allows
# (p is 0 or 1 after it) is known to this much and no better
_ROUNDING = 1e-6


@dataclass
class Totals:
    """Running totals of a search.

    `questions` were begun, `finished` ended, `kept` of them passed the filter; `prefilled` prompt
    tokens stood in `requests`; `verified` verdicts were computed, the others were known.
    """

    rounds: int = 0
    questions: int = 0
    finished: int = 0
    kept: int = 0
    samples: int = 0
    tokens: int = 0
    requests: int = 0
    prefilled: int = 0
    verified: int = 0

    def count(
        self, prompt_lengths: Sequence[int], rollouts: list[list[Drawn]], verified: int
    ) -> None:
        """Adds a round: prompts' lengths in tokens, what was drawn, how many were verified."""
        self.requests += len(prompt_lengths)
        self.prefilled += sum(prompt_lengths)
        self.samples += sum(len(group) for group in rollouts)
        self.tokens += sum(len(d.ids) for group in rollouts for d in group)
        self.verified += verified


@dataclass(frozen=True)
class Alternative:
    """Another token at a pivot's prefix.

    Attributes:
        p: its success probability, from `n` rollouts drawn for this estimate alone when the token
            was tried for the pair; else from those that happened to take it. Where the answer ends
            with the token, its verdict.
    """

    token: int
    probability: float
    p: float
    n: int
    lower: float
    upper: float
    accepted: bool


class Candidate(NamedTuple):
    """A token that was put to the test, with all that its report will need.

    One that was not confirmed counts in the number of tests, and keeps no prefix.
    """

    problem: str
    kind: str
    verifier: str
    prompt_ids: tuple[int, ...]
    prefix_ids: tuple[int, ...]
    token: int
    solution_passed: bool
    state: State
    log_e: float
    probability: float
    measured: Contrast | None
    fresh: Contrast | None
    p_after: float
    alternatives: tuple[Alternative, ...]

    @property
    def pivotal(self) -> bool:
        """Whether the change was measured, which is done only when it was confirmed."""
        return self.measured is not None


@dataclass(frozen=True)
class Pivot:
    """A confirmed pivot.

    Attributes:
        prefix_ids: prompt and completion before the token.
        position: how many completion tokens precede it.
        delta: p_after - p_before, unbiased: from a round whose size was fixed beforehand.
        lower, upper: delta's interval, from all rollouts since it became a candidate.
        n_after, n_astray: rollouts in that interval that took the token, and that took another.
        log_e: the log e-value against |Δp| ≤ gap.
        alternatives: the other tokens seen there; the accepted one makes the pair.
    """

    problem: str
    kind: str
    verifier: str
    prefix_ids: tuple[int, ...]
    position: int
    token: int
    probability: float
    solution_passed: bool
    delta: float
    lower: float
    upper: float
    p_before: float
    p_after: float
    n_after: int
    n_astray: int
    log_e: float
    alternatives: tuple[Alternative, ...]

    @property
    def accepted(self) -> Alternative | None:
        """The alternative that makes the pair, if one does."""
        return next((a for a in self.alternatives if a.accepted), None)

    @classmethod
    def of(cls, found: Candidate, level: float) -> Pivot:
        """The pivot of a measured candidate, with the interval of its change at this level."""
        assert found.measured is not None and found.fresh is not None
        lower, upper = found.fresh.interval(level)
        delta = found.measured.estimate
        arms = found.fresh.arms
        return cls(
            problem=found.problem,
            kind=found.kind,
            verifier=found.verifier,
            prefix_ids=(*found.prompt_ids, *found.prefix_ids),
            position=len(found.prefix_ids),
            token=found.token,
            probability=found.probability,
            solution_passed=found.solution_passed,
            delta=delta,
            lower=max(lower - _ROUNDING, -1.0),
            upper=min(upper + _ROUNDING, 1.0),
            p_before=found.p_after - delta,
            p_after=found.p_after,
            n_after=arms[0].n if len(arms) == 2 else 0,
            n_astray=arms[-1].n,
            log_e=found.log_e,
            alternatives=found.alternatives,
        )


@dataclass(frozen=True)
class SearchResult:
    """`tested` candidates were put to the test; `pivots` of them are confirmed."""

    pivots: list[Pivot]
    tested: int
    totals: Totals
    config: SearchConfig


def candidate(question: QuestionSearch, suspect: Suspect) -> Candidate:
    """Copies what must outlive the question's rollouts."""
    path, i = suspect.path, suspect.position
    pivotal = suspect.state in PIVOTAL
    measured = suspect.measured() if pivotal else None
    return Candidate(
        problem=question.problem.id,
        kind=question.problem.kind,
        verifier=question.problem.verifier,
        prompt_ids=question.prompt_ids if pivotal else (),
        prefix_ids=path.ids[:i] if pivotal else (),
        token=path.ids[i],
        solution_passed=path.passed,
        state=suspect.state,
        log_e=suspect.log_e,
        probability=float(path.probability[i]),
        measured=measured,
        fresh=suspect.fresh() if pivotal else None,
        p_after=suspect.p_after() if pivotal else 0.0,
        alternatives=_alternatives(suspect) if pivotal else (),
    )


def _alternatives(suspect: Suspect, most: int = 8) -> tuple[Alternative, ...]:
    """Those tried for the pair, by their own fresh rollouts; then the most frequent others."""
    level = 1.0 - suspect.config.coverage
    rows: list[Alternative] = []
    for attempt, since in suspect.tried:
        accepted = suspect.state is State.PAIRED and attempt is suspect.tried[-1][0]
        estimated = suspect.attempted(attempt, since)
        later = suspect.path.took(suspect.position, attempt.token, since)
        observed = later if later.n else estimated
        rows.append(_alternative(attempt, estimated, observed, level, accepted))
    tried = {a.token for a in rows}
    branches: list[Branch] = suspect.path.branches(suspect.position)
    for branch in [b for b in branches if b.token not in tried][: most - len(rows)]:
        rows.append(_alternative(branch, branch.arm, branch.arm, level, False))
    return tuple(rows)


def _alternative(
    branch: Branch, estimated: Arm, observed: Arm, level: float, accepted: bool
) -> Alternative:
    """p from `estimated` with an interval from `observed`; a final one's verdict is known."""
    p = estimated.mean
    lower, upper = (p, p) if branch.final else proportion(observed).interval(level)
    return Alternative(branch.token, branch.probability, p, estimated.n, lower, upper, accepted)


@dataclass(frozen=True)
class Trace:
    """A question's search, for people to look at.

    Attributes:
        outcome: "done" or "refused".
        p, n: success of the question in the filter's rollouts.
        solutions: for each solution a dict with its `ids`, `passed`, token `probability`; `points`
            (for every position with evidence: position, p, lower, upper, n; all rollouts count, so
            these describe, and prove nothing); the `tree` of segments; the `suspects`.
    """

    problem: str
    kind: str
    prompt_ids: tuple[int, ...]
    outcome: str
    p: float
    n: int
    samples: int
    tokens: int
    solutions: list[dict[str, Any]] = field(default_factory=list)


def trace(question: QuestionSearch) -> Trace:
    """What a question's search did: its record beside the pivots."""
    return Trace(
        problem=question.problem.id,
        kind=question.problem.kind,
        prompt_ids=question.prompt_ids,
        outcome=question.state,
        p=question.success.mean,
        n=question.success.n,
        samples=question.samples,
        tokens=question.tokens,
        solutions=[_solution(s, question.config) for s in question.solutions],
    )


def _solution(solution: Solution, config: SearchConfig) -> dict[str, Any]:
    path = solution.path
    points: list[dict[str, Any]] = []
    for i in range(len(path)):
        arm = path.reached(i)
        if arm.n:
            lower, upper = proportion(arm).interval(1.0 - config.coverage)
            points.append(
                {"position": i, "p": arm.mean, "lower": lower, "upper": upper, "n": arm.n}
            )
    end = float(path.passed)
    points.append({"position": len(path), "p": end, "lower": end, "upper": end, "n": 0})
    return {
        "ids": list(path.ids),
        "passed": path.passed,
        "probability": [round(float(p), 6) for p in path.probability],
        "points": points,
        "tree": _tree(solution.root),
        "suspects": [_suspect(s) for s in solution.suspects],
    }


def _tree(segment: Segment) -> dict[str, Any]:
    row: dict[str, Any] = {
        "low": segment.low, "high": segment.high, "outcome": segment.outcome
    }  # fmt: skip
    if segment.parts:
        row["parts"] = [_tree(part) for part in segment.parts]
    return row


def _suspect(suspect: Suspect) -> dict[str, Any]:
    contrast = suspect.path.contrast(suspect.position, suspect.position + 1)
    return {
        "position": suspect.position,
        "state": str(suspect.state),
        "delta": contrast.estimate,
        "n": sum(arm.n for arm in contrast.arms),
    }
