"""The "code" verifier: runs the answer's program against tests, in the sandbox.

A test of the form `assert EXPRESSION == LITERAL` is a value check: only the expression enters the
process that runs the program, and the value that comes out is compared with the literal here. Any
other test runs there as it is (see `phikit.verify.inside.child` for what that can and cannot
guarantee).
"""

from __future__ import annotations

import ast
import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from phikit.errors import BadRecord
from phikit.records import Verdict
from phikit.verify.answer import after_thought
from phikit.verify.base import Problem, register
from phikit.verify.inside.values import key_of
from phikit.verify.sandbox import Check, CheckResult, Limits, Outcome, Program, run_python
from phikit.verify.verdicts import shorten, verdict

_FENCE = re.compile(
    r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)^[ \t]*```[ \t]*$", re.MULTILINE | re.DOTALL
)
LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class CheckedTest:
    """A test as its author wrote it, what is checked in the sandbox, and the value expected."""

    source: str
    check: Check
    key: str = ""
    expected: str = ""

    def failure(self, result: CheckResult) -> str:
        """What went wrong, or nothing."""
        if result.error:
            return result.error
        if self.check.kind == "value" and result.key != self.key:
            return f"gave {result.shown}, expected {self.expected}"
        return ""


@functools.lru_cache(maxsize=16_384)
def read_tests(answer: str) -> tuple[str, tuple[CheckedTest, ...]]:
    """(entry, tests) of a problem's answer: {"entry": name, "tests": ["assert f(2) == 4", ...]}.

    Raises:
        BadRecord: the answer is not of that form, or a test is not valid Python.
    """
    try:
        spec = json.loads(answer)
        entry, sources = spec["entry"], spec["tests"]
    except (ValueError, KeyError, TypeError) as e:
        raise BadRecord(
            f"a code problem's answer is {shorten(answer)}, not tests",
            'it must be JSON: {"entry": "f", "tests": ["assert f(2) == 4"]}',
        ) from e
    if not isinstance(entry, str) or not isinstance(sources, list) or not sources:
        raise BadRecord(f"a code problem needs an entry and at least one test: {shorten(answer)}")
    return entry, tuple(_test(source) for source in sources)


def _test(source: str) -> CheckedTest:
    try:
        body = ast.parse(source).body
    except (SyntaxError, TypeError, ValueError) as e:
        raise BadRecord(f"the test {shorten(str(source))} is not valid Python: {e}") from e
    match body:
        case [ast.Assert(test=ast.Compare(left=left, ops=[ast.Eq()], comparators=[right]))]:
            try:
                expected = ast.literal_eval(right)
            except ValueError:
                return CheckedTest(source, Check("statement", source))
            check = Check("value", ast.unparse(left))
            return CheckedTest(source, check, key_of(expected), ast.unparse(right))
    return CheckedTest(source, Check("statement", source))


def program_of(response: str) -> str | None:
    """The last Python block of a response, or all of it if it has no block and parses."""
    text = after_thought(response)
    if text is None:
        return None
    blocks = _FENCE.findall(text)
    python = [body for language, body in blocks if language.lower() in ("python", "py", "python3")]
    if python:
        return python[-1]
    if "```" in text or not text.strip() or not _parses(text):
        return None
    return text


def _parses(source: str) -> bool:
    try:
        ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def judge(entry: str, tests: Sequence[CheckedTest], outcome: Outcome) -> Verdict:
    """The verdict on a program from what came out of the sandbox.

    The score is the share of tests that passed; the verdict passes when all did.
    """
    total = len(tests)
    passed, first = 0, ""
    for number, (test, result) in enumerate(zip(tests, outcome.checks, strict=False), 1):
        wrong = test.failure(result)
        passed += not wrong
        if wrong and not first:
            first = f"test {number} of {total}, {shorten(test.source)}: {wrong}"
    if not outcome.ok:
        first = first or f"the program did not finish: {outcome.error}"
    if first:
        return verdict("code", False, first, passed / total)
    return verdict("code", True, f"{entry} passed {total} tests")


class _Cache:
    """Verdicts by (program, tests): a search asks about the same programs over and over."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.known: dict[tuple[str, str], Verdict] = {}

    def add(self, key: tuple[str, str], value: Verdict) -> None:
        if len(self.known) >= self.size:
            del self.known[next(iter(self.known))]
        self.known[key] = value


@functools.cache
def _cache() -> _Cache:
    return _Cache(65_536)


@register("code")
class CodeVerifier:
    """`Problem.answer` is JSON: {"entry": "f", "tests": ["assert f(2) == 4", ...]}."""

    name = "code"

    def verify(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        """All programs that are not yet known run in one batch.

        Raises:
            BadRecord: a problem's tests are malformed.
            PhikitError: this machine allows no sandbox.
        """
        known = _cache()
        keys = [(program_of(text) or "", problem.answer) for problem, text in items]
        fresh = [k for k in dict.fromkeys(keys) if k[0] and k not in known.known]
        programs = [
            Program(source, tuple(t.check for t in read_tests(answer)[1]))
            for source, answer in fresh
        ]
        verdicts = {
            key: judge(*read_tests(key[1]), outcome)
            for key, outcome in zip(fresh, run_python(programs, LIMITS), strict=True)
        }
        nothing = verdict("code", False, "no Python program in the response")
        result = [
            verdicts.get(k) or known.known.get(k) or nothing if k[0] else nothing for k in keys
        ]
        for key, value in verdicts.items():
            known.add(key, value)
        return result
