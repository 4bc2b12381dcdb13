"""The small world that the procedural problems are about: people, things and places."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

_SHE = (
    "Mia", "Ana", "Zoe", "Eva", "Ida", "Lena", "Nora", "Rosa", "Sara", "Tina", "Emma", "Lily",
    "Ruth", "Jane", "Kate", "Maya", "Nina", "Olga", "Vera", "Anna", "Ella", "Cora", "Dora",
    "Iris", "June", "Leah", "Mona", "Pia", "Rita", "Uma", "Wendy", "Gina", "Hana", "Alma",
)  # fmt: skip
_HE = (
    "Leo", "Tom", "Sam", "Ben", "Max", "Ken", "Dan", "Jack", "Adam", "Noah", "Luke", "Paul",
    "Omar", "Hugo", "Ivan", "Karl", "Finn", "Eric", "Alan", "Bob", "Carl", "Dave", "Fred",
    "Glen", "Hans", "Igor", "Jim", "Kurt", "Mark", "Nick", "Otto", "Pete", "Ron", "Walt",
)  # fmt: skip
PEOPLE = (*_SHE, *_HE)
_PRONOUNS = {**dict.fromkeys(_SHE, "she"), **dict.fromkeys(_HE, "he")}

THINGS = (
    "shell", "stamp", "marble", "book", "apple", "pear", "coin", "card", "sticker", "pencil",
    "pen", "balloon", "button", "bead", "cookie", "cake", "egg", "flower", "stone", "ticket",
    "toy", "ball", "cup", "plate", "hat", "sock", "nut", "plum", "lemon", "orange", "candle",
    "nail", "brick", "ribbon", "photo", "puzzle", "spoon", "comb", "drum", "kite", "ring",
    "rose", "seed", "leaf", "key", "feather",
)  # fmt: skip
_PLURALS = {"leaf": "leaves"}
CONTAINERS = ("box", "bag", "basket", "jar", "drawer", "tray", "crate", "pack")
WORDS = (
    "lamp", "stone", "river", "apple", "table", "garden", "window", "bread", "silver", "tiger",
    "mango", "paper", "music", "cloud", "green", "house", "water", "light", "train", "horse",
    "banana", "cotton", "letter", "button", "rabbit", "pepper", "summer", "winter", "yellow",
    "orange", "pencil", "basket", "market", "doctor", "island", "bottle", "dinner", "planet",
    "rocket", "carpet",
)  # fmt: skip


class Person(NamedTuple):
    """Someone in a problem, with the pronoun that stands for them ("she" or "he")."""

    name: str
    they: str


def people(rng: Random, count: int) -> list[Person]:
    """`count` different people."""
    return [Person(name, _PRONOUNS[name]) for name in rng.sample(PEOPLE, count)]


def plural(thing: str) -> str:
    """The plural of one of this world's nouns ("box" → "boxes")."""
    if thing in _PLURALS:
        return _PLURALS[thing]
    return thing + ("es" if thing.endswith(("x", "s", "sh", "ch")) else "s")


def singular(things: str) -> str:
    """The noun whose plural this is ("shells" → "shell").

    Raises:
        KeyError: it is not the plural of one of `THINGS`.
    """
    return {plural(thing): thing for thing in THINGS}[things]


def counted(count: int, thing: str) -> str:
    """A number of things: "1 box", "3 boxes"."""
    return f"{count} {thing if count == 1 else plural(thing)}"


def listed(names: list[str]) -> str:
    """Names as a sentence lists them: "Mia", "Mia and Leo", "Mia, Leo and Ana"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def capital(text: str) -> str:
    """The text with its first letter in upper case and the rest untouched."""
    return text[:1].upper() + text[1:]
