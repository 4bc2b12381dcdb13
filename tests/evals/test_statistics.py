"""The intervals are checked against known values and, by simulation, against their promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phikit.errors import PhikitError
from phikit.evals.statistics import (
    accuracy,
    item_means,
    mean_difference,
    over_seeds,
    paired,
    t_quantile,
    two_sided_p,
)
from phikit.records import Score, Verdict


def test_one_answer_per_item_is_wilson() -> None:
    estimate = accuracy([1.0] * 45 + [0.0] * 55)
    assert estimate.value == pytest.approx(0.45)
    # Wilson's 95 % interval of 45 out of 100, up to the n / (n − 1) of an estimated variance
    assert (estimate.low, estimate.high) == pytest.approx((0.3561, 0.5476), abs=1e-3)


def test_all_right_is_not_certainty() -> None:
    estimate = accuracy([1.0] * 20, samples=8)
    assert estimate.high == 1.0
    assert estimate.low == pytest.approx(20 / (20 + 1.959964**2))  # Wilson's, from 20 trials


def test_answers_of_one_item_are_not_independent() -> None:
    certain = accuracy([1.0, 0.0] * 50, samples=8)  # every item is always right or always wrong
    loose = accuracy([0.5] * 100, samples=8)
    assert certain.high - certain.low > 2.5 * (loose.high - loose.low)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60))
def test_the_interval_holds_the_estimate_and_stays_a_share(right: list[int]) -> None:
    estimate = accuracy([r / 4 for r in right], samples=4)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert estimate.high > estimate.low


@pytest.mark.parametrize(("a", "b"), [(2.0, 2.0), (0.5, 0.5), (8.0, 0.8)])
@pytest.mark.parametrize("items", [40, 200])
def test_accuracy_covers(a: float, b: float, items: int) -> None:
    """Items of beta-distributed difficulty, four answers each: 95 % of intervals hold the truth."""
    rng = np.random.default_rng([11, items, int(10 * a)])
    trials, hits = 2000, 0
    for _ in range(trials):
        means = rng.binomial(4, rng.beta(a, b, items)) / 4
        estimate = accuracy(means.tolist(), samples=4)
        hits += estimate.low <= a / (a + b) <= estimate.high
    assert 0.935 <= hits / trials <= 0.985


@pytest.mark.parametrize("gain", [0.0, 0.05])
@pytest.mark.parametrize(("items", "samples"), [(30, 1), (200, 1), (200, 4)])
def test_paired_difference_covers(gain: float, items: int, samples: int) -> None:
    rng = np.random.default_rng([12, items, samples, int(100 * gain)])
    trials, hits, false_alarms = 2000, 0, 0
    for _ in range(trials):
        p = rng.beta(1.0, 1.0, items) * (1 - gain)
        before = rng.binomial(samples, p) / samples
        after = rng.binomial(samples, p + gain) / samples
        found = mean_difference((after - before).tolist())
        hits += found.low <= gain <= found.high
        false_alarms += found.finding != "no measurable change"
        assert (found.p < 0.05) == (found.finding != "no measurable change")
    assert 0.935 <= hits / trials <= 0.985
    if gain == 0:
        assert false_alarms / trials <= 0.065


def test_pairing_cancels_what_makes_items_hard() -> None:
    rng = np.random.default_rng(13)
    p = np.concatenate([np.full(100, 0.05), np.full(100, 0.9)])
    before = dict(zip(map(str, range(200)), rng.binomial(8, p) / 8, strict=True))
    after = dict(zip(map(str, range(200)), rng.binomial(8, p + 0.05) / 8, strict=True))
    apart = accuracy(list(before.values()), 8)
    together = paired(before, after)
    assert together.finding == "helped"
    assert together.high - together.low < (apart.high - apart.low) / 2


def test_pooling_over_seeds_covers_on_shared_items() -> None:
    """Three models share the items: the pooled interval must not count an item three times."""
    rng = np.random.default_rng(14)
    trials, hits = 1000, 0
    effects = (0.02, 0.08, 0.05)
    for _ in range(trials):
        p = rng.beta(1.0, 1.0, 100) * 0.9
        twist = rng.choice([-0.04, 0.04], 100)  # the items' own effect, the same in every run
        runs = []
        for effect in effects:
            before = rng.binomial(2, p) / 2
            after = rng.binomial(2, np.clip(p + effect + twist, 0, 1)) / 2
            names = [str(i) for i in range(100)]
            runs.append(
                (dict(zip(names, before, strict=True)), dict(zip(names, after, strict=True)))
            )
        found = over_seeds(runs).pooled
        hits += found.low <= 0.05 <= found.high
    assert 0.92 <= hits / trials <= 0.985


def test_a_new_seed_is_the_stricter_claim() -> None:
    runs = []
    for gain in (1, 2, 5):
        before = {f"{gain}/{i}": 0.0 for i in range(20)}
        runs.append((before, {k: float(j < gain) for j, k in enumerate(before)}))
    found = over_seeds(runs)
    assert found.pooled.value == found.seeds.value == pytest.approx(8 / 60)
    assert found.pooled.n == 60 and found.seeds.n == 3
    assert found.seeds.finding == "no measurable change" and found.pooled.finding == "helped"


def test_a_few_items_that_agree_are_no_proof() -> None:
    assert mean_difference([1.0, 1.0]).finding == "no measurable change"
    assert mean_difference([0.0] * 100).p == 1.0
    assert mean_difference([0.0] * 100).high > 0


def test_item_means_keep_greedy_and_sampled_apart() -> None:
    def score(item: str, sample: int, passed: bool) -> Score:
        verdict = Verdict(passed=passed, score=float(passed), reason="", verifier="exact")
        return Score(task="t", item=item, sample=sample, verdict=verdict, cost=1)

    scores = [score("a", -1, True), score("a", 0, False), score("a", 1, True), score("b", 0, True)]
    assert item_means(scores) == {"a": 0.5, "b": 1.0}
    assert item_means(scores, greedy=True) == {"a": 1.0}


def test_student_t_against_tables() -> None:
    assert t_quantile(0.975, 2) == pytest.approx(4.302653, abs=1e-5)
    assert t_quantile(0.975, 30) == pytest.approx(2.042272, abs=1e-5)
    assert t_quantile(0.975, 10_000) == pytest.approx(1.960201, abs=1e-5)
    assert two_sided_p(2.228139, 10) == pytest.approx(0.05, abs=1e-6)
    assert math.isclose(two_sided_p(0.0, 5), 1.0)


def test_errors_name_what_differs() -> None:
    with pytest.raises(PhikitError, match="share 1 items and differ in 1"):
        paired({"a": 1.0, "b": 0.0}, {"a": 1.0})
    with pytest.raises(PhikitError, match="no scores"):
        accuracy([])
    with pytest.raises(PhikitError, match="no runs"):
        over_seeds([])
