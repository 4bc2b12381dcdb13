"""Arithmetic spelled out in steps so small that a tiny model has each of them by heart.

A worked thought shows addition and subtraction column by column with carries and borrows,
multiplication by parts, and division digit by digit. Everything here speaks about whole numbers.
"""

from __future__ import annotations

import re

_COLUMNS = ("ones", "tens", "hundreds", "thousands", "ten thousands", "hundred thousands")
# not the tail of a longer chain such as "1 + 2 + 1 = 4"
_STATEMENT = re.compile(r"(?<![-+*/%] )(?<![\w.*+/-])(\d+) ([-+*/]) (\d+) = (\d+)(?!\d|\.\d)")


def compute(a: int, op: str, b: int) -> int:
    """`a op b` for op in + - * /.

    Raises:
        ValueError: the division leaves a remainder, or the operator is another.
    """
    if op == "+":
        return a + b
    if op == "-":
        return a - b
    if op == "*":
        return a * b
    if op == "/" and b and a % b == 0:
        return a // b
    raise ValueError(f"{a} {op} {b} is not a whole number")


def equation(a: int, op: str, b: int) -> str:
    """A true statement: "14 + 9 = 23"."""
    return f"{a} {op} {b} = {compute(a, op, b)}"


def spelled(a: int, op: str, b: int) -> str:
    """The small steps behind `a op b`, or "" where it is a single fact already."""
    if op == "+" and a > 9:
        return _added(a, b)
    if op == "+" and b > 9:
        return _added(b, a)
    if op == "-" and a > 9 and 0 <= b <= a:
        return _subtracted(a, b)
    if op == "*" and (a > 9 or b > 9):
        return _multiplied(a, b)
    if op == "/" and a > 9:
        return _divided(a, b)
    return ""


def thought_lines(steps: tuple[str, ...]) -> list[str]:
    """The steps of a short solution, each calculation preceded by its spelled-out small steps,
    and the last calculation checked backwards."""
    lines: list[str] = []
    last: tuple[int, str, int] | None = None
    for step in steps:
        for left, op, right, _ in _STATEMENT.findall(step):
            a, b = int(left), int(right)
            small = spelled(a, op, b)
            if small:
                lines.append(f"{a} {op} {b}: {small}")
            last = (a, op, b)
        lines.append(step)
    if last:
        lines.append(_check(*last))
    return lines


def statements(text: str) -> list[tuple[int, str, int, int]]:
    """Every "a op b = c" in a text, for tests that they are true."""
    return [(int(a), op, int(b), int(c)) for a, op, b, c in _STATEMENT.findall(text)]


def _digits(value: int) -> list[int]:
    return [int(d) for d in reversed(str(value))]


def _added(a: int, b: int) -> str:
    """47 + 38 → "ones 7 + 8 = 15, write 5, carry 1. tens 4 + 3 + 1 = 8."""
    columns, carry = [], 0
    top, low = _digits(a), _digits(b)
    width = max(len(top), len(low))
    for i in range(width):
        parts = [column[i] for column in (top, low) if i < len(column)] + ([1] if carry else [])
        total = sum(parts)
        text = f"{_COLUMNS[i]} {' + '.join(map(str, parts))}"
        if len(parts) > 1:
            text += f" = {total}"
        carry = total // 10
        if carry and i + 1 < width:
            text += f", write {total % 10}, carry 1"
        columns.append(text)
    return ". ".join(columns) + "."


def _subtracted(a: int, b: int) -> str:
    """52 - 17 → "ones 2 - 7, borrow, 12 - 7 = 5. tens 5 - 1 - 1 = 3."""
    columns, borrow = [], 0
    low = _digits(b)
    for i, digit in enumerate(_digits(a)):
        taken = low[i : i + 1] + ([1] if borrow else [])
        minus = "".join(f" - {d}" for d in taken)
        rest = digit - sum(taken)
        text = f"{_COLUMNS[i]} {digit}{minus}"
        borrow = rest < 0
        if borrow:
            text += f", borrow, {digit + 10}{minus} = {rest + 10}"
        elif taken:
            text += f" = {rest}"
        columns.append(text)
    return ". ".join(columns) + "."


def _multiplied(a: int, b: int) -> str:
    """24 * 6 → "20 * 6 = 120, 4 * 6 = 24, 120 + 24 = 144."""
    if (b > a or b % 10 ** (len(str(b)) - 1) == 0) and a > 9 and not _round(a):
        big, small = a, b
    else:
        big, small = (a, b) if (a > 9 and not _round(a)) else (b, a)
    if big <= 9 or _round(big):
        return ""
    parts = [d * 10**i for i, d in enumerate(_digits(big)) if d][::-1]
    texts = [f"{part} * {small} = {part * small}" for part in parts]
    total = parts[0] * small
    for part in parts[1:]:
        texts.append(f"{total} + {part * small} = {total + part * small}")
        total += part * small
    return ", ".join(texts) + "."


def _round(value: int) -> bool:
    """One digit followed by zeros."""
    return value % 10 ** (len(str(value)) - 1) == 0


def _divided(a: int, b: int) -> str:
    """96 / 4 → "9 is 2 * 4 + 1. 16 is 4 * 4." """
    if a < 10 * b:
        return f"{a // b} * {b} = {a}."
    texts: list[str] = []
    rest = 0
    for digit in map(int, str(a)):
        value = rest * 10 + digit
        quotient, rest = divmod(value, b)
        if quotient or texts:
            texts.append(f"{value} is {quotient} * {b}" + (f" + {rest}" if rest else ""))
    return ". ".join(texts) + "."


def _check(a: int, op: str, b: int) -> str:
    """The last calculation undone: 23 - 8 = 15 → "Check: 15 + 8 = 23." """
    undo = {"+": "-", "-": "+", "*": "/", "/": "*"}[op]
    return f"Check: {equation(compute(a, op, b), undo, b)}."
