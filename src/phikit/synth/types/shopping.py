"""Money: prices, several purchases, change, savings."""

from __future__ import annotations

from random import Random

from phikit.synth.arithmetic import equation
from phikit.synth.exercise import DatasetType, Exercise, decline, near_misses
from phikit.synth.words import THINGS, capital, counted, people


def _prices(rng: Random, difficulty: int) -> tuple[str, str, int, int, int]:
    """(first thing, second thing, price of the first, price of the second, how many firsts)"""
    top = (5, 9, 12, 20, 45)[difficulty - 1]
    first, second = rng.sample(THINGS, 2)
    count = rng.randint(2, (4, 5, 6, 9, 9)[difficulty - 1])
    return first, second, rng.randint(2, top), rng.randint(2, top), count


def _dollars(amount: int) -> str:
    return f"{amount} dollar{'' if amount == 1 else 's'}"


def _two_purchases(rng: Random, difficulty: int) -> Exercise:
    first, second, price, other_price, count = _prices(rng, difficulty)
    (who,) = people(rng, 1)
    total = price * count
    question = rng.choice(
        (
            f"A {first} costs {_dollars(price)} and a {second} costs {_dollars(other_price)}. "
            f"{who.name} buys {counted(count, first)} and 1 {second}. "
            f"How many dollars does {who.they} pay?",
            f"{who.name} buys {counted(count, first)} for {_dollars(price)} each and a {second} "
            f"for {_dollars(other_price)}. What is the total in dollars?",
        )
    )
    return Exercise(
        question=question,
        steps=(
            f"{capital(counted(count, first))}: {equation(price, '*', count)}.",
            f"In total: {equation(total, '+', other_price)}.",
        ),
        answer=str(total + other_price),
        wrong=near_misses(total + other_price, rng, (price + other_price, total)),
    )


def _change(rng: Random, difficulty: int) -> Exercise:
    first, _, price, _, count = _prices(rng, difficulty)
    (who,) = people(rng, 1)
    total = price * count
    paid = next(note for note in (10, 20, 50, 100, 200, 500) if note > total)
    if rng.random() < 0.5:
        paid = total + rng.randint(1, 20)
    question = rng.choice(
        (
            f"{who.name} buys {counted(count, first)} for {_dollars(price)} each and pays with "
            f"{paid} dollars. How many dollars does {who.they} get back?",
            f"{who.name} has {paid} dollars and buys {counted(count, first)} at "
            f"{_dollars(price)} each. How many dollars are left?",
        )
    )
    return Exercise(
        question=question,
        steps=(
            f"The price is {equation(price, '*', count)}.",
            f"{capital(who.they)} has {equation(paid, '-', total)} left.",
        ),
        answer=str(paid - total),
        wrong=near_misses(paid - total, rng, (total, paid - price)),
    )


def _saving(rng: Random, difficulty: int) -> Exercise:
    """Saving so much a week for something: how many weeks?"""
    thing, _, weekly, _, weeks = _prices(rng, difficulty)
    (who,) = people(rng, 1)
    needed = weekly * weeks
    has = rng.randint(1, 9 * difficulty)
    question = (
        f"{who.name} wants a {thing} that costs {has + needed} dollars. {capital(who.they)} has "
        f"{_dollars(has)} and saves {_dollars(weekly)} every week. "
        f"How many weeks does {who.they} need?"
    )
    return Exercise(
        question=question,
        steps=(
            f"Still needed: {equation(has + needed, '-', has)} dollars.",
            f"Weeks: {equation(needed, '/', weekly)}.",
        ),
        answer=str(weeks),
        wrong=near_misses(weeks, rng, (needed,)),
    )


def write(rng: Random, difficulty: int) -> Exercise:
    return rng.choice((_two_purchases, _change, _saving))(rng, difficulty)


def unanswerable(rng: Random, difficulty: int) -> Exercise:
    first, second, price, _, count = _prices(rng, difficulty)
    (who,) = people(rng, 1)
    if rng.random() < 0.5:
        question = (
            f"A {first} costs {_dollars(price)}. {who.name} buys {counted(count, first)} and "
            f"1 {second}. How many dollars does {who.they} pay?"
        )
        return decline(question, f"the price of a {second}")
    question = (
        f"{who.name} buys {counted(count, first)} for {_dollars(price)} each and pays with a note. "
        f"How many dollars does {who.they} get back?"
    )
    return decline(question, f"how much {who.name} pays with")


TYPE = DatasetType(
    name="shopping",
    skill="prices times amounts, totals, change and saving",
    write=write,
    unanswerable=unanswerable,
    dial="prices up to 5, 9, 12, 20, 45; amounts up to 4, 5, 6, 9, 9",
)
