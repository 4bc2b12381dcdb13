"""Asking and scoring, with a generator and a verifier whose behaviour is known exactly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

import pytest

from phikit.engine.base import Finished, Request
from phikit.errors import PhikitError
from phikit.evals.stages import EvalConfig, run_eval, summarise
from phikit.evals.tasks import GREEDY, Answer, Asking, Prompting, ask, check_items, judge, seed_of
from phikit.records import Rollout, Sample, Score, Verdict, read_records, write_records
from phikit.stage import Context
from phikit.verify.base import Problem

END = 0


class Dice:
    """Answers with one random token and the end token; yields samples out of order."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def generate(self, requests: Sequence[Request]) -> Iterator[Finished]:
        self.requests = list(requests)
        for r in reversed(range(len(requests))):
            for s in reversed(range(requests[r].n)):
                q = requests[r]
                rng = Random(f"{q.seed}/{q.first_sample + s}")
                token = rng.randrange(1, 9) if q.sampling.temperature else 5
                ids = (token, END)[: q.sampling.max_tokens]
                finish = "stop" if len(ids) == 2 else "length"
                rollout = Rollout(
                    prompt_ids=q.prompt_ids,
                    completion_ids=ids,
                    logprobs=(0.0,) * len(ids),
                    finish=finish,
                )
                yield Finished(r, s, rollout)


class IsAnswer:
    name = "exact"

    def __init__(self) -> None:
        self.calls = 0

    def verify(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        self.calls += len(items)
        return [
            Verdict(passed=p.answer == text, score=float(p.answer == text), reason=text,
                    verifier=self.name)
            for p, text in items
        ]  # fmt: skip


def make_items(n: int, kind: str = "sum") -> list[Sample]:
    return [
        Sample(
            kind=kind,
            source="synthetic",
            messages=({"role": "user", "content": "x" * (i + 1)},),
            verifier="exact",
            answer="5",
        )
        for i in range(n)
    ]


def make_prompting(context: int = 100) -> Prompting:
    return Prompting(
        prompt=lambda item: [7] * len(item.messages[0]["content"]),
        answer=lambda ids: " ".join(str(i) for i in ids if i != END),
        stop_ids=(END,),
        context=context,
    )


def test_answers_come_in_order_and_are_the_same_for_another_model() -> None:
    items = make_items(5)
    first = ask(Dice(), make_prompting(), items, Asking(samples=3))
    assert [(a.item.id, a.sample) for a in first] == [
        (item.id, s) for item in items for s in (GREEDY, 0, 1, 2)
    ]
    alone = ask(Dice(), make_prompting(), items[3:4], Asking(samples=3))
    assert [a.text for a in alone] == [a.text for a in first if a.item is items[3]]
    assert len({seed_of(item) for item in items}) == 5


def test_an_item_too_long_for_the_model_is_wrong_not_an_error() -> None:
    items = make_items(4)
    dice = Dice()
    answers = ask(dice, make_prompting(context=3), items, Asking(samples=1, max_tokens=2))
    assert [a.rollout is None for a in answers] == [False] * 4 + [True] * 4
    assert {r.sampling.max_tokens for r in dice.requests} == {2, 1}  # what room there is
    scores = judge(answers, IsAnswer())
    assert not scores[-1].verdict.passed and "context" in scores[-1].verdict.reason
    assert summarise(scores, answers)["unfinished"] == pytest.approx(6 / 8)
    assert summarise(scores, answers)["too_long"] == 2


def test_equal_answers_are_verified_once_and_every_answer_is_scored() -> None:
    items = make_items(3)
    answers = ask(Dice(), make_prompting(), items, Asking(samples=20))
    verifier = IsAnswer()
    scores = judge(answers, verifier)
    assert len(scores) == 3 * 21
    assert verifier.calls == len({(a.item.id, a.text) for a in answers}) < len(answers)
    assert all(s.verdict.passed == (s.text == "5") for s in scores)
    assert all(s.parents == (s.item,) for s in scores)


def test_summary_counts_what_the_scores_say() -> None:
    items = make_items(6) + make_items(2, kind="order")
    answers = ask(Dice(), make_prompting(), items, Asking(samples=8))
    summary = summarise(judge(answers, IsAnswer()), answers)
    right = [a.text == "5" for a in answers if a.sample >= 0]
    assert summary["accuracy"] == pytest.approx(sum(right) / len(right))
    assert summary["low"] < summary["accuracy"] < summary["high"]
    assert summary["greedy"] == 1.0 and summary["greedy_low"] < 1
    assert {k: v["items"] for k, v in summary["by_kind"].items()} == {"order": 2, "sum": 6}
    assert (summary["items"], summary["samples"], summary["mean_tokens"]) == (8, 8, 2.0)


def test_scores_survive_their_file(tmp_path) -> None:
    verdict = Verdict(passed=True, score=1.0, reason="", verifier="exact")
    scores = judge([Answer(make_items(1)[0], 0, None, "")], IsAnswer())
    scores.append(Score(task="t", item="i", sample=-1, verdict=verdict, cost=3, text="a\0é"))
    write_records(tmp_path / "s.parquet", scores, Score)
    assert read_records(tmp_path / "s.parquet", Score) == scores


def test_items_that_cannot_be_scored_are_named() -> None:
    items = make_items(2)
    with pytest.raises(PhikitError, match="twice"):
        check_items([*items, items[0]], "items.parquet")
    with pytest.raises(PhikitError, match="no verifier"):
        check_items([Sample(kind="k", source="s", text="t")], "items.parquet")
    with pytest.raises(PhikitError, match="no items"):
        check_items([], "items.parquet")


def test_asking_nothing_is_refused(tmp_path) -> None:
    with pytest.raises(PhikitError, match="nothing would be asked"):
        run_eval(Context(tmp_path), EvalConfig(samples=0, greedy=False), {})
