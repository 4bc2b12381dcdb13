"""The settings of Pivotal Token Search."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from phikit.engine.base import Precision, Sampling
from phikit.stage import Config


class SearchConfig(Config):
    """How to search; the defaults are for a real model and a large budget.

    Attributes:
        gap: the least |Δp| of a pivot.
        margin: a token or segment is dropped once its |Δp| is shown to be below gap + margin:
            telling 0.19 from 0.21 would cost more than all the rest.
        low, high: only questions with a success probability in [low, high] are searched.
        error: the false-discovery rate of the reported pivots, and the error of each pair's test.
        miss: the chance at which one test may wrongly drop a token or a segment.
        coverage: of the reported intervals, over the reported pivots.
        look: "everywhere", or as in the report only into segments whose "ends" differ.
        solutions: how many of a question's first samples are searched.
        temperature, top_k, top_p, min_p, max_tokens: how tokens are drawn. The success
            probabilities are those under this distribution.
        filter_min, filter_max: samples with which a question is admitted, least and most.
        first: samples per arm in the first look at a token or a segment.
        explore_max: samples per arm at which a token becomes a candidate if its estimate is beyond
            the gap and is dropped if not (and a segment whose ends were not shown to agree is
            split), when that was not clear before.
        max_samples: samples per arm after which a test gives up.
        measure: samples per arm from which a confirmed pivot's Δp is estimated.
        alternatives: how many other tokens are tried for a confirmed pivot's pair.
        in_flight: questions searched at the same time.
        tokens_per_question: where the search of one question stops.
        total_tokens: where the whole search stops; 0 is without limit.
        target_pairs: enough pairs to stop at; 0 is without limit.
    """

    gap: float = Field(0.2, gt=0.0, lt=1.0)
    margin: float = Field(0.05, ge=0.0, lt=1.0)
    low: float = Field(0.2, ge=0.0, le=1.0)
    high: float = Field(0.8, ge=0.0, le=1.0)
    error: float = Field(0.05, gt=0.0, lt=1.0)
    miss: float = Field(0.5, gt=0.0, lt=1.0)
    coverage: float = Field(0.95, gt=0.0, lt=1.0)
    look: Literal["everywhere", "ends"] = "everywhere"
    solutions: int = Field(1, ge=1)
    temperature: float = Field(1.0, gt=0.0)
    top_k: int = Field(0, ge=0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    min_p: float = Field(0.0, ge=0.0, le=1.0)
    max_tokens: int = Field(1024, ge=1)
    filter_min: int = Field(12, ge=2)
    filter_max: int = Field(48, ge=2)
    first: int = Field(4, ge=1)
    explore_max: int = Field(48, ge=1)
    max_samples: int = Field(512, ge=2)
    measure: int = Field(32, ge=2)
    alternatives: int = Field(3, ge=0)
    in_flight: int = Field(256, ge=1)
    tokens_per_question: int = Field(1_000_000, ge=1)
    total_tokens: int = Field(0, ge=0)
    target_pairs: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> SearchConfig:
        if self.low >= self.high:
            raise ValueError(f"low is {self.low} and high {self.high}; low must be below high")
        if self.filter_min > self.filter_max:
            raise ValueError(
                f"filter_min is {self.filter_min} and filter_max {self.filter_max}; "
                "filter_min must not be above filter_max"
            )
        if self.filter_min < self.solutions:
            raise ValueError(
                f"solutions is {self.solutions} and filter_min {self.filter_min}; the solutions "
                "are taken from the filter's first samples"
            )
        return self

    def sampling(self, stop_ids: tuple[int, ...], already: int) -> Sampling:
        """How to continue a completion that already has this many tokens."""
        return Sampling(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            max_tokens=self.max_tokens - already,
            stop_ids=stop_ids,
        )


class PivotsConfig(SearchConfig):
    """`SearchConfig`, and:

    Attributes:
        problems: how many problems to try, spread evenly over the file; 0 tries all.
        batch: sequences generated at once.
        precision: of the weights; bf16 is faster where they are stored in f32.
    """

    problems: int = Field(0, ge=0)
    batch: int = Field(256, ge=1)
    precision: Precision = "stored"
