import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phikit.errors import PhikitError
from phikit.records import Verdict
from phikit.verify.base import Problem, get
from phikit.verify.code import program_of, read_tests
from phikit.verify.inside.values import canonical

TESTS = ["assert f(2) == 4", "assert f(0) == 0", "assert abs(f(1) - 1) < 1e-9"]


def check(text: str, tests: list[str] = TESTS) -> Verdict:
    answer = json.dumps({"entry": "f", "tests": tests})
    return get("code").verify([(Problem("?", answer, "code"), text)])[0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("def f(x): return x * x", ""),
        ("<think>```python\n1/0\n```</think>\n```python\ndef f(x):\n  return x*x\n```", ""),
        ("```python\ndef f(x): return 1\n```\nBetter:\n```python\ndef f(x): return x*x\n```\n", ""),
        ("def f(x): return x + 2", "test 2 of 3, 'assert f(0) == 0': gave 2, expected 0"),
        ("def f(x): return x / (x - 1)", "test 1 of 3, 'assert f(2) == 4': gave 2.0, expected 4"),
        ("def g(x): return x", "NameError: name 'f' is not defined"),
        ("def f(x): return x * x\nf(1, 2)", "TypeError"),
        ("import sys\nsys.exit(0)", "SystemExit: 0 (line 2)"),
        ("import os\nos._exit(0)", "ended itself"),
        ("def f(x):\n  import os\n  os._exit(0)", "in check 1 of 3"),
        ("def f(x):\n  while True: pass", "processor time, in check 1 of 3"),
        ("I do not know", "no Python program"),
        ("```\ndef f(x): return x*x\n```", "no Python program"),
        ("<think>def f(x): return x*x", "no Python program"),
        ("", "no Python program"),
    ],
)  # fmt: skip
def test_programs(text: str, reason: str) -> None:
    verdict = check(text)
    assert verdict.passed == (not reason), verdict.reason
    assert reason in verdict.reason


CHEATS = {
    "equal to everything": """
class E:
    __eq__ = lambda s, o: True
def f(x): return E()
""",
    "a number equal to all": """
class E(int):
    __eq__ = lambda s, o: True
    __hash__ = int.__hash__
def f(x): return E(7)
""",
    "searches its memory for what is expected": """
import gc
def f(x):
    return next((o for o in gc.get_objects() if isinstance(o, list) and 16 in o), None)
""",
    "no more assertions": """
import builtins
builtins.AssertionError = None
def f(x): return 0
""",
    "replaces eval and repr": """
import builtins
builtins.eval = lambda *a: 4
builtins.repr = lambda o: '4'
def f(x): return 0
""",
    "replaces json": """
import json
json.dumps = lambda o: '{}'
def f(x): return 0
""",
    "exits happily": """
import atexit, os
atexit.register(os._exit, 0)
def f(x): raise SystemExit(0)
""",
}


@pytest.mark.parametrize("name", CHEATS)
def test_a_value_cannot_be_faked(name: str) -> None:
    assert not check(CHEATS[name], ["assert f(4) == 16"]).passed


def test_the_score_is_the_share_of_tests_passed() -> None:
    assert check("def f(x): return x + 2").score == pytest.approx(1 / 3)
    assert check("def f(x): return x * x").score == 1


def test_equal_programs_run_once_and_a_batch_keeps_its_order() -> None:
    answer = json.dumps({"entry": "f", "tests": ["assert f() == 3"]})
    problem = Problem("?", answer, "code")
    items = [(problem, f"def f(): return {i % 4}") for i in range(40)]
    assert [v.passed for v in get("code").verify(items)] == [i % 4 == 3 for i in range(40)]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("5", "not tests"), ("{}", "not tests"), ("oh", "not tests"),
        ('{"entry": "f", "tests": []}', "at least one test"),
        ('{"entry": "f", "tests": ["assert ("]}', "not valid Python"),
    ],
)  # fmt: skip
def test_malformed_tests_are_the_users_error(answer: str, message: str) -> None:
    with pytest.raises(PhikitError, match=message):
        read_tests(answer)


def test_the_expected_value_stays_outside() -> None:
    _, (value, statement, both) = read_tests(
        json.dumps(
            {"entry": "f", "tests": ["assert f(2)==[1, 'x']", "assert f(2)", "assert f(1) == f(2)"]}
        )
    )
    assert (value.check.kind, value.check.source) == ("value", "f(2)")
    assert statement.check.kind == both.check.kind == "statement"


def test_program_of_unfenced_prose_is_none() -> None:
    assert program_of("x = 1") == "x = 1"
    assert program_of("this is no code") is None


literals = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3)
    | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner)
    | st.dictionaries(st.integers(0, 3) | st.text(max_size=2), inner, max_size=3)
    | st.frozensets(st.integers(0, 3) | st.text(max_size=2), max_size=3),
    max_leaves=6,
)  # fmt: skip


@given(literals, literals)
def test_canonical_text_is_equal_exactly_for_equal_values(a: object, b: object) -> None:
    assert (canonical(a) == canonical(b)) == (a == b)
