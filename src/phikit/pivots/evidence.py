"""Anytime-valid evidence about success probabilities.

Everything the search wants to know is a linear function θ = Σ c_k q_k of a few success
probabilities q_k, one per *arm*: a condition under which rollouts were drawn, each passing or
failing. For the true q the betting process

    E_t(q) = Π_k  ∫ Beta(dr; a_k, b_k) r^passed (1-r)^failed  /  q_k^passed (1-q_k)^failed

is a non-negative martingale that starts at 1, however the next arm to sample is chosen (the
beta-binomial mixture; Robbins 1970, Waudby-Smith & Ramdas 2024 §B). By Ville's inequality it ever
reaches 1/α with probability at most α. Hence

- the e-value against a null hypothesis is the least E_t(q) over the q that satisfy it, and
- the q with E_t(q) < 1/α are a confidence sequence; θ's interval is its projection.

Both need the greatest likelihood on a plane c·q = d. With a multiplier λ each arm's maximiser is
the root of a quadratic, and c·q falls as λ rises, so one root search in λ gives either answer.

All e-values are natural logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

JEFFREYS = (0.5, 0.5)
SPREAD = 0.05  # the prior's standard deviation of an ordinary token's Δp
ALIKE = 0.85  # the bettor's share on "all arms are alike" against "they differ by the gap"


@dataclass(frozen=True, slots=True)
class Arm:
    """Passed and failed rollouts under one condition, and the beta prior the bettor started with.

    The prior may depend on anything seen before these rollouts were drawn, and on nothing since.
    """

    passed: int
    failed: int
    prior: tuple[float, float] = JEFFREYS

    @property
    def n(self) -> int:
        """Samples so far."""
        return self.passed + self.failed

    @property
    def mean(self) -> float:
        """The share that passed; one half when there are no rollouts."""
        return self.passed / self.n if self.n else 0.5

    @property
    def smooth(self) -> float:
        """The share that passed, drawn a little towards one half."""
        return (self.passed + 0.5) / (self.n + 1)

    def log_mixture(self) -> float:
        """Log of the mean likelihood of these counts under the prior (a beta distribution)."""
        a, b = self.prior
        return _log_beta(a + self.passed, b + self.failed) - _log_beta(a, b)

    def log_likelihood(self, q: float) -> float:
        """Log-likelihood of these counts when a sample passes with probability `q`."""
        return _x_log_y(self.passed, q) + _x_log_y(self.failed, 1.0 - q)

    def tilted(self, u: float) -> float:
        """The q in [0, 1] that maximises the log-likelihood minus u·q."""
        b = self.n + u
        root = math.sqrt(max(b * b - 4.0 * u * self.passed, 0.0))
        if b >= 0.0:
            return 2.0 * self.passed / (b + root) if b + root > 0.0 else 0.5 * (u == 0.0)
        return (b - root) / (2.0 * u)


@dataclass(frozen=True, slots=True)
class Contrast:
    """θ = offset + Σ coefficient · q over the arms."""

    coefficients: tuple[float, ...]
    arms: tuple[Arm, ...]
    offset: float = 0.0

    @property
    def estimate(self) -> float:
        """θ with the observed shares."""
        return self.offset + sum(c * a.mean for c, a in zip(self.coefficients, self.arms))  # noqa: B905

    def flipped(self) -> Contrast:
        """-θ."""
        return Contrast(tuple(-c for c in self.coefficients), self.arms, -self.offset)

    def log_e_at(self, theta: float) -> float:
        """Log e-value against the hypothesis that θ has exactly this value."""
        reach = sorted(
            (self.offset + sum(min(c, 0.0) for c in self.coefficients),
             self.offset + sum(max(c, 0.0) for c in self.coefficients))
        )  # fmt: skip
        if not reach[0] <= theta <= reach[1]:
            return math.inf
        slope = _root(lambda u: self._at(u)[0] - theta)
        return self._log_mixture() - self._at(slope)[1]

    def log_e_outside(self, gap: float) -> float:
        """Log e-value against |θ| ≤ gap: large when θ is shown to be beyond the gap."""
        theta = self.estimate
        return self.log_e_at(math.copysign(gap, theta)) if abs(theta) > gap else self._log_e_best()

    def log_e_inside(self, gap: float) -> float:
        """Log e-value against |θ| ≥ gap: large when θ is shown to be below the gap.

        Most of the bettor's money expects what is most common, that all arms are alike; the rest
        expects nothing. None of it knows an informed prior, which would hope for a gap.
        """
        apart = sum(Arm(a.passed, a.failed).log_mixture() for a in self.arms)
        alike = Arm(sum(a.passed for a in self.arms), sum(a.failed for a in self.arms))
        bet = _log_mix(ALIKE, alike.log_mixture(), apart) - self._log_mixture()
        if abs(self.estimate) >= gap:
            return bet + self._log_e_best()
        return bet + min(self.log_e_at(gap), self.log_e_at(-gap))

    def log_e_above(self, bound: float) -> float:
        """Log e-value against θ ≤ bound."""
        return self.log_e_at(bound) if self.estimate > bound else self._log_e_best()

    def interval(self, level: float) -> tuple[float, float]:
        """The confidence sequence's present interval for θ, with error `level`."""
        target = self._log_mixture() + math.log(level)

        def bound(sign: float) -> float:
            u = _root(lambda u: self._at(sign * u)[1] - target, least=0.0)
            return self._at(sign * u)[0]

        return bound(1.0), bound(-1.0)

    def _at(self, multiplier: float) -> tuple[float, float]:
        """(θ, log-likelihood) at the maximiser of log-likelihood - multiplier · θ."""
        theta, loglik = self.offset, 0.0
        for c, arm in zip(self.coefficients, self.arms):  # noqa: B905
            q = arm.tilted(multiplier * c)
            theta += c * q
            loglik += arm.log_likelihood(q)
        return theta, loglik

    def _log_mixture(self) -> float:
        return sum(arm.log_mixture() for arm in self.arms)

    def _log_e_best(self) -> float:
        return self._log_mixture() - sum(arm.log_likelihood(arm.mean) for arm in self.arms)


def proportion(arm: Arm) -> Contrast:
    """θ = the arm's own success probability."""
    return Contrast((1.0,), (arm,))


def normal_log_e_inside(
    estimate: float, variance: float, bound: float, spread: float = SPREAD
) -> float:
    """Log e-value against |θ| ≥ bound from an asymptotically normal estimate.

    The bettor's prior is N(0, spread²). By time-uniform central limit theory (Waudby-Smith et al.
    2024) this is anytime-valid in the limit only: it may decide what is not worth more samples, and
    never what is reported.
    """
    if abs(estimate) >= bound:
        return -math.inf
    wide = variance + spread * spread
    nearest = bound - abs(estimate)
    return 0.5 * (
        math.log(variance / wide) - estimate * estimate / wide + nearest * nearest / variance
    )


def e_bh(log_e: Sequence[float], level: float) -> float:
    """The e-BH threshold (Wang & Ramdas 2022): rejecting every log e-value at or above it keeps the
    false-discovery rate at `level` under any dependence; infinite when none can be rejected."""
    ranked = sorted(log_e, reverse=True)
    count = len(ranked)
    best = math.inf
    for k, value in enumerate(ranked, 1):
        needed = math.log(count / (level * k))
        if value >= needed:
            best = needed
    return best


def _root(f: Callable[[float], float], least: float = -math.inf) -> float:
    """Where the decreasing function f crosses zero, at or above `least`; the far end of the
    searched range when it does not. Illinois' method inside an expanding bracket."""
    value = f(0.0)
    low = high = 0.0
    f_low = f_high = value
    if value == 0.0 or (value < 0.0 and least == 0.0):
        return 0.0
    step = 1.0 if value > 0.0 else -1.0
    while True:
        end = f(step)
        if value > 0.0:
            low, f_low, high, f_high = high, f_high, step, end
            if end <= 0.0:
                break
        else:
            high, f_high, low, f_low = low, f_low, step, end
            if end >= 0.0:
                break
        if abs(step) > 1e12:
            return step
        step *= 4.0
    side = 0
    for _ in range(80):
        if f_low == f_high:
            break
        middle = (low * -f_high + high * f_low) / (f_low - f_high)
        if not low < middle < high:
            middle = 0.5 * (low + high)
        at = f(middle)
        if abs(at) < 1e-10:
            return middle
        if at > 0.0:
            low, f_low = middle, at
            f_high *= 0.5 if side == 1 else 1.0
            side = 1
        else:
            high, f_high = middle, at
            f_low *= 0.5 if side == -1 else 1.0
            side = -1
        if high - low <= 1e-9 + 1e-12 * (abs(low) + abs(high)):
            break
    return 0.5 * (low + high)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _log_mix(weight: float, x: float, y: float) -> float:
    """log(weight · e^x + (1 - weight) · e^y)."""
    most = max(x, y)
    return most + math.log(weight * math.exp(x - most) + (1.0 - weight) * math.exp(y - most))


def _x_log_y(x: int, y: float) -> float:
    return 0.0 if x == 0 else (x * math.log(y) if y > 0.0 else -math.inf)
