"""Every dataset type: true arithmetic, passing verifiers, determinism."""

from __future__ import annotations

import ast
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phikit.errors import PhikitError
from phikit.synth.arithmetic import statements
from phikit.synth.collect import Collector, normalised
from phikit.synth.exercise import Style
from phikit.synth.teacher import Candidate, Order, ProceduralTeacher, pretraining_prompt
from phikit.synth.types.catalogue import TYPES, find
from phikit.verify.answer import final_answer
from phikit.verify.base import ByName

ALL = sorted(TYPES)
DECLINABLE = [name for name in ALL if TYPES[name].unanswerable]
TEACHER = ProceduralTeacher()

orders = st.builds(
    Order,
    kind=st.sampled_from(ALL),
    stream=st.sampled_from(["0/train", "0/eval", "7/train"]),
    index=st.integers(0, 10**9),
    difficulty=st.integers(1, 5),
    style=st.sampled_from(["short", "thought"]),
)


def written(order: Order) -> Candidate:
    (candidate,) = TEACHER.write([order])
    assert candidate is not None
    return candidate


@settings(max_examples=300)
@given(orders)
def test_every_calculation_in_a_solution_is_true(order: Order) -> None:
    for a, op, b, result in statements(written(order).response):
        assert {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else None}[op] == result


def _chains(text: str) -> list[str]:
    """Longer calculations, as columns with a carry have: "1 + 1 + 1 = 3"."""
    return re.findall(r"(?<![-+*/%] )(?<![\w.-])\d+(?: [-+*] \d+)+ = \d+", text)


@settings(max_examples=300)
@given(orders)
def test_spelled_out_columns_are_true(order: Order) -> None:
    for chain in _chains(written(order).response):
        left, right = chain.split(" = ")
        assert _evaluate(left) == int(right), chain


def _evaluate(expression: str) -> int:
    def value(node: ast.expr) -> int:
        match node:
            case ast.Constant(value=int() as number):
                return number
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return value(left) + value(right)
            case ast.BinOp(left=left, op=ast.Sub(), right=right):
                return value(left) - value(right)
            case ast.BinOp(left=left, op=ast.Mult(), right=right):
                return value(left) * value(right)
        raise AssertionError(expression)

    return value(ast.parse(expression, mode="eval").body)


@settings(max_examples=200)
@given(orders.filter(lambda o: TYPES[o.kind].source != "code"))
def test_the_verifier_passes_the_teachers_solution(order: Order) -> None:
    candidate = written(order)
    (verdict,) = ByName().verify([(candidate.problem, candidate.response)])
    assert verdict.passed, verdict.reason


@pytest.mark.parametrize("difficulty", [1, 2, 3, 4, 5])
def test_code_and_traces_hold_in_the_sandbox(difficulty: int) -> None:
    collector = Collector(verifier=ByName())
    for kind in ("trace", "complete"):
        wanted = [Order(kind, "0/t", i, difficulty) for i in range(60)]
        collector.add(TEACHER.write(wanted), kind, 60)
    assert not collector.rejected, collector.rejected[0].verdicts
    assert len(collector.accepted) > 60
    executed = [s for s in collector.accepted if s.kind == "trace"]
    assert all([v.verifier for v in s.verdicts][-1] == "execution" for s in executed)


@pytest.mark.parametrize("kind", DECLINABLE)
def test_unanswerable_variants_decline_and_answerable_ones_do_not(kind: str) -> None:
    for i in range(50):
        for style in ("short", "thought"):
            declined = written(Order(kind, "0/t", i, 2, style, unanswerable=True))
            assert declined.verifier == "refusal"
            assert declined.kind == "unanswerable"
            assert declined.meta["of"] == kind
            assert final_answer(declined.response) == "unknown"
            (verdict,) = ByName().verify([(declined.problem, declined.response)])
            assert verdict.passed
            answered = written(Order(kind, "0/t", i, 2, style))
            assert "unknown" not in answered.response


@given(orders)
def test_a_candidate_is_a_function_of_its_order(order: Order) -> None:
    assert written(order) == ProceduralTeacher().write([order])[0]


@given(orders)
def test_the_style_changes_the_solution_and_not_the_problem(order: Order) -> None:
    short, thought = (
        written(Order(order.kind, order.stream, order.index, order.difficulty, style))
        for style in ("short", "thought")
    )
    assert (short.question, short.answer) == (thought.question, thought.answer)
    assert "<think>" not in short.response
    assert re.fullmatch(r"<think>\n.+\n</think>\n.+", thought.response, re.DOTALL)
    assert thought.response.count("<think>") == 1
    assert final_answer(short.response) == final_answer(thought.response)


@given(orders)
def test_the_base_prompt_is_the_beginning_of_the_text(order: Order) -> None:
    candidate = written(order)
    sample = candidate.sample()
    assert "<think>" not in sample.text
    if not candidate.text and order.style == "short":
        assert sample.text.startswith(pretraining_prompt(sample) + " ")
    assert pretraining_prompt(sample).endswith("\nSolution:")
    assert sample.response == candidate.response
    assert sample.meta["teacher"] == "procedural"


@pytest.mark.parametrize("kind", ALL)
def test_a_type_has_many_problems(kind: str) -> None:
    wanted = [Order(kind, "0/t", i, 2) for i in range(400)]
    prompts = {normalised(c.question) for c in TEACHER.write(wanted) if c}
    assert len(prompts) > 320


@pytest.mark.parametrize("kind", ALL)
def test_problems_are_short_enough_for_a_small_model(kind: str) -> None:
    for i in range(200):
        for style, most in (("short", 320), ("thought", 900)):
            candidate = written(Order(kind, "0/t", i, 2, _style(style)))
            assert len(candidate.question) < 420
            assert len(candidate.response) < most, candidate.response


def _style(name: str) -> Style:
    return "thought" if name == "thought" else "short"


def test_multiple_choice_has_the_answer_once_among_its_options() -> None:
    for i in range(200):
        candidate = written(Order("choice", "0/t", i, 2))
        options = dict(re.findall(r"^([A-D])\) (.+)$", candidate.question, re.MULTILINE))
        assert len(set(options.values())) == len(options) >= 2
        stated = re.search(r"(.+) is option ([A-D])\.", candidate.response)
        assert stated and options[candidate.answer] == stated[1]


def test_an_unknown_type_is_named_with_the_nearest() -> None:
    with pytest.raises(PhikitError, match="did you mean 'trace'"):
        find("trce")


def test_an_unanswerable_variant_that_does_not_exist_is_refused() -> None:
    with pytest.raises(PhikitError, match="no unanswerable variant"):
        written(Order("complete", "0/t", 0, unanswerable=True))


def test_a_difficulty_out_of_range_is_refused() -> None:
    with pytest.raises(PhikitError, match="between 1 and 5"):
        written(Order("changes", "0/t", 0, 6))
