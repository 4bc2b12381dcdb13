"""What one question wants drawn."""

from __future__ import annotations

import math

from phikit.pivots.config import SearchConfig
from phikit.pivots.question import Drawn, QuestionSearch
from phikit.pivots.suspect import State
from phikit.verify.base import Problem


def drawn(*ids: int, passed: bool = True) -> Drawn:
    logprobs = (math.log(0.5),) * len(ids)
    return Drawn(ids, logprobs, logprobs, passed)


def test_a_token_given_for_one_solution_counts_there_though_another_wants_it_too() -> None:
    """Two solutions part at their second token. The first tries the other's token for its pair,
    and the second wants rollouts from that place as well, and more of them."""
    config = SearchConfig(solutions=2, filter_min=2, filter_max=2, max_tokens=4, measure=4)
    question = QuestionSearch(Problem("?", "", "none"), (9,), config)
    (start,) = question.plan(1.0)
    question.absorb(0, [(start, [drawn(1, 1, 1), drawn(1, 2, 2, passed=False)])], 1.0)
    one, two = question.solutions
    suspect = next(s for s in one.suspects if s.position == 1)
    suspect.state, suspect.explored, suspect.confirmed = State.MEASURE, 0, 0
    suspect.tried = [(one.path.branches(1)[0], 0)]
    for wanted in (4, 400):
        later = next(s for s in two.suspects if s.position == 2)
        later.config = config.model_copy(update={"first": wanted})
        (start,) = (s for s in question.plan(1.0) if s.ids == (1, 2))
        assert start.forced == 1 and start.n >= wanted
    question.absorb(1, [(start, [drawn(3, passed=False)] * 5)], math.inf)
    assert one.path.took(1, 2, since=0).n == 5
