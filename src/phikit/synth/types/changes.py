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


class _Story:
    """Sentences in which `who` gains and loses things, some of them to and from `other`.

    A pronoun is used only where it can mean nobody but `who`.
    """

    def __init__(self, rng: Random, who: Person, other: Person, things: str, opening: str) -> None:
        self.rng, self.who, self.other, self.things = rng, who, other, things
        self.sentences = [opening]

    def tell(self, n: int | str, gain: bool) -> str:
        """Adds a sentence in which `n` things come or go; returns what to call that number."""
        who, other = self.who, self.other
        template, phrase = self.rng.choice(_GAINS if gain else _LOSSES)
        unclear = who.they == other.they and other.name in self.sentences[-1]
        named = {"name": who.name, "other": other.name, "things": self.things}
        number = "the number of " + phrase.format(**named)
        if n == 1:
            named["things"] = singular(self.things)
        they = who.name if unclear else who.they
        event = self.rng.choice(_LINKS) + template.format(n=n, they=they, **named)
        self.sentences.append(capital(event) + ".")
        return number

    def asking(self, question: str) -> str:
        return " ".join((*self.sentences, question))


def write(rng: Random, difficulty: int) -> Exercise:
    if rng.random() < 0.15:
        return _backwards(rng, difficulty)
    who, other = people(rng, 2)
    things = plural(rng.choice(THINGS))
    start, changes = _amounts(rng, difficulty)
    opening = rng.choice(_STARTS).format(name=who.name, n=start, things=things)
    story = _Story(rng, who, other, things, opening)
    steps, now = [], start
    for change in changes:
        story.tell(abs(change), change > 0)
        op = "+" if change > 0 else "-"
        steps.append(f"{capital(who.they)} has {equation(now, op, abs(change))}.")
        now += change
    ask = rng.choice(_ASKS).format(name=who.name, things=things)
    return Exercise(
        question=story.asking(ask),
        steps=tuple(steps),
        answer=str(start + sum(changes)),
        wrong=near_misses(now, rng, (now - changes[-1], now - 2 * changes[-1])),
    )


def _backwards(rng: Random, difficulty: int) -> Exercise:
    """The end is known and the start is asked for."""
    who, other = people(rng, 2)
    things = plural(rng.choice(THINGS))
    start, changes = _amounts(rng, difficulty)
    story = _Story(rng, who, other, things, f"{who.name} has some {things}.")
    for change in changes:
        story.tell(abs(change), change > 0)
    now = start + sum(changes)
    held = f"{now} {singular(things) if now == 1 else things}"
    ask = f"Now {who.name} has {held}. How many {things} did {who.name} have at first?"
    steps, end = [], now
    for change in reversed(changes):
        op = "-" if change > 0 else "+"
        steps.append(f"Before that {who.they} had {equation(now, op, abs(change))}.")
        now -= change
    return Exercise(
        question=story.asking(ask),
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
    opening = rng.choice(_STARTS).format(name=who.name, n=start, things=thing)
    story = _Story(rng, who, other, thing, opening)
    for i, change in enumerate(changes):
        if i == hidden:
            missing = story.tell(rng.choice(("some", "a few", "several")), change > 0)
        else:
            story.tell(abs(change), change > 0)
    ask = rng.choice(_ASKS).format(name=who.name, things=asked)
    return decline(story.asking(ask), missing)


TYPE = DatasetType(
    name="changes",
    skill="following a quantity through gains and losses, forwards and backwards",
    write=write,
    unanswerable=unanswerable,
    dial="numbers up to 9, 20, 50, 99, 300; 2, 2, 3, 3, 4 steps",
)
