"""Lists of numbers: find, count, filter, sort and sum."""

from __future__ import annotations

from random import Random

from phikit.synth.arithmetic import equation
from phikit.synth.exercise import DatasetType, Exercise, decline, near_misses, top_number


def _shown(values: list[int]) -> str:
    return ", ".join(map(str, values))


def _sum(values: list[int]) -> list[str]:
    steps, total = [], values[0]
    for value in values[1:]:
        steps.append(f"{equation(total, '+', value)}.")
        total += value
    return steps


def _extreme(rng: Random, values: list[int]) -> tuple[str, list[str], str, list[str]]:
    """(question, steps, answer, thought)"""
    word, better = rng.choice((("largest", max), ("smallest", min)))
    best, thought = values[0], [f"Start with {values[0]}."]
    for value in values[1:]:
        kept = better(best, value)
        thought.append(f"{value}: {'take' if kept != best else 'keep'} {kept}")
        best = kept
    return f"What is the {word} number?", [f"The {word} is {best}."], str(best), thought


def _spread(rng: Random, values: list[int]) -> tuple[str, list[str], str, list[str]]:
    high, low = max(values), min(values)
    steps = [f"The largest is {high}, the smallest is {low}.", f"{equation(high, '-', low)}."]
    return "What is the largest number minus the smallest?", steps, str(high - low), []


def _count(rng: Random, values: list[int]) -> tuple[str, list[str], str, list[str]]:
    limit = rng.choice(sorted(values)[:-1])
    above = [v for v in values if v > limit]
    thought, count = [], 0
    for value in values:
        count += value > limit
        thought.append(f"{value} > {limit}: {'yes' if value > limit else 'no'}, {count}")
    steps = [f"Above {limit}: {_shown(above)}." if above else f"None is above {limit}."]
    return f"How many numbers are greater than {limit}?", steps, str(len(above)), thought


def _parity(rng: Random, values: list[int]) -> tuple[str, list[str], str, list[str]]:
    word, rest = rng.choice((("even", 0), ("odd", 1)))
    kept = [v for v in values if v % 2 == rest]
    if len(kept) < 2:
        return _spread(rng, values)
    steps = [f"The {word} numbers are {_shown(kept)}.", *_sum(kept)]
    return f"What is the sum of the {word} numbers?", steps, str(sum(kept)), []


def _sorted(rng: Random, values: list[int]) -> tuple[str, list[str], str, list[str]]:
    down = rng.random() < 0.4
    ordered = sorted(values, reverse=down)
    rest, thought = list(values), []
    for value in ordered:
        rest.remove(value)
        thought.append(f"Take {value}, left: {_shown(rest)}" if rest else f"Take {value}.")
    word = "largest to smallest" if down else "smallest to largest"
    question = f"Write the numbers from {word}."
    return question, [f"From {word}: {_shown(ordered)}."], _shown(ordered), thought


def _place(rng: Random, values: list[int]) -> tuple[str, list[str], str, list[str]]:
    ordered = sorted(values, reverse=True)
    steps = [f"From largest to smallest: {_shown(ordered)}."]
    rest, thought = list(values), []
    for value in ordered[:2]:
        rest.remove(value)
        thought.append(f"The largest is {value}, left: {_shown(rest)}")
    return "What is the second largest number?", steps, str(ordered[1]), thought


def _total(rng: Random, values: list[int]) -> tuple[str, list[str], str, list[str]]:
    return "What is the sum of all the numbers?", _sum(values), str(sum(values)), []


def write(rng: Random, difficulty: int) -> Exercise:
    count = (4, 4, 5, 6, 7)[difficulty - 1]
    values = rng.sample(range(1, top_number(difficulty) + 1), count)
    task = rng.choice((_extreme, _spread, _count, _parity, _sorted, _place, _total))
    ask, steps, answer, thought = task(rng, values)
    opening = rng.choice(("Here are some numbers:", "Look at the list", "Numbers:", "Given"))
    numeric = answer.isdigit()
    return Exercise(
        question=f"{opening} {_shown(values)}. {ask}",
        steps=tuple(steps),
        answer=answer,
        verifier="math" if numeric else "exact",
        thought=(*thought, *steps) if thought else (),
        wrong=near_misses(int(answer), rng, tuple(values[:2])) if numeric else (),
    )


def unanswerable(rng: Random, difficulty: int) -> Exercise:
    count = (4, 4, 5, 6, 7)[difficulty - 1]
    values = rng.sample(range(1, top_number(difficulty) + 1), count)
    if rng.random() < 0.5:
        what = rng.choice(("largest", "smallest", "second largest"))
        question = f"I have a list of {count} numbers. What is the {what} number?"
        if rng.random() < 0.5:
            question = f"The sum of {count} numbers is {sum(values)}. What is the {what} number?"
        return decline(question, "the list of numbers")
    question = f"Given {_shown(values)} and one more number. What is the sum of all the numbers?"
    return decline(question, "the last number")


TYPE = DatasetType(
    name="lists",
    skill="going through a list with a rule in mind",
    write=write,
    unanswerable=unanswerable,
    dial="4, 4, 5, 6, 7 numbers up to 9, 20, 50, 99, 300",
)
