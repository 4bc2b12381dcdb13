"""Linear equations in one unknown, solved in two steps."""

from __future__ import annotations

from random import Random

from phikit.synth.arithmetic import equation
from phikit.synth.exercise import DatasetType, Exercise, decline, near_misses
from phikit.synth.words import people

_ASKS = (
    "Solve for {x}: {equation}",
    "Find {x} if {equation}.",
    "What is {x} when {equation}?",
    "If {equation}, what is {x}?",
    "The equation is {equation}. Find {x}.",
)
_LETTERS = "xynkabmpt"


def _numbers(rng: Random, difficulty: int) -> tuple[int, int, int]:
    """(factor, solution, constant)"""
    factor = rng.randint(2, (5, 9, 9, 12, 20)[difficulty - 1])
    solution = rng.randint(1, (9, 9, 20, 30, 60)[difficulty - 1])
    constant = rng.randint(1, (9, 20, 50, 99, 200)[difficulty - 1])
    return factor, solution, constant


def _plain(rng: Random, difficulty: int) -> Exercise:
    """a x + c = r, a x - c = r, c + a x = r"""
    factor, solution, constant = _numbers(rng, difficulty)
    x = rng.choice(_LETTERS)
    product = factor * solution
    minus = product > constant and rng.random() < 0.4
    result = product - constant if minus else product + constant
    left = f"{factor}{x} - {constant}" if minus else f"{factor}{x} + {constant}"
    if not minus and rng.random() < 0.3:
        left = f"{constant} + {factor}{x}"
    text = f"{left} = {result}" if rng.random() < 0.8 else f"{result} = {left}"
    undo = "+" if minus else "-"
    return Exercise(
        question=rng.choice(_ASKS).format(x=x, equation=text),
        steps=(
            f"{factor}{x} is {equation(result, undo, constant)}.",
            f"{x} is {equation(product, '/', factor)}.",
        ),
        answer=str(solution),
        wrong=near_misses(solution, rng, (product,)),
    )


def _bracket(rng: Random, difficulty: int) -> Exercise:
    """a (x + c) = r"""
    factor, solution, constant = _numbers(rng, min(difficulty, 4))
    constant = min(constant, 30)
    x = rng.choice(_LETTERS)
    inner = solution + constant
    return Exercise(
        question=rng.choice(_ASKS).format(
            x=x, equation=f"{factor}({x} + {constant}) = {factor * inner}"
        ),
        steps=(
            f"{x} + {constant} is {equation(factor * inner, '/', factor)}.",
            f"{x} is {equation(inner, '-', constant)}.",
        ),
        answer=str(solution),
        wrong=near_misses(solution, rng, (inner,)),
    )


def _told(rng: Random, difficulty: int) -> Exercise:
    """The same as a riddle in words."""
    factor, solution, constant = _numbers(rng, difficulty)
    (who,) = people(rng, 1)
    product = factor * solution
    result = product + constant
    question = rng.choice(
        (
            f"{who.name} thinks of a number, multiplies it by {factor} and adds {constant}. "
            f"The result is {result}. What is the number?",
            f"{factor} times a number, plus {constant}, is {result}. What is the number?",
        )
    )
    return Exercise(
        question=question,
        steps=(
            f"Before adding it was {equation(result, '-', constant)}.",
            f"The number is {equation(product, '/', factor)}.",
        ),
        answer=str(solution),
        wrong=near_misses(solution, rng, (product,)),
    )


def write(rng: Random, difficulty: int) -> Exercise:
    kinds = (_plain, _plain, _told) if difficulty == 1 else (_plain, _plain, _told, _bracket)
    return rng.choice(kinds)(rng, difficulty)


def unanswerable(rng: Random, difficulty: int) -> Exercise:
    factor, solution, constant = _numbers(rng, difficulty)
    x, other = rng.sample(_LETTERS, 2)
    if rng.random() < 0.5:
        text = f"{factor}{x} + {constant} = {factor * solution + constant}"
        return decline(
            rng.choice(_ASKS).format(x=other, equation=text), f"an equation with {other}"
        )
    text = f"{factor}{x} + {constant} = {other}"
    return decline(rng.choice(_ASKS).format(x=x, equation=text), f"the value of {other}")


TYPE = DatasetType(
    name="equations",
    skill="undoing operations in the right order",
    write=write,
    unanswerable=unanswerable,
    dial="factors to 5, 9, 9, 12, 20; solutions to 9, 9, 20, 30, 60; constants to 9 … 200",
)
