"""Unit conversion in two or three steps."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from phikit.synth.arithmetic import equation
from phikit.synth.exercise import DatasetType, Exercise, decline, near_misses
from phikit.synth.words import people


class _Unit(NamedTuple):
    big: str
    small: str
    factor: int
    what: str
    level: int


_UNITS = (
    _Unit("week", "day", 7, "a holiday", 1),
    _Unit("yard", "foot", 3, "a fence", 1),
    _Unit("gallon", "quart", 4, "a tank", 1),
    _Unit("meter", "centimeter", 100, "a rope", 1),
    _Unit("kilogram", "gram", 1000, "a parcel", 2),
    _Unit("foot", "inch", 12, "a plank", 2),
    _Unit("year", "month", 12, "a course", 2),
    _Unit("dozen", "egg", 12, "an order", 2),
    _Unit("hour", "minute", 60, "a film", 2),
    _Unit("minute", "second", 60, "a song", 2),
    _Unit("day", "hour", 24, "a trip", 3),
    _Unit("pound", "ounce", 16, "a parcel", 3),
)
_IRREGULAR = {"foot": "feet", "inch": "inches", "dozen": "dozen"}


def _count(number: int, unit: str) -> str:
    return f"{number} {unit if number == 1 else _many(unit)}"


def _many(unit: str) -> str:
    return _IRREGULAR.get(unit, unit + "s")


def _amounts(rng: Random, difficulty: int) -> tuple[_Unit, int, int]:
    """A unit that the difficulty allows, a number of the big one and some small ones over."""
    unit = rng.choice([u for u in _UNITS if u.level <= difficulty])
    step = max(1, unit.factor // 20)
    rest = rng.randrange(step, unit.factor, step)
    return unit, rng.randint(2, (5, 6, 9, 12, 20)[difficulty - 1]), rest


def _down(rng: Random, difficulty: int) -> Exercise:
    """Big and small units together in small ones."""
    unit, big, rest = _amounts(rng, difficulty)
    total = big * unit.factor
    amount = f"{_count(big, unit.big)} and {_count(rest, unit.small)}"
    question = rng.choice(
        (
            f"How many {_many(unit.small)} are {amount}?",
            f"Write {amount} in {_many(unit.small)}.",
            f"The size of {unit.what} is {amount}. What is it in {_many(unit.small)}?",
        )
    )
    return Exercise(
        question=question,
        steps=(
            f"{_count(big, unit.big)}: {equation(big, '*', unit.factor)} {_many(unit.small)}.",
            f"With the rest: {equation(total, '+', rest)}.",
        ),
        answer=str(total + rest),
        wrong=near_misses(total + rest, rng, (total, big + rest)),
    )


def _used(rng: Random, difficulty: int) -> Exercise:
    """A big amount of which small units are used up."""
    unit, big, rest = _amounts(rng, difficulty)
    (who,) = people(rng, 1)
    total = big * unit.factor
    question = rng.choice(
        (
            f"{who.name} has {_count(big, unit.big)} and uses {_count(rest, unit.small)}. "
            f"How many {_many(unit.small)} are left?",
            f"Out of {_count(big, unit.big)}, {_count(rest, unit.small)} are gone. "
            f"How many {_many(unit.small)} remain?",
        )
    )
    return Exercise(
        question=question.replace(" 1 " + unit.small + " are", " 1 " + unit.small + " is"),
        steps=(
            f"{_count(big, unit.big)}: {equation(big, '*', unit.factor)} {_many(unit.small)}.",
            f"That leaves {equation(total, '-', rest)}.",
        ),
        answer=str(total - rest),
        wrong=near_misses(total - rest, rng, (total,)),
    )


def _up(rng: Random, difficulty: int) -> Exercise:
    """Two amounts in small units together make whole big ones."""
    unit, big, _ = _amounts(rng, difficulty)
    first, second = people(rng, 2)
    total = big * unit.factor
    step = max(1, unit.factor // 20)
    a = rng.randrange(step, total, step)
    question = (
        f"{first.name} has {_count(a, unit.small)} and {second.name} has "
        f"{_count(total - a, unit.small)}. How many {_many(unit.big)} is that in total?"
    )
    return Exercise(
        question=question,
        steps=(
            f"Together: {equation(a, '+', total - a)} {_many(unit.small)}.",
            f"In {_many(unit.big)}: {equation(total, '/', unit.factor)}.",
        ),
        answer=str(big),
        wrong=near_misses(big, rng, (total,)),
    )


def write(rng: Random, difficulty: int) -> Exercise:
    return rng.choice((_down, _used, _up))(rng, difficulty)


def unanswerable(rng: Random, difficulty: int) -> Exercise:
    unit, big, _ = _amounts(rng, difficulty)
    (who,) = people(rng, 1)
    small = _many(unit.small)
    vague = rng.choice(("some", "a few", "several"))
    question = rng.choice(
        (
            f"{who.name} has {_count(big, unit.big)} and uses {vague} {small}. "
            f"How many {small} are left?",
            f"Out of {_count(big, unit.big)}, {vague} {small} are gone. How many {small} remain?",
        )
    )
    used = "uses" if who.name in question else ""
    missing = (
        f"the number of {small} that {who.name} uses" if used else f"the number of {small} gone"
    )
    return decline(question, missing)


TYPE = DatasetType(
    name="units",
    skill="converting units and going on to calculate with them",
    write=write,
    unanswerable=unanswerable,
    dial="big units up to 5, 6, 9, 12, 20; harder factors (12, 60, 24, 16) from 2 and 3 on",
)
