"""Splits, and what rollouts that pass through say, against exactly known probabilities."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phikit.pivots.exact import Automaton, Instance, instances
from phikit.pivots.path import Path, Walk
from phikit.pivots.question import Drawn, Start, _record


@given(st.lists(st.floats(-8.0, 0.0), min_size=2, max_size=40))
def test_the_split_halves_the_log_probability(logprobs: list[float]) -> None:
    path = Path(range(len(logprobs)), logprobs, logprobs, True)
    low, high = 0, len(logprobs)
    middle = path.midpoint(low, high)
    assert low < middle < high
    total = sum(logprobs)
    off = [abs(sum(logprobs[:m]) - total / 2) for m in range(1, high)]
    assert off[middle - 1] == pytest.approx(min(off), abs=1e-9)


def test_the_split_is_not_the_index_midpoint() -> None:
    logprobs = [-0.01] * 7 + [-5.0, -5.0]
    assert Path(range(9), logprobs, logprobs, True).midpoint(0, 9) == 8


def test_no_token_moves_p_by_more_than_its_improbability() -> None:
    for instance in instances(12, seed=11):
        probability = np.exp(instance.solution.logprobs)
        assert (np.abs(instance.deltas) <= 1.0 - probability + 1e-9).all()


def evidence(instance: Instance, starts: list[int], n: int, seed: int) -> Path:
    solution, model = instance.solution, instance.model
    path = Path(solution.ids, solution.logprobs, solution.raw_logprobs, solution.passed)
    rng = np.random.default_rng(seed)
    for number, start in enumerate(starts):
        begun = solution.ids[:start]
        _record(path, number, Start(begun, n), draw(model, begun, n, rng))
    return path


def draw(model: Automaton, begun: tuple[int, ...], n: int, rng: np.random.Generator) -> list[Drawn]:
    ids, logprobs = model.sample(begun, rng.random((n, model.length + 1)))
    return [
        Drawn(tuple(i), tuple(x), (), model.passed((*begun, *i)))
        for i, x in zip(ids.tolist(), logprobs.tolist(), strict=True)
    ]


def test_rollouts_that_pass_through_are_unbiased() -> None:
    """Rollouts begun earlier, pooled at every later position: z-scores against the truth."""
    scores = []
    for i, instance in enumerate(instances(8, seed=5)):
        path = evidence(instance, [0, 10, 20, 30], 400, seed=i)
        curve = instance.model.curve(instance.solution.ids)
        for position in range(1, len(path)):
            arm, p = path.reached(position), curve[position]
            if position not in (10, 20, 30) and arm.n >= 30 and 0.05 < p < 0.95:
                scores.append((arm.mean - p) / math.sqrt(p * (1 - p) / arm.n))
    assert len(scores) > 50
    assert abs(np.mean(scores)) < 0.5  # neighbours share rollouts: about 20 independent groups
    assert 0.6 < np.std(scores) < 1.4


def test_the_contrast_estimates_the_change_without_bias() -> None:
    errors = []
    for i, instance in enumerate(instances(8, seed=6)):
        path = evidence(instance, list(range(0, 40, 2)), 60, seed=i)
        curve = instance.model.curve(instance.solution.ids)
        for low, high in itertools.pairwise(range(0, 40, 5)):
            contrast = path.contrast(low, high)
            if min(a.n for a in contrast.arms) >= 20:
                errors.append(contrast.estimate - (curve[high] - curve[low]))
    assert len(errors) > 30
    assert abs(np.mean(errors)) < 3 * np.std(errors) / math.sqrt(len(errors))
    assert np.std(errors) < 0.12


def test_the_last_position_is_the_verdict_itself() -> None:
    logprobs = [math.log(0.5)] * 3
    path = Path([1, 2, 3], logprobs, logprobs, True)
    for passed in (True, False, False, False):
        path.add(Walk(0, 2, 9, -1.0, passed, 0))
    contrast = path.contrast(2, 3)
    assert contrast.estimate == pytest.approx(0.5 * (1.0 - 0.25))
    assert len(contrast.arms) == 1


def test_evidence_is_cut_by_round_and_forced_rollouts_stay_apart() -> None:
    logprobs = [math.log(0.5)] * 4
    path = Path([1, 2, 3, 4], logprobs, logprobs, True)
    path.add(Walk(0, 1, 9, -1.0, True, 0))
    path.add(Walk(0, 3, 8, -1.0, False, 1))
    path.add(Walk(1, 1, 9, -1.0, True, 2, forced=True))
    assert path.reached(1).n == 2
    assert [a.n for a in path.contrast(1, 2).arms] == [1, 1]
    assert [a.n for a in path.contrast(1, 2, since=0).arms] == [1, 0]
    assert [a.n for a in path.contrast(1, 2, until=0).arms] == [0, 1]
    assert path.contrast(1, 2, since=0, informed=True).arms[1].prior == (1.0, 0.5)
    assert path.took(1, 9).n == 2
    assert [b.token for b in path.branches(1)] == [9]


def test_an_alternative_is_held_against_the_whole_prefix() -> None:
    """p(v) - p(prefix) from three arms, at their true shares."""
    probability = [0.5, 0.5]
    logprobs = [math.log(x) for x in probability]
    path = Path([1, 2], logprobs, logprobs, True)
    rows = [(5, 0.3, 8, 2), (6, 0.2, 1, 9)]
    for token, p, passed, failed in rows:
        for i in range(passed + failed):
            path.add(Walk(0, 0, token, math.log(p), i < passed, 0))
    for i in range(10):
        path.add(Walk(1, 1, 7, -1.0, i < 4, 0))
    contrast = path.against(0, 5, 0.3, since=-1)
    before = 0.5 * 0.4 + 0.3 * 0.8 + 0.2 * 0.1
    assert contrast.estimate == pytest.approx(0.8 - before)


def test_the_chain_joins_all_evidence_without_bias() -> None:
    """Changes at every other token, from rollouts begun anywhere: z-scores against the truth, and
    less variance than the two arms at the token alone have."""
    scores, chain, alone = [], 0.0, 0.0
    for i, instance in enumerate(instances(12, seed=8)):
        starts = list(range(0, 40, 2))
        path = evidence(instance, starts, 40, seed=i)
        path.mark(*range(0, 41))
        curve = instance.model.curve(instance.solution.ids)
        for position in starts:
            delta, variance = path.change(position, position + 1)
            one, two = path.contrast(position, position + 1).arms
            if min(one.n, two.n) >= 5 and path.through(position, position + 1) < 0.9:
                scores.append((delta - instance.deltas[position]) / math.sqrt(variance))
                chain += variance
                alone += sum(
                    (1 - path.through(position, position + 1)) ** 2
                    * a.smooth
                    * (1 - a.smooth)
                    / a.n
                    for a in (one, two)
                )
        assert path.chain[0][0] == pytest.approx(curve[0], abs=0.2)
    assert len(scores) > 60
    assert abs(np.mean(scores)) < 0.4
    assert 0.5 < np.std(scores) < 1.3
    assert chain < alone


def test_a_token_too_improbable_for_a_float_leaves_the_rest_in_order() -> None:
    path = Path((1, 2, 3), (-0.1, -800.0, -0.2), (-0.1, -800.0, -0.2), True)
    assert path.through(1, 2) == 0.0
    assert path.through(2, 3) == pytest.approx(math.exp(-0.2))
