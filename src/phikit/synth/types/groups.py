"""Word problems with equal groups: packing, sharing and rates."""

from __future__ import annotations

from random import Random

from phikit.synth.arithmetic import equation
from phikit.synth.exercise import DatasetType, Exercise, decline, near_misses
from phikit.synth.words import CONTAINERS, THINGS, capital, counted, people, plural


def _factors(rng: Random, difficulty: int) -> tuple[int, int]:
    """(size of a group, number of groups), the second never above 9."""
    largest = (5, 9, 9, 20, 50)[difficulty - 1]
    return rng.randint(2, largest), rng.randint(2, (5, 6, 9, 9, 9)[difficulty - 1])


def _packed(rng: Random, difficulty: int) -> Exercise:
    """Groups of equal size, and some single things more or fewer."""
    who, other = people(rng, 2)
    thing, box = rng.choice(THINGS), rng.choice(CONTAINERS)
    size, number = _factors(rng, difficulty)
    total = size * number
    extra = rng.randint(1, min(total - 1, size * 2))
    gain = rng.random() < 0.5
    opening = rng.choice(
        (
            f"{who.name} has {counted(number, box)} with {counted(size, thing)} in each.",
            f"Each {box} holds {counted(size, thing)}. {who.name} has {counted(number, box)}.",
            f"{who.name} buys {counted(number, box)} of {plural(thing)}. "
            f"There are {size} in each {box}.",
        )
    )
    change = rng.choice(
        (f"{who.name} finds {counted(extra, thing)} more.", f"{other.name} brings {extra} more.")
        if gain
        else (f"{who.name} gives away {extra}.", f"{counted(extra, thing)} {_be(extra)} lost.")
    )
    ask = f"How many {plural(thing)} does {who.name} have now?"
    op = "+" if gain else "-"
    answer = total + extra if gain else total - extra
    return Exercise(
        question=f"{opening} {capital(change)} {ask}",
        steps=(
            f"The {plural(box)} hold {equation(size, '*', number)} {plural(thing)}.",
            f"Now there are {equation(total, op, extra)}.",
        ),
        answer=str(answer),
        wrong=near_misses(answer, rng, (total, size + number + extra)),
    )


def _be(count: int) -> str:
    return "is" if count == 1 else "are"


def _shared(rng: Random, difficulty: int) -> Exercise:
    """Two amounts put together and shared equally."""
    first, second = people(rng, 2)
    things = plural(rng.choice(THINGS))
    each, friends = _factors(rng, difficulty)
    total = each * friends
    a = rng.randint(1, total - 1)
    b = total - a
    question = rng.choice(
        (
            f"{first.name} has {a} {things} and {second.name} has {b}. They share all of them "
            f"equally among {friends} children. How many {things} does each child get?",
            f"{first.name} picks {a} {things} and {second.name} picks {b}. They put them into "
            f"{friends} bags, the same number in each. How many {things} are in each bag?",
        )
    )
    return Exercise(
        question=question,
        steps=(
            f"Together they have {equation(a, '+', b)} {things}.",
            f"Each part is {equation(total, '/', friends)}.",
        ),
        answer=str(each),
        wrong=near_misses(each, rng, (total, abs(a - b))),
    )


_WORK = (
    ("reads", "page", "A book has", "day", "are left to read"),
    ("plants", "seed", "A bag holds", "hour", "are left in the bag"),
    ("paints", "plate", "A shop has", "hour", "are not painted yet"),
    ("packs", "toy", "A truck brings", "hour", "are not packed yet"),
    ("bakes", "cake", "A party needs", "day", "are still to be baked"),
)


def _rate(rng: Random, difficulty: int) -> Exercise:
    """So many a day, for so many days, out of a total."""
    (who,) = people(rng, 1)
    verb, thing, total_is, unit, left = rng.choice(_WORK)
    rate, time = _factors(rng, difficulty)
    done = rate * time
    total = done + rng.randint(1, max(9, rate * 2))
    things = plural(thing)
    question = rng.choice(
        (
            f"{total_is} {total} {things}. {who.name} {verb} {counted(rate, thing)} every {unit} "
            f"for {counted(time, unit)}. How many {things} {left}?",
            f"Every {unit} {who.name} {verb} {counted(rate, thing)}. {total_is} {total} {things}. "
            f"After {counted(time, unit)}, how many {things} {left}?",
        )
    )
    return Exercise(
        question=question,
        steps=(
            f"In {counted(time, unit)} {who.they} {verb} {equation(rate, '*', time)}.",
            f"That leaves {equation(total, '-', done)} {things}.",
        ),
        answer=str(total - done),
        wrong=near_misses(total - done, rng, (done, total - rate)),
    )


def write(rng: Random, difficulty: int) -> Exercise:
    return rng.choice((_packed, _packed, _shared, _rate))(rng, difficulty)


def unanswerable(rng: Random, difficulty: int) -> Exercise:
    (who,) = people(rng, 1)
    thing, box = rng.choice(THINGS), rng.choice(CONTAINERS)
    size, number = _factors(rng, difficulty)
    extra = rng.randint(2, 9)
    if rng.random() < 0.5:
        opening = f"{who.name} has {counted(number, box)} of {plural(thing)}."
        missing = f"the number of {plural(thing)} in each {box}"
    else:
        opening = f"Each {box} holds {counted(size, thing)}. {who.name} has some {plural(box)}."
        missing = f"the number of {plural(box)}"
    change = rng.choice((f"{who.name} finds {extra} more.", f"{who.name} gives away {extra}."))
    if "each" in missing:
        change = change.replace(str(extra), counted(extra, thing))
    ask = f"How many {plural(thing)} does {who.name} have now?"
    return decline(f"{opening} {change} {ask}", missing)


TYPE = DatasetType(
    name="groups",
    skill="equal groups, equal sharing and rates, with one step more",
    write=write,
    unanswerable=unanswerable,
    dial="group sizes up to 5, 9, 9, 20, 50; number of groups up to 5, 6, 9, 9, 9",
)
