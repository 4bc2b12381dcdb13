"""Percentages that come out whole: parts, discounts, increases."""

from __future__ import annotations

from random import Random

from phikit.synth.arithmetic import equation
from phikit.synth.exercise import DatasetType, Exercise, decline, near_misses
from phikit.synth.words import THINGS, people, plural

# percent → (divide by, multiply by)
_PARTS = {10: (10, 1), 50: (2, 1), 25: (4, 1), 20: (5, 1), 30: (10, 3), 75: (4, 3), 40: (5, 2),
          60: (5, 3), 70: (10, 7), 80: (5, 4)}  # fmt: skip


def _numbers(rng: Random, difficulty: int) -> tuple[int, int, list[str]]:
    """(percent, whole, the steps that find the part)"""
    percent = rng.choice(list(_PARTS)[: (3, 5, 8, 10, 10)[difficulty - 1]])
    divide, times = _PARTS[percent]
    base = rng.randint(1, (9, 12, 20, 40, 90)[difficulty - 1])
    whole = base * divide
    steps = [f"{100 // divide}% of {whole} is {equation(whole, '/', divide)}."]
    if times > 1:
        steps.append(f"{percent}% is {equation(base, '*', times)}.")
    return percent, whole, steps


def write(rng: Random, difficulty: int) -> Exercise:
    percent, whole, steps = _numbers(rng, difficulty)
    divide, times = _PARTS[percent]
    part = whole // divide * times
    thing = rng.choice(THINGS)
    (who,) = people(rng, 1)
    draw = rng.randrange(4)
    if draw == 0:
        question = f"What is {whole} plus {percent}% of {whole}?"
        steps.append(f"The sum is {equation(whole, '+', part)}.")
        answer = whole + part
    elif draw == 1:
        question = (
            f"A {thing} costs {whole} dollars. Its price falls by {percent}%. "
            "What is the new price in dollars?"
        )
        steps.append(f"The new price is {equation(whole, '-', part)}.")
        answer = whole - part
    elif draw == 2:
        question = (
            f"{who.name} has {whole} {plural(thing)} and sells {percent}% of them. "
            f"How many does {who.they} keep?"
        )
        steps.append(f"{who.they.capitalize()} keeps {equation(whole, '-', part)}.")
        answer = whole - part
    else:
        extra = rng.randint(1, 9)
        question = (
            f"{who.name} has {extra} {plural(thing)} and gets {percent}% of a bag of {whole}. "
            f"How many does {who.they} have now?"
        ).replace(f" 1 {plural(thing)} and", f" 1 {thing} and")
        steps.append(f"{who.they.capitalize()} has {equation(extra, '+', part)}.")
        answer = extra + part
    return Exercise(
        question=question,
        steps=tuple(steps),
        answer=str(answer),
        wrong=near_misses(answer, rng, (part, whole)),
    )


def unanswerable(rng: Random, difficulty: int) -> Exercise:
    percent, whole, _ = _numbers(rng, difficulty)
    thing = rng.choice(THINGS)
    (who,) = people(rng, 1)
    if rng.random() < 0.5:
        question = f"The price of a {thing} falls by {percent}%. What is the new price in dollars?"
        return decline(question, f"the old price of the {thing}")
    question = (
        f"{who.name} has {whole} {plural(thing)} and sells a part of them. "
        f"How many does {who.they} keep?"
    )
    return decline(question, f"the part that {who.name} sells")


TYPE = DatasetType(
    name="percent",
    skill="finding a percentage by a simpler one, and using it",
    write=write,
    unanswerable=unanswerable,
    dial="3, 5, 8, 10, 10 different percentages; base parts up to 9, 12, 20, 40, 90",
)
