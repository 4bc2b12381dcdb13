"""Finding the answer, and the verifiers of choices, texts, refusals and formats."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phikit.errors import PhikitError
from phikit.records import Verdict
from phikit.verify.answer import final_answer
from phikit.verify.base import ByName, Problem, get
from phikit.verify.refusal import is_refusal


def check(verifier: str, gold: str, text: str) -> Verdict:
    return get(verifier).verify([(Problem("?", gold, verifier), text)])[0]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Answer: 5", "5"),
        ("So it is 4.\nAnswer: 5\n", "5"),
        ("Answer: 4\nNo, wait.\nAnswer: 5", "5"),
        ("**Answer:** 5", "5"),
        ("**Final answer: 5**", "5"),
        ("ANSWER: 5", "5"),
        (r"\boxed{4} then \boxed{5}", "5"),
        (r"Answer: $\boxed{\frac{1}{2}}$", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{4}" + "\nAnswer: 5", "5"),
        ("Answer: 4\n" + r"\boxed{5}", "5"),
        ("<think>Answer: 4</think>Answer: 5", "5"),
        ("<think>a</think>Answer: 3<think>b</think>\nAnswer: 5", "5"),
        ("The answer is 5", None),
        ("my answer: 5", None),
        ("Answer:", None),
        ("Answer: 4\nAnswer:", None),
        ("<think>Answer: 5", None),
        ("<think>a</think>Answer: 5<think>", None),
        ("<think>Answer: 5</think>", None),
        (r"Answer: 4" + "\n" + r"\boxed{5", None),
        ("", None),
    ],
)
def test_final_answer(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


@given(st.text(alphabet="Answer: \\boxed{}<think>/\n5", max_size=80))
def test_final_answer_never_fails_and_is_part_of_the_text(text: str) -> None:
    answer = final_answer(text)
    assert answer is None or (answer and answer in text)


@pytest.mark.parametrize(
    ("gold", "text", "passed"),
    [
        ("B", "Answer: B", True), ("B", "Answer: (B) Paris", True), ("B", "**Answer: B.**", True),
        ("B", "Answer: $B$", True), ("A", r"\boxed{\text{A}}", True), ("A", "Answer: a", True),
        ("B", "Answer: A", False), ("A", "Answer: A dog", False), ("A", "Answer: AB", False),
        ("A", "A", False), ("B", "Answer: A or B", False),
    ],
)  # fmt: skip
def test_choice(gold: str, text: str, passed: bool) -> None:
    assert check("choice", gold, text).passed == passed


@pytest.mark.parametrize(
    ("gold", "text", "passed"),
    [
        ("Ann", "Answer: ann", True), ("Ann", 'Answer: "Ann".', True),
        ("Ann", "Answer: Anna", False),
        ("Ann", "Answer: Ann Lee", False), ("A, B, C", "Answer: a,B and C.", True),
        ("A, B, C", "Answer: [A, B, C]", True), ("A, B, C", "Answer: A, C, B", False),
        ("A, B, C", "Answer: A, B", False), ("13:55", "Answer: 13:55", True), ("x", "x", False),
        ("New  York", "Answer: new york", True),
    ],
)  # fmt: skip
def test_exact(gold: str, text: str, passed: bool) -> None:
    assert check("exact", gold, text).passed == passed


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        ("I don't know.", True), ("I don’t know.", True), ("Answer: cannot be determined", True),
        ("I'm not sure who that is.", True), ("There is not enough information.", True),
        ("Answer: unknown", True), ("Answer: 5", False), ("I don't know. Answer: 5", False),
        ("I don't know.\nAnswer: 5", False), ("<think>I don't know", False),
        ("<think>I don't know</think>It is Paris.", False), ("", False),
    ],
)  # fmt: skip
def test_refusal(text: str, passed: bool) -> None:
    assert check("refusal", "", text).passed == passed


def test_is_refusal_of_plain_text() -> None:
    assert is_refusal("Sorry, I cannot answer that.")
    assert not is_refusal("He knows that the unknown x is 3.")


@pytest.mark.parametrize(
    ("demands", "text", "wrong"),
    [
        ("thought, answer", "<think>a</think>\nAnswer: 5", ""),
        ("thought", "<think> </think>Answer: 5", "the thought is empty"),
        ("thought", "<think>a<think>b</think>", "exactly one"),
        ("thought", "hm <think>a</think>", "does not start"),
        ("answer", "5", "states no final answer"),
        ("answer", "Answer: 5\nand more", "does not end with"),
        ("no-thought", "<think>a</think>", "contains a thought"),
    ],
)
def test_format(demands: str, text: str, wrong: str) -> None:
    verdict = check("format", demands, text)
    assert verdict.passed == (not wrong) and wrong in verdict.reason


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(PhikitError, match="no verifier") as caught:
        get("maths")
    assert "'math'" in caught.value.hint
    with pytest.raises(PhikitError, match="knows no demand 'thougt'") as caught:
        check("format", "thougt", "x")
    assert "'thought'" in caught.value.hint


def test_by_name_keeps_the_order() -> None:
    items = [
        (Problem("?", "B", "choice"), "Answer: B"),
        (Problem("?", "5", "math"), "Answer: 6"),
        (Problem("?", "A", "choice"), "Answer: B"),
        (Problem("?", "5", "math"), "Answer: 5"),
    ]
    verdicts = ByName().verify(items)
    assert [(v.verifier, v.passed) for v in verdicts] == [
        ("choice", True), ("math", False), ("choice", False), ("math", True),
    ]  # fmt: skip
