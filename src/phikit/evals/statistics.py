"""How sure are we? Accuracies and differences, each with its 95 % interval.

The unit is the *item* (the problem), not the answer: several answers to one problem say little
more about other problems than one does, so they are averaged first and the spread between items is
what the intervals are made of (Miller, "Adding error bars to evals", arXiv 2411.00640).

An accuracy gets a Wilson interval whose number of trials is the *effective* one, p(1 − p) over the
variance of the mean (Korn and Graubard 1998 do the same for surveys). With one answer per item it
is exactly Wilson's; with many it is as narrow as the spread between items allows; it stays within
[0, 1] and keeps its coverage near 0 and 1, where the normal interval and the percentile bootstrap
(every resample of "all right" is all right) do not. It needs no random numbers.

A difference between two models on the same items is the mean of the items' own differences with a
t interval: what makes an item hard for both cancels. `tests/evals` simulates the coverage of all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import mpmath

from phikit.errors import PhikitError
from phikit.records import Score

LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A share with its 95 % interval, from so many independent items."""

    value: float
    low: float
    high: float
    items: int


@dataclass(frozen=True, slots=True)
class Difference:
    """After minus before, with its 95 % interval and two-sided p-value; `n` units were paired."""

    value: float
    low: float
    high: float
    p: float
    n: int

    @property
    def finding(self) -> str:
        """What the interval allows one to say: "helped", "hurt" or "no measurable change"."""
        if self.low > 0:
            return "helped"
        return "hurt" if self.high < 0 else "no measurable change"


def item_means(scores: Iterable[Score], greedy: bool = False) -> dict[str, float]:
    """The share of right answers per item, over its sampled answers or its one greedy answer."""
    marks: dict[str, list[bool]] = {}
    for score in scores:
        if (score.sample < 0) == greedy:
            marks.setdefault(score.item, []).append(score.verdict.passed)
    return {item: sum(m) / len(m) for item, m in marks.items()}


def accuracy(means: Sequence[float], samples: int = 1) -> Estimate:
    """The mean over items of their shares of right answers, with the interval described above.

    Args:
        means: one share per item, each over `samples` answers.
        samples: answers per item; the effective number of trials never exceeds items × samples.

    Raises:
        PhikitError: there are no items.
    """
    n = len(means)
    if n == 0:
        raise PhikitError("there are no scores to take an accuracy of")
    p = math.fsum(means) / n
    spread = math.fsum((m - p) ** 2 for m in means)
    trials = float(n)
    if n > 1 and 0 < p < 1:
        most = n * max(samples, 1)
        trials = min(p * (1 - p) * n * (n - 1) / spread, most) if spread > 0 else most
    z = NormalDist().inv_cdf(0.5 + LEVEL / 2)
    centre = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * math.sqrt(p * (1 - p) / trials + (z / (2 * trials)) ** 2) / (1 + z * z / trials)
    return Estimate(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)), n)


def paired(before: Mapping[str, float], after: Mapping[str, float]) -> Difference:
    """The mean of after − before over the same items.

    Raises:
        PhikitError: the two were not asked the same items, or none.
    """
    if before.keys() != after.keys():
        alone = sorted(before.keys() ^ after.keys())
        raise PhikitError(
            f"the two evaluations share {len(before.keys() & after.keys())} items and differ in "
            f"{len(alone)} (such as {alone[0]}); a paired difference needs the same items",
            "evaluate both stages on the same items stage",
        )
    return mean_difference([after[item] - before[item] for item in sorted(before)])


def mean_difference(differences: Sequence[float]) -> Difference:
    """The mean of paired differences in [−1, 1], with a t interval.

    One unit is added to the sum of squared deviations, as if one more item had turned over. Without
    it a few items that all agree would claim certainty (as Agresti and Min 2005 do for matched
    pairs); with hundreds of items it changes nothing that can be seen.
    """
    n = len(differences)
    if n == 0:
        raise PhikitError("there are no items to compare")
    mean = math.fsum(differences) / n
    if n == 1:
        return Difference(mean, -1.0, 1.0, 1.0, 1)
    squares = math.fsum((d - mean) ** 2 for d in differences) + 1.0
    return _t_interval(mean, math.sqrt(squares / (n - 1) / n), n - 1, n)


@dataclass(frozen=True, slots=True)
class OverSeeds:
    """A difference measured in several runs of a recipe that differ only in their seed.

    Attributes:
        runs: the difference in each run.
        pooled: the mean over the runs, with items as the unit: what would be seen on fresh items
            with *these* models. An item asked in several runs is one unit, not several.
        seeds: the same mean with runs as the unit: what would be seen with a *new* seed. With
            three runs this has two degrees of freedom and is wide; it is the stricter claim.
    """

    runs: tuple[Difference, ...]
    pooled: Difference
    seeds: Difference


def over_seeds(runs: Sequence[tuple[Mapping[str, float], Mapping[str, float]]]) -> OverSeeds:
    """Puts together (before, after) item means of several runs; every run weighs the same.

    The variance of the pooled mean is that of a mean of clusters: each item's deviations from its
    own run's mean are added up over the runs it was asked in, then squared (a ratio estimator's
    linearised variance, Cochran 1977, section 11).

    Raises:
        PhikitError: no runs, or a run whose two evaluations asked different items.
    """
    if not runs:
        raise PhikitError("there are no runs to put together")
    each = tuple(paired(before, after) for before, after in runs)
    k = len(runs)
    mean = math.fsum(d.value for d in each) / k
    clusters: dict[str, float] = {}
    for (before, after), run in zip(runs, each, strict=True):
        for item in sorted(before):
            part = (after[item] - before[item] - run.value) / (k * len(before))
            clusters[item] = clusters.get(item, 0.0) + part
    n = len(clusters)
    if n < 2:
        return OverSeeds(each, Difference(mean, -1.0, 1.0, 1.0, n), mean_over_runs(each))
    variance = (math.fsum(c * c for c in clusters.values()) + 1.0 / n**2) * n / (n - 1)
    return OverSeeds(each, _t_interval(mean, math.sqrt(variance), n - 1, n), mean_over_runs(each))


def mean_over_runs(runs: Sequence[Difference]) -> Difference:
    """The mean of the runs' differences with the runs as the unit: k − 1 degrees of freedom."""
    k = len(runs)
    mean = math.fsum(r.value for r in runs) / k
    if k == 1:
        return Difference(mean, -1.0, 1.0, 1.0, 1)
    squares = math.fsum((r.value - mean) ** 2 for r in runs)
    return _t_interval(mean, math.sqrt(squares / (k - 1) / k), k - 1, k)


def _t_interval(mean: float, error: float, df: int, n: int) -> Difference:
    half = t_quantile(0.5 + LEVEL / 2, df) * error
    p = two_sided_p(mean / error, df) if error > 0 else float(mean == 0)
    return Difference(mean, max(-1.0, mean - half), min(1.0, mean + half), p, n)


def two_sided_p(t: float, df: int) -> float:
    """P(|T| ≥ |t|) for Student's t, as a regularised incomplete beta function."""
    x = df / (df + t * t)
    return float(mpmath.betainc(df / 2, 0.5, 0, x, regularized=True))


@lru_cache
def t_quantile(level: float, df: int) -> float:
    """The t below which Student's T falls with probability `level` (above one half)."""
    low, high = 0.0, 1.0
    while 1 - two_sided_p(high, df) / 2 < level:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        if 1 - two_sided_p(middle, df) / 2 < level:
            low = middle
        else:
            high = middle
    return (low + high) / 2
