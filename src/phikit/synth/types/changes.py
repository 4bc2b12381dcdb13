"""Word problems: something is gained and lost, in two to four steps."""

from __future__ import annotations

from random import Random

from phikit.synth.arithmetic import equation
from phikit.synth.exercise import DatasetType, Exercise, decline, near_misses, top_number
from phikit.synth.words import THINGS, Person, capital, people, plural, singular

# (what happens, the noun phrase of the number in it)
_GAINS = (
    ("{they} finds {n} more {things}", "{things} that {name} finds"),
    ("{they} buys {n} more {things}", "{things} that {name} buys"),
    ("{other} gives {n} {things} to {name}", "{things} that {other} gives to {name}"),
    ("{they} gets {n} {things} as a gift", "{things} in the gift"),
    ("{they} wins {n} {things} in a game", "{things} that {name} wins"),
)
_LOSSES = (
    ("{they} gives {n} {things} to {other}", "{things} that {name} gives to {other}"),
    ("{they} loses {n} {things}", "{things} that {name} loses"),
    ("{they} sells {n} {things}", "{things} that {name} sells"),
    ("{they} throws {n} {things} away", "{things} that {name} throws away"),
    ("{they} lends {n} {things} to {other}", "{things} that {name} lends to {other}"),
)
_STARTS = (
    "{name} has {n} {things}.",
    "{name} starts the day with {n} {things}.",
    "There are {n} {things} in {name}'s room, all of them {name}'s.",
    "{name} owns {n} {things}.",
)
_ASKS = (
    "How many {things} does {name} have now?",
    "How many {things} does {name} have at the end?",
    "What is the number of {things} that {name} has now?",
)
_LINKS = ("", "Then ", "After that, ", "Later ", "The next day ")


def _amounts(rng: Random, difficulty: int) -> tuple[int, list[int]]:
    """A start and signed changes that never take more than there is."""
    top = top_number(difficulty)
    start = rng.randint(max(2, top // 4), top)
    now, changes = start, []
    for _ in range((2, 2, 3, 3, 4)[difficulty - 1]):
        gain = now < 3 or rng.random() < 0.5
        change = rng.randint(2, top) if gain else -rng.randint(1, now - 1)
        changes.append(change)
        now += change
    return start, changes


def _event(
    rng: Random, who: Person, other: Person, things: str, n: int | str, gain: bool
) -> tuple[str, str]:
    """A sentence in which `who` gains or loses `n` things, and what to call that number."""
    template, phrase = rng.choice(_GAINS if gain else _LOSSES)
    link = rng.choice(_LINKS)
    named = {"they": who.they, "name": who.name, "other": other.name, "things": things}
    number = "the number of " + phrase.format(**named)
    if n == 1:
        named["things"] = singular(things)
    return capital(link + template.format(n=n, **named)) + ".", number


def write(rng: Random, difficulty: int) -> Exercise:
    if rng.random() < 0.15:
        return _backwards(rng, difficulty)
    who, other = people(rng, 2)
    things = plural(rng.choice(THINGS))
    start, changes = _amounts(rng, difficulty)
    story = [rng.choice(_STARTS).format(name=who.name, n=start, things=things)]
    steps, now = [], start
    for change in changes:
        story.append(_event(rng, who, other, things, abs(change), change > 0)[0])
        op = "+" if change > 0 else "-"
        steps.append(f"{capital(who.they)} has {equation(now, op, abs(change))}.")
        now += change
    ask = rng.choice(_ASKS).format(name=who.name, things=things)
    return Exercise(
        question=" ".join((*story, ask)),
        steps=tuple(steps),
        answer=str(start + sum(changes)),
        wrong=near_misses(now, rng, (now - changes[-1], now - 2 * changes[-1])),
    )


def _backwards(rng: Random, difficulty: int) -> Exercise:
    """The end is known and the start is asked for."""
    who, other = people(rng, 2)
    things = plural(rng.choice(THINGS))
    start, changes = _amounts(rng, difficulty)
    story = [f"{who.name} has some {things}."]
    story += [_event(rng, who, other, things, abs(change), change > 0)[0] for change in changes]
    now = start + sum(changes)
    story.append(f"Now {who.they} has {now} {things}.")
    story.append(f"How many {things} did {who.name} have at first?")
    steps, end = [], now
    for change in reversed(changes):
        op = "-" if change > 0 else "+"
        steps.append(f"Before that {who.they} had {equation(now, op, abs(change))}.")
        now -= change
    return Exercise(
        question=" ".join(story),
        steps=tuple(steps),
        answer=str(start),
        wrong=near_misses(start, rng, (end, end + sum(changes))),
    )


def unanswerable(rng: Random, difficulty: int) -> Exercise:
    who, other = people(rng, 2)
    thing, elsewhere = (plural(t) for t in rng.sample(THINGS, 2))
    start, changes = _amounts(rng, difficulty)
    missing = f"the number of {elsewhere} that {who.name} has"
    hidden, asked = -1, elsewhere
    if rng.random() < 0.6:
        hidden, asked = rng.randrange(len(changes)), thing
    story = [rng.choice(_STARTS).format(name=who.name, n=start, things=thing)]
    for i, change in enumerate(changes):
        n = rng.choice(("some", "a few", "several")) if i == hidden else abs(change)
        sentence, number = _event(rng, who, other, thing, n, change > 0)
        story.append(sentence)
        if i == hidden:
            missing = number
    story.append(rng.choice(_ASKS).format(name=who.name, things=asked))
    return decline(" ".join(story), missing)


TYPE = DatasetType(
    name="changes",
    skill="following a quantity through gains and losses, forwards and backwards",
    write=write,
    unanswerable=unanswerable,
    dial="numbers up to 9, 20, 50, 99, 300; 2, 2, 3, 3, 4 steps",
)
