"""The lenient verifier reads the last number, and not a number more."""

import pytest

from phikit.verify.base import Problem, get
from phikit.verify.number import last_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("10 + 5 + 9 = 24", "24"),
        ("so 26 - 20 = 6 apples.", "6"),
        ("The total is 1,234.50 dollars.", "1234.50"),
        ("x = -5", "-5"),
        ("it falls to −5 degrees", "-5"),
        ("from 20-5", "5"),
        ("from 20 - 5", "5"),
        ("(3) -2", "2"),
        ("step2 and v1.x", None),
        ("12 apples, not 13a", "12"),
        ("no number", None),
        ("", None),
    ],
)
def test_the_last_number(text: str, number: str | None) -> None:
    assert last_number(text) == number


@pytest.mark.parametrize(
    ("text", "gold", "passed"),
    [
        ("10 + 5 + 9 = 24", "24", True),
        ("The answer is 24, since 10 + 14 = 25", "24", False),
        ("Answer: 24 apples. There were 30.", "24", False),
        ("Answer: 24 apples\nThere were 30.", "24", True),
        (r"\boxed{24} of 30", "24", True),
        ("<think>24 it is</think> hm", "24", False),
        ("<think>24", "24", False),
        ("twelve", "12", False),
        ("Answer: about 24", "24", True),
        ("it costs 12.50", "25/2", True),
    ],
)
def test_verdicts(text: str, gold: str, passed: bool) -> None:
    problem = Problem(prompt="?", answer=gold, verifier="number")
    (verdict,) = get("number").verify([(problem, text)])
    assert verdict.passed is passed, verdict.reason
    assert verdict.verifier == "number"
