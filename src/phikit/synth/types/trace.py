"""Tracing a small Python function: what does the call return?

The functions are generated from a small grammar: loops over lists, ranges and words, `while`,
conditions, accumulation of numbers, lists and strings.
"""

from __future__ import annotations

from random import Random
from typing import Any

from phikit.synth.arithmetic import thought_lines
from phikit.synth.exercise import DatasetType, Exercise, decline
from phikit.synth.tracing import shown, trace
from phikit.synth.words import WORDS

_NAMES = (
    "f", "g", "h", "run", "work", "step", "calc", "solve", "build", "make", "apply", "process",
)  # fmt: skip
_Call = tuple[str, list[Any]]  # the function's source, the arguments


def _size(difficulty: int) -> tuple[int, int]:
    """(turns of a loop, largest number)"""
    return ((3, 3, 4, 4, 5)[difficulty - 1], (5, 9, 12, 20, 50)[difficulty - 1])


def _condition(rng: Random, name: str, top: int) -> str:
    return rng.choice(
        (
            f"{name} > {rng.randint(1, top - 1)}",
            f"{name} < {rng.randint(2, top)}",
            f"{name} % 2 == {rng.randrange(2)}",
            f"{name} != {rng.randint(1, top)}",
        )
    )


def _change(rng: Random, name: str, top: int) -> str:
    """What is added in a turn: the value itself or a simple expression of it."""
    small = rng.randint(2, max(3, top // 4))
    return rng.choice((name, name, f"{name} + {small}", f"{name} * {rng.randint(2, 3)}"))


def _indented(lines: list[str], condition: str = "") -> list[str]:
    if condition:
        lines = [f"if {condition}:", *(f"    {line}" for line in lines)]
    return [f"    {line}" for line in lines]


def _source(name: str, parameters: str, body: list[str]) -> str:
    return "\n".join((f"def {name}({parameters}):", *(f"    {line}" for line in body)))


def _over_list(rng: Random, difficulty: int) -> _Call:
    turns, top = _size(difficulty)
    total = rng.choice(("total", "result", "s", "acc"))
    x = rng.choice(("x", "n", "v", "item"))
    condition = _condition(rng, x, top) if rng.random() < 0.3 + 0.1 * difficulty else ""
    body = [
        f"{total} = {rng.choice((0, 0, rng.randint(1, top)))}",
        f"for {x} in items:",
        *_indented([f"{total} += {_change(rng, x, top)}"], condition),
        rng.choice((f"return {total}", f"return {total} + {rng.randint(1, top)}")),
    ]
    values = [rng.randint(1, top) for _ in range(turns)]
    return _source(rng.choice(_NAMES), "items", body), [values]


def _over_range(rng: Random, difficulty: int) -> _Call:
    turns, top = _size(difficulty)
    total = rng.choice(("total", "result", "s", "acc"))
    first = rng.choice((0, 1, 1))
    grow = rng.choice(("+=", "+=", "-=")) if difficulty > 2 else "+="
    start = rng.randint(0, top) if grow == "+=" else rng.randint(3 * top, 5 * top)
    condition = _condition(rng, "i", turns + 1) if rng.random() < 0.1 * difficulty else ""
    body = [
        f"{total} = {start}",
        f"for i in range({first}, n):" if first else "for i in range(n):",
        *_indented([f"{total} {grow} {_change(rng, 'i', top)}"], condition),
        f"return {total}",
    ]
    return _source(rng.choice(_NAMES), "n", body), [turns + first]


def _branch(rng: Random, difficulty: int) -> _Call:
    _, top = _size(difficulty)
    a, b = rng.sample("abcxyz", 2)
    k, m = rng.randint(1, top), rng.randint(2, 4)
    body = [
        f"if {rng.choice((f'{a} > {b}', f'{a} < {b}', f'{a} + {b} > {k}'))}:",
        f"    {a} = {rng.choice((f'{a} + {k}', f'{a} * {m}', f'{b} + {k}'))}",
        rng.choice((f"return {a} + {b}", f"return {a} * {m} + {b}", f"return {b} + {a} + {k}")),
    ]
    if difficulty > 1:
        body[2:2] = ["else:", f"    {b} = {rng.choice((f'{b} + {m}', f'{a} + {m}'))}"]
    return _source(rng.choice(_NAMES), f"{a}, {b}", body), [rng.randint(1, top) for _ in "ab"]


def _while(rng: Random, difficulty: int) -> _Call:
    turns, top = _size(difficulty)
    step = rng.randint(2, max(3, top // 2))
    limit = rng.randint(0, step)
    start = limit + step * (turns - 1) - rng.randrange(step) + 1
    count = rng.choice(("count", "k", "steps"))
    body = [
        f"{count} = 0",
        f"while n > {limit}:",
        f"    n -= {step}",
        f"    {count} += 1",
        rng.choice((f"return {count}", "return n", f"return n + {count}")),
    ]
    return _source(rng.choice(_NAMES), "n", body), [max(start, limit + 1)]


def _collect(rng: Random, difficulty: int) -> _Call:
    turns, top = _size(difficulty)
    out = rng.choice(("out", "result", "kept"))
    x = rng.choice(("x", "n", "v"))
    body = [
        f"{out} = []",
        f"for {x} in items:",
        *_indented([f"{out}.append({_change(rng, x, top)})"], _condition(rng, x, top)),
        f"return {out}",
    ]
    return _source(rng.choice(_NAMES), "items", body), [[rng.randint(1, top) for _ in range(turns)]]


def _letters(rng: Random, difficulty: int) -> _Call:
    longest = (4, 5, 5, 6, 7)[difficulty - 1]
    word = rng.choice([w for w in WORDS if len(w) <= longest])
    condition = f'c != "{rng.choice(word)}"' if rng.random() < 0.6 else ""
    body = [
        'out = ""',
        "for c in word:",
        *_indented([rng.choice(("out = c + out", "out += c", "out = out + c + c"))], condition),
        "return out",
    ]
    return _source(rng.choice(_NAMES), "word", body), [word]


def _exercise(source: str, arguments: list[Any]) -> Exercise:
    result, turns = trace(source, arguments)
    name = source[4 : source.index("(")]
    call = f"{name}({', '.join(map(shown, arguments))})"
    return Exercise(
        question=f"What does {call} return?\n```python\n{source}\n```",
        steps=tuple(", ".join(notes) for notes in turns),
        thought=tuple(thought_lines(tuple(note for notes in turns for note in notes))),
        answer=str(result),
        verifier="math" if isinstance(result, int) else "exact",
        program=f"{source}\nassert {call} == {shown(result)}\n",
    )


def write(rng: Random, difficulty: int) -> Exercise:
    shapes = (_over_list, _over_list, _over_range, _branch, _while, _collect, _letters)
    return _exercise(*rng.choice(shapes)(rng, difficulty))


def unanswerable(rng: Random, difficulty: int) -> Exercise:
    """The call hands over something that the text does not give."""
    source, _ = rng.choice((_over_list, _over_range, _while, _collect))(rng, difficulty)
    name = source[4 : source.index("(")]
    unknown = rng.choice(("data", "m", "z", "w"))
    question = f"What does {name}({unknown}) return?\n```python\n{source}\n```"
    return decline(question, f"the value of {unknown}")


TYPE = DatasetType(
    name="trace",
    skill="executing code in one's head, state by state",
    write=write,
    unanswerable=unanswerable,
    source="code",
    dial="3, 3, 4, 4, 5 turns; numbers up to 5, 9, 12, 20, 50; conditions more often",
)
