from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phikit.synth.arithmetic import compute, equation, spelled, statements, thought_lines

numbers = st.integers(0, 99_999)


def test_columns_read_as_a_person_writes_them() -> None:
    assert spelled(47, "+", 38) == "ones 7 + 8 = 15, write 5, carry 1. tens 4 + 3 + 1 = 8."
    assert spelled(52, "-", 17) == "ones 2 - 7, borrow, 12 - 7 = 5. tens 5 - 1 - 1 = 3."
    assert spelled(24, "*", 6) == "20 * 6 = 120, 4 * 6 = 24, 120 + 24 = 144."
    assert spelled(96, "/", 4) == "9 is 2 * 4 + 1. 16 is 4 * 4."
    assert spelled(3, "+", 4) == ""


@given(numbers, numbers, st.sampled_from("+-*"))
def test_spelled_steps_are_true(a: int, b: int, op: str) -> None:
    if op == "-" and b > a:
        a, b = b, a
    for left, sign, right, result in statements(spelled(a, op, b)):
        assert compute(left, sign, right) == result


@given(numbers, numbers)
def test_the_columns_of_a_sum_give_its_digits(a: int, b: int) -> None:
    text = spelled(a, "+", b)
    if not text:
        return
    digits = ""
    for column in text.rstrip(".").split(". "):
        last = column.split(", write ")[1][0] if "write" in column else column.split()[-1]
        digits = last + digits
    assert int(digits) == a + b


@given(st.integers(1, 400), st.integers(2, 60))
def test_the_digits_of_a_quotient_stand_in_its_steps(quotient: int, divisor: int) -> None:
    text = spelled(quotient * divisor, "/", divisor)
    if " is " in text:
        digits = "".join(step.split(" is ")[1].split(" * ")[0] for step in text.split(". "))
        assert int(digits) == quotient


def test_a_thought_spells_out_checks_and_keeps_the_steps() -> None:
    assert thought_lines(("He has 47 + 38 = 85.", "He keeps 85 - 3 = 82.")) == [
        "47 + 38: ones 7 + 8 = 15, write 5, carry 1. tens 4 + 3 + 1 = 8.",
        "He has 47 + 38 = 85.",
        "85 - 3: ones 5 - 3 = 2. tens 8.",
        "He keeps 85 - 3 = 82.",
        "Check: 82 + 3 = 85.",
    ]


def test_a_division_with_a_remainder_is_no_statement() -> None:
    with pytest.raises(ValueError, match="whole number"):
        equation(7, "/", 2)
