"""The whole search on models whose every success probability is known."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phikit.engine.base import Finished, Request
from phikit.errors import PhikitError
from phikit.pivots.config import SearchConfig
from phikit.pivots.exact import (
    ExactGenerator,
    ExactVerifier,
    Instance,
    exact_text,
    instances,
    questions,
)
from phikit.pivots.pairs import pivot_pairs
from phikit.pivots.question import QuestionSearch
from phikit.pivots.results import SearchResult, Trace
from phikit.pivots.rounds import RoundLog
from phikit.pivots.search import search
from phikit.records import Verdict
from phikit.verify.base import Problem

FAST = SearchConfig(explore_max=32, max_samples=256)


class Killed(Exception):
    pass


class Watched(ExactGenerator):
    """Notes every sample it draws, and may be killed at a call."""

    def __init__(self, models: Sequence[Any], last: int = 10**9) -> None:
        super().__init__(models)
        self.last, self.calls = last, 0
        self.drawn: list[tuple[tuple[int, ...], int, int]] = []

    def generate(self, requests: Sequence[Request]) -> Iterator[Finished]:
        self.calls += 1
        for done in super().generate(requests):
            if self.calls > self.last and done.request * 2 >= len(requests):
                raise Killed
            request = requests[done.request]
            if self.calls <= self.last:
                number = request.first_sample + done.sample
                self.drawn.append((request.prompt_ids, request.seed, number))
            yield done


class Counting(ExactVerifier):
    asked: list[tuple[str, str]]

    def verify(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        self.asked = [*getattr(self, "asked", []), *((p.id, text) for p, text in items)]
        return super().verify(items)


def run(
    found: Sequence[Instance],
    config: SearchConfig,
    given: bool = True,
    generator: ExactGenerator | None = None,
    **rest: Any,
) -> SearchResult:
    models = [i.model for i in found]
    return search(
        generator or ExactGenerator(models), rest.pop("verifier", ExactVerifier(models)),
        questions(found, given), exact_text, config, **rest,
    )  # fmt: skip


@pytest.fixture(scope="module")
def found() -> list[Instance]:
    return instances(32, seed=21)


@pytest.fixture(scope="module")
def everywhere(found: list[Instance]) -> SearchResult:
    return run(found, SearchConfig(), seed=1)


def truth(found: Sequence[Instance]) -> dict[tuple[str, int], float]:
    return {
        (f"{i:04d}", j): float(d)
        for i, instance in enumerate(found)
        for j, d in enumerate(instance.deltas)
    }


def recall(found: Sequence[Instance], result: SearchResult) -> float:
    large = {key for key, d in truth(found).items() if abs(d) >= 0.25}
    return len(large & {(p.problem, p.position) for p in result.pivots}) / len(large)


def false_share(found: Sequence[Instance], result: SearchResult) -> float:
    deltas = truth(found)
    false = [p for p in result.pivots if abs(deltas[p.problem, p.position]) < 0.2]
    return len(false) / len(result.pivots)


def test_finds_the_pivots_and_nothing_else(found: list[Instance], everywhere: SearchResult) -> None:
    assert recall(found, everywhere) >= 0.7
    assert false_share(found, everywhere) <= 0.03
    assert everywhere.totals.tokens / len(found) <= 60_000


def test_looking_only_where_ends_differ_finds_no_false_ones(found: list[Instance]) -> None:
    result = run(found, FAST.model_copy(update={"look": "ends"}), seed=1)
    assert recall(found, result) >= 0.5
    assert false_share(found, result) <= 0.03


def test_intervals_cover_and_estimates_are_not_inflated(
    found: list[Instance], everywhere: SearchResult
) -> None:
    deltas = truth(found)
    rows = [(p, deltas[p.problem, p.position]) for p in everywhere.pivots]
    assert np.mean([p.lower <= d <= p.upper for p, d in rows]) >= 0.9
    assert abs(np.mean([(p.delta - d) * np.sign(d) for p, d in rows])) < 0.04
    for p, d in rows:
        instance = found[int(p.problem)]
        curve = instance.model.curve(instance.solution.ids)
        assert p.delta * d > 0
        assert abs(p.p_before - curve[p.position]) < 0.35


def test_pairs_lie_on_both_sides_of_their_prefix(
    found: list[Instance], everywhere: SearchResult
) -> None:
    pairs = pivot_pairs(everywhere.pivots)
    assert len(pairs) >= 0.8 * len(everywhere.pivots)
    assert {p.evidence["delta"] > 0 for p in pairs} == {True, False}
    wrong = 0
    for pair in pairs:
        model = found[int(pair.evidence["problem"])].model
        prefix = pair.prompt_ids[1:]
        here, acc, rej = (
            float(model.curve(ids)[-1])
            for ids in (prefix, (*prefix, *pair.chosen_ids), (*prefix, *pair.rejected_ids))
        )
        wrong += not acc > here > rej
        assert pair.kind == "pivot" and len(pair.chosen_ids) == len(pair.rejected_ids) == 1
    assert wrong == 0


def test_solutions_are_sampled_and_hopeless_questions_refused(found: list[Instance]) -> None:
    traces: list[Trace] = []
    config = SearchConfig(solutions=2, tokens_per_question=30_000)
    result = run(found[:12], config, given=False, seed=3, on_search=traces.append)
    assert result.totals.questions == result.totals.finished == len(traces) == 12
    for trace in traces:
        model = found[int(trace.problem)].model
        if trace.outcome == "done":
            assert trace.solutions and abs(trace.p - model.success[0, model.first]) < 0.4
            for solution in trace.solutions:
                assert solution["passed"] == model.passed(solution["ids"])
                assert solution["points"][-1]["position"] == len(solution["ids"])
        else:
            assert not trace.solutions
    easy = run(found[:4], SearchConfig(low=0.97, high=0.99), given=False)
    assert easy.totals.kept == 0 and not easy.pivots


@pytest.mark.parametrize("last", [1, 4, 7])
def test_a_killed_search_goes_on_to_the_same_result(
    found: list[Instance], tmp_path: Path, last: int
) -> None:
    few, config = found[:6], FAST.model_copy(update={"in_flight": 4, "measure": 8})
    models = [i.model for i in few]
    whole = Watched(models)
    expected = run(few, config, given=False, generator=whole, seed=4)

    first = Watched(models, last)
    with pytest.raises(Killed):
        run(few, config, given=False, generator=first, seed=4, log=RoundLog(tmp_path))
    second = Watched(models)
    resumed = run(few, config, given=False, generator=second, seed=4, log=RoundLog(tmp_path))
    assert resumed == expected
    assert first.drawn + second.drawn == whole.drawn
    assert len(set(whole.drawn)) == len(whole.drawn)  # no sample twice

    third = Watched(models)
    again = run(few, config, given=False, generator=third, seed=4, log=RoundLog(tmp_path))
    assert again == expected and third.calls == 0


def test_a_log_of_another_search_is_refused(found: list[Instance], tmp_path: Path) -> None:
    config = SearchConfig(total_tokens=1000)
    run(found[:2], config, seed=1, log=RoundLog(tmp_path))
    with pytest.raises(PhikitError, match="other settings"):
        run(found[:2], config, seed=2, log=RoundLog(tmp_path))
    (tmp_path / "000000.round").write_bytes(b"torn")
    with pytest.raises(PhikitError, match=r"000000\.round"):
        run(found[:2], config, seed=1, log=RoundLog(tmp_path))


def test_equal_answers_are_verified_once(found: list[Instance]) -> None:
    verifier = Counting([i.model for i in found])
    result = run(found[:3], FAST, seed=5, verifier=verifier)
    assert len(set(verifier.asked)) == len(verifier.asked) == result.totals.verified
    assert result.totals.verified < result.totals.samples


def test_it_stops_at_the_budget_or_with_enough_pairs(found: list[Instance]) -> None:
    config = SearchConfig(total_tokens=100_000, in_flight=4)
    stopped = run(found, config, seed=6)
    assert 80_000 < stopped.totals.tokens < 200_000
    assert stopped.totals.questions < len(found)
    enough = run(found, SearchConfig(target_pairs=2, in_flight=8), seed=6)
    assert 2 <= len(pivot_pairs(enough.pivots)) < 12
    assert enough.totals.questions < len(found)


def test_a_generator_without_log_probabilities_is_refused(found: list[Instance]) -> None:
    class Silent(ExactGenerator):
        def generate(self, requests: Sequence[Request]) -> Iterator[Finished]:
            for done in super().generate(requests):
                rollout = done.rollout.__class__(
                    id="-", prompt_ids=done.rollout.prompt_ids,
                    completion_ids=done.rollout.completion_ids, logprobs=(),
                )  # fmt: skip
                yield Finished(done.request, done.sample, rollout)

    with pytest.raises(PhikitError, match="log-probabilities"):
        run(found[:1], SearchConfig(), generator=Silent([found[0].model]))


def test_memory_holds_the_questions_in_flight_and_no_others() -> None:
    found = instances(4, seed=11, length=(24, 32))
    config = SearchConfig(in_flight=6, tokens_per_question=400)
    alive: list[int] = []

    def count(_: Any) -> None:
        alive.append(sum(isinstance(o, QuestionSearch) for o in gc.get_objects()))

    many = (
        replace(q, problem=replace(q.problem, id=f"{i}"))
        for i, q in enumerate(questions(found, given=False) * 10)
    )
    models = [i.model for i in found]
    result = search(
        ExactGenerator(models), ExactVerifier(models), many, exact_text, config, on_round=count
    )
    assert result.totals.questions == 40 and max(alive) <= 8  # and what a loop still holds
