"""The whole search on models whose every success probability is known."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phikit.engine.base import Finished, Request
from phikit.errors import PhikitError
from phikit.pivots.config import SearchConfig
from phikit.pivots.evidence import Arm, Contrast
from phikit.pivots.exact import (
    ExactGenerator,
    ExactVerifier,
    Instance,
    exact_text,
    instances,
    questions,
)
from phikit.pivots.pairs import pivot_pair, pivot_pairs
from phikit.pivots.question import Drawn, QuestionSearch
from phikit.pivots.results import Candidate, SearchResult, Trace
from phikit.pivots.rounds import RoundLog
from phikit.pivots.search import Question, _Driver, search
from phikit.pivots.suspect import State
from phikit.records import Rollout, Verdict
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


class Coins:
    """A model of answers that `length` cuts off: each token is 1 (right), 2 (wrong) or 3, with the
    given probabilities; what the last one is decides. With `ending`, 1 and 2 end an answer."""

    def __init__(self, length: int, chances: Sequence[float], ending: bool = False) -> None:
        self.length, self.chances, self.ending = length, np.array(chances), ending

    def generate(self, requests: Sequence[Request]) -> Iterator[Finished]:
        for index, r in enumerate(requests):
            rng = np.random.default_rng([r.seed, r.first_sample])
            for i in range(r.n):
                ids = rng.choice([1, 2, 3], r.sampling.max_tokens, p=self.chances).tolist()
                if self.ending and (stop := [k for k, token in enumerate(ids) if token != 3]):
                    ids = ids[: stop[0] + 1]
                yield Finished(index, i, self._rollout(r, ids))

    def solution(self, ids: Sequence[int]) -> Drawn:
        logprobs = self._logprobs(ids)
        return Drawn(tuple(ids), logprobs, logprobs, ids[-1] == 1)

    def verify(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        return [
            Verdict(passed=text.endswith("1"), score=1.0, reason="", verifier=self.name)
            for _, text in items
        ]

    name = "coins"

    def _logprobs(self, ids: Sequence[int]) -> tuple[float, ...]:
        return tuple(np.log(self.chances).astype(np.float32)[np.array(ids) - 1].tolist())

    def _rollout(self, request: Request, ids: Sequence[int]) -> Rollout:
        logprobs = self._logprobs(ids)
        return Rollout(prompt_ids=request.prompt_ids, completion_ids=tuple(ids), logprobs=logprobs,
                       raw_logprobs=logprobs)  # fmt: skip

    def search(self, solution: Sequence[int], **settings: Any) -> SearchResult:
        config = SearchConfig(max_tokens=self.length, **settings)
        question = Question(Problem("?", "", "coins", id="q"), (7,), self.solution(solution))
        return search(self, self, [question], exact_text, config, seed=2)


@pytest.mark.parametrize("last", [1, 2])
def test_an_alternative_that_ends_the_answer_makes_a_pair_by_its_verdict(last: int) -> None:
    coins = Coins(3, (0.5, 0.4, 0.1))
    pivot = coins.search((3, 2, last)).pivots[-1]
    assert pivot.position == 2 and pivot.token == last
    pair = pivot_pair(pivot)
    assert pair is not None
    assert pair.chosen_ids == (1,) and pair.rejected_ids[0] in ((2, 3) if last == 1 else (2,))
    assert (pair.evidence["p_acc"], pair.evidence["p_rej"]) == (1.0, 0.0)
    other = pivot.accepted
    assert other is not None and other.lower == other.p == other.upper


def test_the_interval_holds_a_change_as_large_as_can_be() -> None:
    """After the token p is 1 or 0: the change is an end of what the token's probability allows."""
    for right in np.linspace(0.3, 0.7, 9):
        coins = Coins(2, (right, 0.9 - right, 0.1))
        for last in (1, 2):
            pivot = coins.search((3, last)).pivots[-1]
            assert pivot.lower <= (last == 1) - right <= pivot.upper


def test_the_two_sides_of_a_pair_are_reported_on_their_sides() -> None:
    coins = Coins(12, (0.06, 0.07, 0.87), ending=True)
    results = [coins.search((*[3] * n, 1), alternatives=1, measure=8) for n in range(11)]
    pairs = [pair.evidence for r in results for pair in pivot_pairs(r.pivots)]
    assert len(pairs) >= 8
    assert all(p["p_acc"] > p["p_before"] > p["p_rej"] for p in pairs)


def test_what_was_given_up_does_not_lower_the_bar_for_what_is_reported() -> None:
    """Of two tests only one stands: it alone must carry what e-BH asks of one in two, 2 / error."""
    config = SearchConfig(error=0.05)
    contrast = Contrast((0.9, -0.9), (Arm(30, 2), Arm(2, 30)))

    def tested(state: State, e: float) -> Candidate:
        return Candidate("q", "", "none", (7,), (), 1, True, state, math.log(e), 0.1, contrast,
                         contrast, 0.9, ())  # fmt: skip

    def reported(*candidates: Candidate) -> int:
        driver = _Driver(Coins(1, (1, 0, 0)), Coins(1, (1, 0, 0)), exact_text,
                         lambda _, text: text, config, (), 0, None)  # fmt: skip
        driver.candidates = [
            c if c.state is State.UNPAIRED else c._replace(measured=None, fresh=None)
            for c in candidates
        ]
        return len(driver.result().pivots)

    given_up = tested(State.REFUTED, 39.0)
    assert reported(tested(State.UNPAIRED, 39.0), tested(State.UNPAIRED, 39.0)) == 2
    assert reported(tested(State.UNPAIRED, 41.0), given_up) == 1
    assert reported(tested(State.UNPAIRED, 39.0), given_up) == 0
