"""Comparisons with several people: who has how many, in total, and who has the most."""

from __future__ import annotations

from random import Random

from phikit.synth.arithmetic import equation
from phikit.synth.exercise import DatasetType, Exercise, decline, near_misses, top_number
from phikit.synth.words import THINGS, listed, people, plural, singular


def _chain(rng: Random, difficulty: int) -> tuple[list[str], list[int], list[str], list[str], str]:
    """(names, amounts, clues, steps, things): each person compared with the one before."""
    top = top_number(difficulty)
    count = (2, 3, 3, 4, 4)[difficulty - 1]
    names = [p.name for p in people(rng, count)]
    things = plural(rng.choice(THINGS))
    amounts = [rng.randint(3, top)]
    clues, steps = [f"{names[0]} has {amounts[0]} {things}."], []
    for i in range(1, count):
        before, name, other = amounts[-1], names[i], names[i - 1]
        kind = rng.random()
        if kind < 0.15 and before * 2 <= 2 * top:
            factor = rng.choice((2, 2, 3))
            amount = before * factor
            told = f"{name} has {'twice' if factor == 2 else '3 times'} as many as {other}."
            step = f"{name} has {equation(before, '*', factor)}."
        elif kind < 0.6 or before < 4:
            more = rng.randint(1, top)
            amount = before + more
            what = singular(things) if more == 1 else things
            told = rng.choice(
                (
                    f"{name} has {more} more than {other}.",
                    f"{name} has {more} more {what} than {other}.",
                )
            )
            step = f"{name} has {equation(before, '+', more)}."
        else:
            fewer = rng.randint(1, before - 2)
            amount = before - fewer
            what = singular(things) if fewer == 1 else things
            noun = rng.choice(("", f" {what}"))
            told = f"{name} has {fewer} fewer{noun} than {other}."
            step = f"{name} has {equation(before, '-', fewer)}."
        amounts.append(amount)
        clues.append(told)
        steps.append(step)
    return names, amounts, clues, steps, things


def write(rng: Random, difficulty: int) -> Exercise:
    names, amounts, clues, steps, things = _chain(rng, difficulty)
    if difficulty >= 4:
        rng.shuffle(clues)
    draw = rng.random()
    if draw < 0.5:
        return _total(rng, names, amounts, clues, steps, things)
    if draw < 0.75 and len(set(amounts)) == len(amounts):
        return _most(rng, names, amounts, clues, steps, things)
    if draw < 0.85:
        ask = f"How many {things} does {names[-1]} have?"
        return Exercise(
            question=" ".join((*clues, ask)),
            steps=tuple(steps),
            answer=str(amounts[-1]),
            wrong=near_misses(amounts[-1], rng, tuple(amounts[:-1])),
        )
    return _difference(rng, names, amounts, clues, steps, things)


def _total(
    rng: Random,
    names: list[str],
    amounts: list[int],
    clues: list[str],
    steps: list[str],
    things: str,
) -> Exercise:
    ask = rng.choice(
        (
            f"How many {things} do they have in total?",
            f"How many {things} do {listed(names)} have together?",
        )
    )
    sums, total = [], amounts[0]
    for i, amount in enumerate(amounts[1:], 2):
        word = "Together they have" if i == len(amounts) else "So far that makes"
        sums.append(f"{word} {equation(total, '+', amount)}.")
        total += amount
    return Exercise(
        question=" ".join((*clues, ask)),
        steps=(*steps, *sums),
        answer=str(sum(amounts)),
        wrong=near_misses(total, rng, (amounts[-1], total - amounts[0])),
    )


def _most(
    rng: Random,
    names: list[str],
    amounts: list[int],
    clues: list[str],
    steps: list[str],
    things: str,
) -> Exercise:
    word, pick = rng.choice((("most", max), ("fewest", min)))
    value = pick(amounts)
    name = names[amounts.index(value)]
    have = ", ".join(f"{n} {a}" for n, a in zip(names, amounts, strict=True))
    return Exercise(
        question=" ".join((*clues, f"Who has the {word} {things}?")),
        steps=(*steps, f"{have}: {name} has the {word}."),
        answer=name,
        verifier="exact",
        wrong=tuple(n for n in names if n != name),
    )


def _difference(
    rng: Random,
    names: list[str],
    amounts: list[int],
    clues: list[str],
    steps: list[str],
    things: str,
) -> Exercise:
    low, high = sorted((amounts[0], amounts[-1]))
    if low == high:
        return _total(rng, names, amounts, clues, steps, things)
    more, less = (names[0], names[-1]) if amounts[0] == high else (names[-1], names[0])
    return Exercise(
        question=" ".join((*clues, f"How many more {things} does {more} have than {less}?")),
        steps=(*steps, f"The difference is {equation(high, '-', low)}."),
        answer=str(high - low),
        wrong=near_misses(high - low, rng, (high, high + low)),
    )


def unanswerable(rng: Random, difficulty: int) -> Exercise:
    names, _, clues, _, things = _chain(rng, difficulty)
    if rng.random() < 0.5:
        clues, missing = clues[1:], f"the number of {things} that {names[0]} has"
        ask = f"How many {things} does {names[-1]} have?"
    else:
        stranger = next(p.name for p in people(rng, len(names) + 1) if p.name not in names)
        missing = f"the number of {things} that {stranger} has"
        ask = f"How many {things} does {stranger} have?"
    return decline(" ".join((*clues, ask)), missing)


TYPE = DatasetType(
    name="comparison",
    skill="keeping several people's amounts apart while combining them",
    write=write,
    unanswerable=unanswerable,
    dial="2, 3, 3, 4, 4 people; numbers up to 9 … 300; clues out of order from 4 on",
)
