r"""The "math" verifier: is the final answer the same number, quantity or formula?

Nearly all answers are numbers: they are compared exactly, as rationals, without any library (a
microsecond). Only formulas go to math-verify, in a process of its own that is killed when it takes
too long. There is no matching of substrings: "12" does not contain "1".

What is equal: 1,234 and 1234; 0.5 and 1/2 and \frac{1}{2}; 1 1/2 and 1.5; 1.5e3 and 1500; $5 and 5;
50% and 50; 12 apples and 12; 1.5 km and 1500 m. What is not: 0.33 and 1/3 (no rounding); 12 apples
and 12 pears; 50% and 0.5. An answer that states two numbers ("12 or 13") is no number, and where a
number is expected "3 + 4" is none either: it was not worked out.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from phikit.records import Verdict
from phikit.verify.answer import final_answer
from phikit.verify.base import Problem, register
from phikit.verify.verdicts import NO_ANSWER, shorten, verdict
from phikit.verify.worker import Worker

LONGEST_NUMBER = 200  # characters; beyond it a power of ten could fill the memory
LONGEST_FORMULA = 400

_PLAIN = re.compile(r"-?\d{1,18}")
_NUMBER = re.compile(
    r"""(?P<sign>[-+−]?)\s*(?P<money>[$€£¥]?)\s*(?P<minus>[-−]?)
    (?:
        (?:(?P<whole>\d+)\s+)?(?P<top>\d+)\s*/\s*(?P<bottom>\d+)                  # 3/4, 1 3/4
      | (?P<frac_whole>\d*)\s*\\[dt]?frac\s*\{\s*(?P<frac_sign>-?)(?P<frac_top>\d+)\s*\}
            \s*\{\s*(?P<frac_bottom>\d+)\s*\}
      | (?P<decimal>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\.?\d*|\.\d+)(?:[eE](?P<power>[-+]?\d{1,3}))?
    )
    \s*(?P<unit>%|°|[^\W\d_]+(?:[ ²³/.^][^\W\d_]+|²|³|\^[23]){0,3})?[\s.]*""",
    re.VERBOSE,
)
_DROPPED = re.compile(r"\\(?:[,;!:() ]|left\b|right\b|displaystyle\b)|[`*\[\]]|\{,\}|~")
_TEXT = re.compile(r"\\(?:text|mathrm|mbox|textbf|mathbf)\s*\{([^{}]*)\}")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_WORD = re.compile(r"[^\W\d_]{3,}")
_FUNCTIONS = frozenset(
    ["sin", "cos", "tan", "cot", "sec", "csc", "log", "exp", "sqrt", "mod", "gcd"]
)
_SHORT_WORDS = re.compile(r"\b(?:an|as|at|by|he|in|is|it|no|of|on|or|so|to|we)\b")
_OPERATOR = re.compile(r"[\\^_+\-*/=()!|]")
_UNFINISHED = re.compile(r"[\d)}]\s*(?:[-+*×·]|\\times\b(?!\s*10\s*\^)|\\cdot\b(?!\s*10\s*\^))")

# unit → (dimension, size); other units are equal only to themselves
_SIZES: dict[str, dict[str, str | int]] = {
    "length": {"mm": "0.001", "cm": "0.01", "dm": "0.1", "m": 1, "meter": 1, "metre": 1,
                   "km": 1000, "kilometer": 1000, "kilometre": 1000, "centimeter": "0.01",
                   "centimetre": "0.01", "millimeter": "0.001", "millimetre": "0.001"},
    "mass": {"mg": "0.001", "g": 1, "gram": 1, "kg": 1000, "kilogram": 1000, "t": 1000000},
    "time": {"ms": "0.001", "s": 1, "sec": 1, "second": 1, "min": 60, "minute": 60, "h": 3600,
                 "hr": 3600, "hour": 3600, "day": 86400, "week": 604800},
    "volume": {"ml": "0.001", "cl": "0.01", "dl": "0.1", "l": 1, "liter": 1, "litre": 1,
                   "milliliter": "0.001", "millilitre": "0.001"},
    "dollars": {"cent": "0.01", "$": 1, "dollar": 1, "usd": 1},
    "percent": {"%": 1, "percent": 1},
    "angle": {"°": 1, "degree": 1},
}  # fmt: skip
_UNITS = {
    name: (dimension, Fraction(size))
    for dimension, table in _SIZES.items()
    for name, size in table.items()
}


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number as written, its unit (in the singular, or the dimension it belongs to; "" if none
    is stated), and its size in the dimension's base unit."""

    value: Fraction
    unit: str
    size: Fraction

    def differs(self, other: Quantity) -> str:
        """How, or nothing. Where only one of them states a unit, the numbers as written count."""
        if not self.unit or not other.unit:
            return "" if self.value == other.value else "another value"
        if self.unit != other.unit:
            return "another unit"
        return "" if self.size == other.size else "another value"


@functools.lru_cache(maxsize=65_536)
def quantity(text: str) -> Quantity | None:
    """Reads a number with or without a unit; None if the text is anything else."""
    if len(text) > LONGEST_NUMBER:
        return None
    cleaned = _DROPPED.sub("", _TEXT.sub(r" \1", text)).replace("\\%", "%").replace("\\$", "$")
    cleaned = cleaned.replace("^\\circ", "°").replace("^{\\circ}", "°").strip()
    if len(cleaned) > 1 and cleaned[0] == cleaned[-1] == "$":
        cleaned = cleaned[1:-1].strip()
    found = _NUMBER.fullmatch(cleaned)
    if not found or (found["sign"] and found["minus"]):
        return None
    money, unit = found["money"], (found["unit"] or "").strip(" .").casefold()
    if (money and unit not in ("", "dollar", "dollars")) or not _is_unit(unit, found):
        return None
    try:
        value = _value(found)
    except ZeroDivisionError:
        return None
    unit = money or unit
    known = _UNITS.get(unit) or _UNITS.get(unit.removesuffix("s"))
    if known:
        return Quantity(value, known[0], value * known[1])
    return Quantity(value, unit.removesuffix("s"), value)


def _is_unit(unit: str, found: re.Match[str]) -> bool:
    """Tells "2 m" and "12 apples" from "2m" and "2xy", which are formulas, and "12 or so"."""
    apart = found.string[: found.start("unit")].endswith(" ")
    if unit in _UNITS or unit.removesuffix("s") in _UNITS:
        return apart or len(unit) > 1 or not unit.isalpha()
    return not unit or (apart and len(unit) > 2 and not _SHORT_WORDS.search(unit))


def _value(found: re.Match[str]) -> Fraction:
    negative = found["sign"] in ("-", "−") or bool(found["minus"]) or found["frac_sign"] == "-"
    if found["top"]:
        value = int(found["whole"] or 0) + Fraction(int(found["top"]), int(found["bottom"]))
    elif found["frac_top"]:
        part = Fraction(int(found["frac_top"]), int(found["frac_bottom"]))
        value = int(found["frac_whole"] or 0) + part
    else:
        number = found["decimal"].replace(",", "")
        value = Fraction(f"{number}e{found['power']}" if found["power"] else number)
    return -value if negative else value


@functools.lru_cache(maxsize=262_144)
def judge(gold: str, answer: str) -> Verdict:
    """The verdict on a final answer; the second time for free."""
    if _PLAIN.fullmatch(gold) and _PLAIN.fullmatch(answer):
        if int(gold) == int(answer):
            return verdict("math", True, "the same number")
        return verdict("math", False, f"answered {answer}, expected {gold}")
    told = f"answered {shorten(answer)}, expected {shorten(gold)}"
    wanted, given = quantity(gold), quantity(answer)
    if wanted and given:
        wrong = wanted.differs(given)
        return verdict("math", not wrong, f"{told}: {wrong}" if wrong else "the same number")
    if "".join(gold.split()) == "".join(answer.split()):
        return verdict("math", True, "the same text")
    if not is_formula(answer) or not (wanted or is_formula(gold)):
        return verdict("math", False, f"{told}: neither a number nor a formula")
    if wanted and (_UNFINISHED.search(answer) or not _OPERATOR.search(answer)):
        return verdict("math", False, f"{told}: not worked out to a number")
    reply = _worker(os.getpid()).ask([gold, answer])
    if reply is None:
        return verdict("math", False, f"{told}: the comparison took too long")
    if reply["equal"]:
        return verdict("math", True, "an equal formula")
    return verdict("math", False, f"{told}: {reply['error'] or 'not equal'}")


def is_formula(text: str) -> bool:
    """Could this be mathematics? Prose is not worth starting sympy for."""
    if not text or len(text) > LONGEST_FORMULA:
        return False
    words = _WORD.findall(_COMMAND.sub(" ", _TEXT.sub(" ", text)))
    return all(word in _FUNCTIONS for word in words) and not _SHORT_WORDS.search(text)


@functools.lru_cache(maxsize=1)
def _worker(pid: int) -> Worker:
    """This process's worker; by process number, so that a forked copy starts its own."""
    return Worker(Path(__file__).with_name("math_worker.py"), first=["1", "1"])


@register("math")
class MathVerifier:
    """`Problem.answer` is the number, the quantity or the formula, in plain text or LaTeX."""

    name = "math"

    def verify(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        return [self._one(problem.answer, text) for problem, text in items]

    def _one(self, gold: str, text: str) -> Verdict:
        answer = final_answer(text)
        return verdict("math", False, NO_ANSWER) if answer is None else judge(gold, answer)
