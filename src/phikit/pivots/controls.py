"""What pivots are held against: pairs that the same budget buys without a search.

`pivots.responses` spends the tokens of a search on whole answers instead, and pairs right ones with
wrong ones; `pivots.random` takes tokens at random places of the searched solutions for pivots, with
no evidence but whether the solution came out right.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from phikit.engine.base import Finished, Precision, Request, Sampling, collect
from phikit.errors import PhikitError
from phikit.pivots.drawing import count_cost, portions
from phikit.pivots.read import SearchFolder, search_folder
from phikit.records import Pair, Rollout, Sample, write_records
from phikit.stage import Config, Context, Estimate, Stage
from phikit.verify.base import ByName, Problem

if TYPE_CHECKING:
    from phikit.chat.format import ChatFormat
    from phikit.engine.local import LocalEngine

_STREAM = 0x636F6E74  # the random streams of this file


class ResponsesConfig(Config):
    """How whole answers are drawn and paired.

    Attributes:
        per_problem: answers drawn of each problem.
        pairs_per_problem: right and wrong answers of a problem are paired up to this often.
        temperature, max_tokens: how answers are drawn.
        batch: sequences generated at once.
        precision: of the weights; bf16 is faster where they are stored in f32.
    """

    per_problem: int = Field(16, ge=2)
    pairs_per_problem: int = Field(4, ge=1)
    temperature: float = Field(1.0, gt=0)
    max_tokens: int = Field(1024, ge=1)
    batch: int = Field(256, ge=1)
    precision: Precision = "stored"


class RandomConfig(Config):
    """Pairs at random tokens, as many as the search found.

    Attributes:
        tries: tokens drawn at a place to find another than the solution's.
        temperature: of those draws.
        batch: sequences generated at once.
        precision: of the weights; bf16 is faster where they are stored in f32.
    """

    tries: int = Field(16, ge=1)
    temperature: float = Field(1.0, gt=0)
    batch: int = Field(256, ge=1)
    precision: Precision = "stored"


# --- Whole answers -------------------------------------------------------------------------------


def run_responses(
    ctx: Context, config: ResponsesConfig, inputs: Mapping[str, Path]
) -> dict[str, Any]:
    """Draws answers until the search's tokens are spent, and writes pairs.parquet.

    When every problem was asked and tokens are left, all are asked for further answers.
    """
    from phikit.engine.load import open_chat

    engine, chat = open_chat(inputs["model"] / "model", config.batch, config.precision)
    budget = int(search_folder(inputs["search"]).record["summary"]["tokens"])
    pairs: list[Pair] = []
    spent = asked = too_long = 0
    context = engine.model.config.max_positions
    for first in itertools.count(0, config.per_problem):
        number = 0  # of the problem, for its random stream
        tally: Counter[str] = Counter()
        for portion in portions(inputs["problems"], chat, context, tally):
            judged = _asked(engine, chat, config, portion, ctx.seed ^ _STREAM, number, first)
            number += len(portion)
            for problem, answers in judged:
                spent += sum(len(r.completion_ids) for r, _ in answers)
                pairs += _answer_pairs(problem, answers, config.pairs_per_problem)
            ctx.progress.update(min(spent, budget), budget, pairs=len(pairs))
            if spent >= budget:
                break
        asked, too_long = max(asked, number), max(too_long, tally["too_long"])
        if spent >= budget or not spent:
            break
    write_records(ctx.dir / "pairs.parquet", pairs, Pair)
    count_cost(ctx, engine)
    return {
        "problems": asked, "too_long": too_long,
        "tokens": spent, "budget": budget, "pairs": len(pairs),
    }  # fmt: skip


def _asked(
    engine: LocalEngine,
    chat: ChatFormat,
    config: ResponsesConfig,
    portion: Sequence[tuple[Sample, tuple[int, ...]]],
    stream: int,
    number: int,
    first: int,
) -> list[tuple[Problem, list[tuple[Rollout, bool]]]]:
    """Each problem of a portion with answers number `first` and up, and their verdicts."""
    sampling = Sampling(
        temperature=config.temperature, max_tokens=config.max_tokens, stop_ids=chat.stop_ids
    )
    requests = [
        Request(ids, sampling, config.per_problem, stream ^ (number + i), first)
        for i, (_, ids) in enumerate(portion)
    ]
    groups = collect(engine, requests)
    problems = [Problem.of(sample) for sample, _ in portion]
    answers = [
        (problem, chat.text(r.completion_ids))
        for problem, group in zip(problems, groups, strict=True)
        for r in group
    ]
    verdicts = iter(ByName().verify(answers))
    return [
        (problem, [(r, next(verdicts).passed) for r in group])
        for problem, group in zip(problems, groups, strict=True)
    ]


def _answer_pairs(
    problem: Problem, judged: Sequence[tuple[Rollout, bool]], most: int
) -> Iterator[Pair]:
    right = [r for r, passed in judged if passed and r.finish == "stop"]
    wrong = [r for r, passed in judged if not passed and r.finish == "stop"]
    share = sum(passed for _, passed in judged) / len(judged)
    for good, bad in list(zip(right, wrong, strict=False))[:most]:
        yield Pair(
            parents=(problem.id,),
            prompt_ids=good.prompt_ids,
            chosen_ids=good.completion_ids,
            rejected_ids=bad.completion_ids,
            kind="rollout",
            evidence={"problem": problem.id, "domain": problem.kind, "verifier": problem.verifier,
                      "passed_share": share},
        )  # fmt: skip


# --- Random tokens -------------------------------------------------------------------------------


def run_random(ctx: Context, config: RandomConfig, inputs: Mapping[str, Path]) -> dict[str, Any]:
    """Writes as many pairs at random tokens as the search found at pivots."""
    from phikit.engine.load import open_chat

    engine, _ = open_chat(inputs["model"] / "model", config.batch, config.precision)
    found = search_folder(inputs["search"])
    wanted = int(found.record["summary"]["pairs"])
    places = _places(found, ctx.seed)
    sampling = Sampling(temperature=config.temperature, max_tokens=1)
    pairs: list[Pair] = []
    while len(pairs) < wanted:
        some = [place for place, _ in zip(places, range(max(64, wanted)), strict=False)]
        if not some:
            raise PhikitError(
                f"{found.path}: its solutions give only {len(pairs)} pairs at random tokens, not "
                f"{wanted}",
                "raise tries",
            )
        requests = [Request(p.prefix, sampling, config.tries, ctx.seed ^ _STREAM) for p in some]
        drawn: list[Finished] = list(engine.generate(requests))
        for index, place in enumerate(some):
            tokens = sorted(
                (f.sample, f.rollout.completion_ids[0]) for f in drawn if f.request == index
            )
            other = next((token for _, token in tokens if token != place.token), None)
            if other is not None and len(pairs) < wanted:
                pairs.append(place.pair(other))
    write_records(ctx.dir / "pairs.parquet", pairs, Pair)
    count_cost(ctx, engine)
    return {"pairs": len(pairs), "tokens": engine.tokens_generated}


class _Place:
    """A token at a random place of a solution."""

    def __init__(
        self, trace: Mapping[str, Any], solution: Mapping[str, Any], position: int
    ) -> None:
        self.prefix = (*trace["prompt_ids"], *solution["ids"][:position])
        self.token = int(solution["ids"][position])
        self.passed = bool(solution["passed"])
        self.problem, self.kind = trace["problem"], trace["kind"]

    def pair(self, other: int) -> Pair:
        good, bad = (self.token, other) if self.passed else (other, self.token)
        return Pair(
            parents=(self.problem,),
            prompt_ids=self.prefix,
            chosen_ids=(good,),
            rejected_ids=(bad,),
            kind="random",
            evidence={"problem": self.problem, "domain": self.kind, "passed": self.passed},
        )


def _places(found: SearchFolder, seed: int) -> Iterator[_Place]:
    """Every token of the searched solutions once, in random order."""
    everywhere = [
        (trace, solution, i)
        for trace in found.traces()
        for solution in trace["solutions"]
        for i in range(len(solution["ids"]))
    ]
    random.Random(seed ^ _STREAM).shuffle(everywhere)
    for trace, solution, i in everywhere:
        yield _Place(trace, solution, i)


STAGES: list[Stage[Any]] = [
    Stage(
        verb="pivots.responses",
        config=ResponsesConfig,
        run=run_responses,
        inputs=("model", "search", "problems"),
        estimate=lambda config: Estimate("as many tokens as the search", generated=500_000),
        help="whole-answer pairs for the tokens of a search: what pivots are held against",
    ),
    Stage(
        verb="pivots.random",
        config=RandomConfig,
        run=run_random,
        inputs=("model", "search"),
        estimate=lambda config: Estimate("as many pairs as the search", generated=5_000),
        help="pairs at random tokens of searched solutions: what pivots are held against",
    ),
]
