"""Finds the arithmetic that a text states ("12 + 3 * 4 = 24") and works it out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

_N = r"\d+(?:,\d{3})*(?:\.\d+)?"
_STATEMENT = re.compile(
    rf"(?<![\w.,])(?P<left>[-−]?{_N}(?:\s*[-−+*/×÷·]\s*[-−]?{_N})+)\s*=\s*(?P<right>[-−]?{_N})"
    rf"(?![\d.,]*\d|\s*[-−+*/×÷·]\s*\d|\w)"
)
_TOKEN = re.compile(rf"{_N}|[-−+*/×÷·]")


@dataclass(frozen=True, slots=True)
class Statement:
    text: str
    true: bool


def statements(text: str) -> list[Statement]:
    """Every statement `numbers and operators = number`, in order.

    Equations with variables, brackets, or operators on the right are left out.
    """
    found = []
    for match in _STATEMENT.finditer(text):
        if text[: match.start()].rstrip(" ").endswith(tuple("+-−*/×÷·^(=")):
            continue  # the end of a longer expression
        value = evaluate(match["left"])
        found.append(Statement(match[0], value is not None and value == evaluate(match["right"])))
    return found


def evaluate(expression: str) -> Fraction | None:
    """The exact value of numbers joined by + - * /; None where it divides by nought."""
    total, product, sign, operator = Fraction(0), None, 1, ""
    for token in _TOKEN.findall(expression):
        if not token[0].isdigit():
            if operator in ("", "+") and token in "-−":
                operator, sign = "+", -sign
            elif operator:  # a sign after an operator: 3 * -2, 3 - -2
                sign = -sign if token in "-−" else sign
            else:
                operator = token
            continue
        value = sign * Fraction(token.replace(",", ""))
        sign = 1
        if product is not None and operator in "*×·" and operator:
            product *= value
        elif product is not None and operator in "/÷" and operator:
            if not value:
                return None
            product /= value
        else:
            total += product or 0
            product = -value if operator in ("-", "−") else value
        operator = ""
    return total + (product or 0)
