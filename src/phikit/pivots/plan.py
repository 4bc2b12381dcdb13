"""What a number of preference pairs will cost, judged by a pilot search.

Questions differ widely in what they cost and yield, so the ratio tokens / pairs is resampled over
the pilot's questions (percentile bootstrap). A larger search has it a little easier than its pilot:
false discoveries are controlled over all candidates together, and that bar is reached sooner.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from phikit.errors import PhikitError
from phikit.pivots.read import SearchFolder

RESAMPLES = 4000
COVERAGE = 0.9


@dataclass(frozen=True)
class Range:
    """An estimate with its 90 % interval."""

    value: float
    low: float
    high: float

    def times(self, factor: float) -> Range:
        """All three multiplied."""
        return Range(self.value * factor, self.low * factor, self.high * factor)


@dataclass(frozen=True)
class Forecast:
    """Attributes: `problems` to be tried, `tokens` to be sampled, `hours` on one such machine."""

    pairs: int
    pilot_pairs: int
    pilot_questions: int
    tokens_per_s: float
    problems: Range
    tokens: Range
    hours: Range


def forecast(pilot: SearchFolder, pairs: int, tokens_per_s: float | None = None) -> Forecast:
    """What `pairs` preference pairs will take.

    Args:
        tokens_per_s: the generator's rate; the pilot's own when left out.

    Raises:
        PhikitError: the pilot found no pair, or its rate is not known.
    """
    found = Counter(str(p.evidence["problem"]) for p in pilot.pairs())
    rows = [(float(t["tokens"]), float(found[t["problem"]])) for t in pilot.traces()]
    if not found:
        raise PhikitError(
            f"{pilot.path}: the pilot found no pair in {len(rows)} questions, so nothing can be "
            "forecast from it",
            "run a pilot with more problems, or with problems of which the model solves about half",
        )
    rate = tokens_per_s or _rate(pilot)
    per_pair, per_problem = _resampled(np.array(rows))
    tokens = per_pair.times(pairs)
    return Forecast(
        pairs=pairs,
        pilot_pairs=sum(found.values()),
        pilot_questions=len(rows),
        tokens_per_s=rate,
        problems=per_problem.times(pairs),
        tokens=tokens,
        hours=tokens.times(1.0 / rate / 3600.0),
    )


def _rate(pilot: SearchFolder) -> float:
    cost, tokens = pilot.record.get("cost", {}), pilot.record["summary"]["tokens"]
    seconds = cost.get("seconds") or pilot.record.get("seconds")
    if not seconds:
        raise PhikitError(
            f"{pilot.path}: does not say how long the pilot took", "give --tokens-per-s"
        )
    return float(tokens) / float(seconds)


def _resampled(rows_N2: np.ndarray) -> tuple[Range, Range]:
    """Tokens per pair and questions per pair, with their intervals."""
    n = len(rows_N2)
    generator = np.random.default_rng(0)
    chosen = generator.multinomial(n, np.full(n, 1.0 / n), size=RESAMPLES)
    tokens, pairs = (chosen @ rows_N2).T
    # a resample without any pair says "very many": it stays in, as infinitely many
    with np.errstate(divide="ignore"):
        per_pair, per_problem = tokens / pairs, n / pairs
    total_tokens, total_pairs = rows_N2.sum(0)
    return (
        Range(total_tokens / total_pairs, *_ends(per_pair)),
        Range(n / total_pairs, *_ends(per_problem)),
    )


def _ends(values: np.ndarray) -> tuple[float, float]:
    tail = (1.0 - COVERAGE) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail], method="nearest")
    return float(low), float(high)


def text(plan: Forecast, price_per_hour: float | None, price_per_million: float | None) -> str:
    """The forecast for people; money only at the prices given."""
    rows = [
        ("problems to try", plan.problems, "{:,.0f}"),
        ("tokens to sample", plan.tokens, "{:,.0f}"),
        (f"hours at {plan.tokens_per_s:,.0f} tokens/s", plan.hours, "{:,.2f}"),
    ]
    if price_per_hour is not None:
        label = f"money at {price_per_hour:g} per hour"
        rows.append((label, plan.hours.times(price_per_hour), "{:,.2f}"))
    if price_per_million is not None:
        label = f"money at {price_per_million:g} per million tokens"
        rows.append((label, plan.tokens.times(price_per_million / 1e6), "{:,.2f}"))
    lines = [f"{plan.pairs:,} pairs, judged by a pilot of {plan.pilot_questions:,} questions that "
             f"gave {plan.pilot_pairs:,}", ""]  # fmt: skip
    for label, r, form in rows:
        low, high = form.format(r.low), form.format(r.high)
        lines.append(f"  {label:<36} {form.format(r.value):>14}   90 %: {low} to {high}")
    if plan.pilot_pairs < 30:
        lines += ["", "The pilot is small: a larger one narrows the intervals."]
    return "\n".join(lines)
