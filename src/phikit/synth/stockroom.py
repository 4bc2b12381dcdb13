"""A small environment for agents: shelves, things on them, a task, and tools to do it with.

It is a program, so that a trajectory is judged by what it did: the shelves at the end, and the
number that was asked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from phikit.synth.words import THINGS, plural

SHELVES = ("A", "B", "C", "D")
TOOLS = """\
You work in a stockroom by calling tools. Reply with one JSON object and nothing else:
{"tool": "look", "shelf": "A"} says what lies on a shelf (A, B, C or D);
{"tool": "move", "thing": "pens", "count": 2, "from": "A", "to": "B"} moves things;
{"tool": "finish", "count": 7} ends the task; `count` is the number that was asked for, or 0."""
CALL: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "tool": {"type": "string", "enum": ["look", "move", "finish"]},
        "shelf": {"type": "string"},
        "thing": {"type": "string"},
        "count": {"type": "integer"},
        "from": {"type": "string"},
        "to": {"type": "string"},
    },
    "required": ["tool"],
    "additionalProperties": False,
}


@dataclass
class Stockroom:
    """The state, the task, and what the state has to be at the end.

    Attributes:
        shelves: shelf → thing → how many.
        asked: the number that has to be said; None where none is asked for.
    """

    shelves: dict[str, dict[str, int]]
    task: str
    goal: dict[str, dict[str, int]]
    asked: int | None
    finished: int | None = field(default=None)

    @classmethod
    def drawn(cls, rng: Random) -> Stockroom:
        """A task: count something, gather something, or even two shelves out."""
        things = [plural(t) for t in rng.sample(THINGS, 3)]
        shelves = {
            s: {t: rng.randint(1, 9) for t in rng.sample(things, rng.randint(1, 3))}
            for s in SHELVES
        }
        thing = next(iter(shelves["A"]))
        held = [s for s in SHELVES if thing in shelves[s]]
        goal = {s: dict(on) for s, on in shelves.items()}
        kind = rng.choice(("count", "gather", "bring"))
        total = sum(shelves[s][thing] for s in held)
        if kind == "count":
            return cls(shelves, f"How many {thing} are on all the shelves together?", goal, total)
        if kind == "gather":
            for s in held:
                del goal[s][thing]
            goal["D"][thing] = total
            task = f"Put all {thing} of all shelves on shelf D, and say how many there are then."
            return cls(shelves, task, goal, total)
        part = rng.randint(1, shelves["A"][thing])
        target = rng.choice(SHELVES[1:])
        _shift(goal, thing, part, "A", target)
        named = thing if part > 1 else thing.removesuffix("s")
        return cls(shelves, f"Move {part} {named} from shelf A to shelf {target}.", goal, None)

    def call(self, asked: Mapping[str, Any]) -> str:
        """Does what a call says; says what came of it, also when it cannot be done."""
        match asked.get("tool"):
            case "look":
                shelf = asked.get("shelf")
                if shelf not in self.shelves:
                    return f"error: there is no shelf {shelf!r}"
                return json.dumps(self.shelves[shelf], sort_keys=True)
            case "move":
                return self._move(asked)
            case "finish":
                self.finished = int(asked.get("count", 0))
                return "done"
        return f"error: there is no tool {asked.get('tool')!r}"

    def _move(self, asked: Mapping[str, Any]) -> str:
        thing, count = str(asked.get("thing")), int(asked.get("count", 0))
        start, end = asked.get("from"), asked.get("to")
        if start not in self.shelves or end not in self.shelves or start == end:
            return f"error: cannot move from {start!r} to {end!r}"
        there = self.shelves[start].get(thing, 0)
        if not 0 < count <= there:
            return f"error: shelf {start} has {there} {thing}, not {count} to move"
        _shift(self.shelves, thing, count, start, end)
        return "moved"

    def judge(self) -> tuple[bool, str]:
        """Is the task done? And why not."""
        if self.finished is None:
            return False, "the task was not finished"
        if self.shelves != self.goal:
            return False, "the shelves are not as they should be"
        if self.asked is not None and self.finished != self.asked:
            return False, f"said {self.finished}, and it is {self.asked}"
        return True, "the task is done"


def _shift(
    shelves: dict[str, dict[str, int]], thing: str, count: int, start: str, end: str
) -> None:
    shelves[start][thing] -= count
    if not shelves[start][thing]:
        del shelves[start][thing]
    shelves[end][thing] = shelves[end].get(thing, 0) + count
