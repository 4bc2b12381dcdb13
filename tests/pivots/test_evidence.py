"""The statistics: against brute force, and under continuous monitoring."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phikit.pivots.evidence import Arm, Contrast, e_bh, normal_log_e_inside, proportion

counts = st.tuples(st.integers(0, 40), st.integers(0, 40))


def greatest_likelihood(contrast: Contrast, theta: float) -> float:
    """The greatest log-likelihood of two arms on c·q = theta, on a fine grid."""
    (c1, c0), (one, two) = contrast.coefficients, contrast.arms
    q0 = np.linspace(0.0, 1.0, 40_001)
    q1 = (theta - c0 * q0) / c1
    q0, q1 = q0[(q1 >= 0) & (q1 <= 1)], q1[(q1 >= 0) & (q1 <= 1)]
    total = np.zeros(len(q0))
    for count, q in (
        (one.passed, q1),
        (one.failed, 1 - q1),
        (two.passed, q0),
        (two.failed, 1 - q0),
    ):
        if count:
            with np.errstate(divide="ignore"):
                total += count * np.log(np.maximum(q, 0.0))
    return float(total.max())


@given(counts, counts, st.floats(0.05, 1.0), st.floats(-0.9, 0.9))
def test_the_e_value_is_the_least_over_the_null(
    one: tuple[int, int], two: tuple[int, int], scale: float, share: float
) -> None:
    contrast = Contrast((scale, -scale), (Arm(*one), Arm(*two)))
    theta = share * scale
    brute = sum(a.log_mixture() for a in contrast.arms) - greatest_likelihood(contrast, theta)
    assert contrast.log_e_at(theta) <= brute + 1e-6
    assert contrast.log_e_at(theta) == pytest.approx(brute, abs=0.05)


@given(counts, counts, st.floats(0.05, 1.0))
def test_the_interval_ends_where_the_e_value_reaches_the_level(
    one: tuple[int, int], two: tuple[int, int], scale: float
) -> None:
    contrast = Contrast((scale, -scale), (Arm(*one), Arm(*two)))
    lower, upper = contrast.interval(0.05)
    assert lower <= upper
    if sum(one) and sum(two):
        assert lower - 1e-9 <= contrast.estimate <= upper + 1e-9
    for end in (lower, upper):
        if abs(end) < scale * (1 - 1e-6):
            assert contrast.log_e_at(end) == pytest.approx(math.log(20), abs=1e-3)


def test_a_value_out_of_reach_is_refuted_outright() -> None:
    assert proportion(Arm(1, 1)).log_e_at(1.2) == math.inf
    assert Contrast((0.1, -0.1), (Arm(0, 0), Arm(0, 0))).log_e_at(0.2) == math.inf


def test_a_known_arm_is_an_offset() -> None:
    known = Contrast((-0.5,), (Arm(10, 10),), offset=0.5)
    assert known.estimate == pytest.approx(0.25)
    lower, upper = known.interval(0.05)
    assert 0.0 < lower < 0.25 < upper < 0.5


def test_evidence_grows_on_the_true_side() -> None:
    apart = Contrast((0.5, -0.5), (Arm(95, 5), Arm(5, 95)))
    alike = Contrast((0.5, -0.5), (Arm(50, 50), Arm(51, 49)))
    assert apart.log_e_outside(0.2) > math.log(1000) > 0 > apart.log_e_inside(0.2)
    assert alike.log_e_inside(0.2) > math.log(100) > 0 > alike.log_e_outside(0.2)
    assert apart.log_e_above(0.2) == apart.log_e_outside(0.2)
    assert apart.flipped().log_e_above(0.0) < 0


def test_the_normal_test_seldom_drops_what_lies_at_the_bound() -> None:
    """Looked at after every ten rollouts of an estimate that is truly at the bound."""
    rng = np.random.default_rng(5)
    level, dropped, runs = 0.2, 0, 1000
    for _ in range(runs):
        values = rng.normal(0.25, 0.5, 300)
        for n in range(10, 301, 10):
            inside = normal_log_e_inside(float(values[:n].mean()), 0.25 / n, 0.25)
            if inside >= -math.log(level):
                dropped += 1
                break
    assert 0 < dropped <= level * runs


@pytest.mark.parametrize("prior", [(0.5, 0.5), (6.5, 2.5)])
def test_the_sequence_covers_under_continuous_monitoring(prior: tuple[float, float]) -> None:
    """Looked at after every rollout, with the next arm chosen by what was seen (always the one that
    looks worse): the truth may be excluded at any time in at most a share `level` of the runs."""
    rng = np.random.default_rng(7)
    level, runs, broken = 0.1, 200, 0
    for _ in range(runs):
        q = rng.random(2)
        passed, n = [0, 0], [0, 0]
        theta = 0.6 * (q[0] - q[1])
        for _ in range(50):
            shares = [(passed[k] + 0.5) / (n[k] + 1) for k in (0, 1)]
            k = int(shares[1] < shares[0])
            n[k] += 1
            passed[k] += int(rng.random() < q[k])
            arms = tuple(Arm(passed[i], n[i] - passed[i], prior) for i in (0, 1))
            if Contrast((0.6, -0.6), arms).log_e_at(theta) >= -math.log(level):
                broken += 1
                break
    assert broken <= runs * level


@given(st.lists(st.floats(-3.0, 12.0), min_size=1, max_size=30), st.floats(0.01, 0.3))
def test_e_bh_is_the_largest_set_that_supports_itself(log_e: list[float], level: float) -> None:
    threshold = e_bh(log_e, level)
    rejected = [x for x in log_e if x >= threshold]
    ranked = sorted(log_e, reverse=True)
    sizes = [
        k for k in range(1, len(log_e) + 1) if ranked[k - 1] >= math.log(len(log_e) / level / k)
    ]
    assert len(rejected) == max(sizes, default=0)


def test_e_bh_keeps_the_false_discovery_rate() -> None:
    """Nulls at the very gap, e-values taken when they first reach the target or time is up."""
    rng = np.random.default_rng(3)
    shares = []
    for _ in range(40):
        log_e, null = [], []
        for i in range(12):
            null.append(i < 8)
            q1, q0 = (0.7, 0.3) if null[-1] else (0.95, 0.1)
            s1 = s0 = n = 0
            value = 0.0
            while n < 100 and value < math.log(60):
                n += 10
                s1, s0 = s1 + rng.binomial(10, q1), s0 + rng.binomial(10, q0)
                arms = (Arm(int(s1), int(n - s1)), Arm(int(s0), int(n - s0)))
                value = Contrast((0.5, -0.5), arms).log_e_outside(0.2)
            log_e.append(value)
        threshold = e_bh(log_e, 0.1)
        found = [is_null for x, is_null in zip(log_e, null, strict=True) if x >= threshold]
        shares.append(sum(found) / max(len(found), 1))
    assert np.mean(shares) <= 0.1
