"""Completing a small Python function: signature and docstring are given, tests decide.

The functions are composed: which numbers of a list to keep, what to do with each, how to combine
them; or a rule about one or two numbers, or a word. What the tests expect is calculated here, by
other means than the code of the solution.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

from phikit.synth.exercise import DatasetType, Exercise
from phikit.synth.tracing import shown
from phikit.synth.words import WORDS


class _Function(NamedTuple):
    name: str
    parameters: str
    doc: str
    body: list[str]
    plan: str
    details: list[str]
    meaning: Callable[..., Any]
    arguments: Callable[[], list[Any]]


class _Keep(NamedTuple):
    """Which numbers of a list count."""

    name: str
    words: str
    test: str
    holds: Callable[[int], bool]


class _Map(NamedTuple):
    """What is done with each number."""

    name: str
    words: str
    code: str
    of: Callable[[int], int]


def _keeps(rng: Random) -> _Keep:
    k, m = rng.randint(2, 20), rng.choice((3, 4, 5))
    return rng.choice(
        (
            _Keep("even", "even numbers", "x % 2 == 0", lambda x: x % 2 == 0),
            _Keep("odd", "odd numbers", "x % 2 == 1", lambda x: x % 2 == 1),
            _Keep(f"above_{k}", f"numbers greater than {k}", f"x > {k}", lambda x: x > k),
            _Keep(f"below_{k}", f"numbers less than {k}", f"x < {k}", lambda x: x < k),
            _Keep(f"by_{m}", f"numbers divisible by {m}", f"x % {m} == 0", lambda x: x % m == 0),
            _Keep(f"not_{k}", f"numbers other than {k}", f"x != {k}", lambda x: x != k),
        )
    )


def _maps(rng: Random) -> _Map:
    k, m = rng.randint(1, 20), rng.randint(2, 9)
    return rng.choice(
        (
            _Map("doubled", ", each doubled", "x * 2", lambda x: x * 2),
            _Map(f"times_{m}", f", each times {m}", f"x * {m}", lambda x: x * m),
            _Map(f"plus_{k}", f", each plus {k}", f"x + {k}", lambda x: x + k),
            _Map("squared", ", each squared", "x * x", lambda x: x**2),
        )
    )


_ALL = _Keep("all", "numbers", "", lambda x: True)
_SAME = _Map("", "", "x", lambda x: x)


def _over_list(rng: Random, difficulty: int) -> _Function:
    """Keep, change, combine: two of the three at difficulty 1 to 3, all from 4 on."""
    keep, change = _keeps(rng), _SAME
    items = rng.choice(("items", "items", "values", "numbers", "data"))
    combine = rng.choice(("sum", "list", "count"))
    if combine != "count" and (difficulty >= 4 or (difficulty >= 2 and rng.random() < 0.5)):
        change = _maps(rng)
        if difficulty < 4:
            keep = _ALL
    words, code = f"{keep.words} in {items}{change.words}", change.code
    lines = {
        "sum": ["total = 0", f"total += {code}", "return total", f"Return the sum of the {words}."],
        "list": ["out = []", f"out.append({code})", "return out", f"Return a list of the {words}."],
        "count": ["count = 0", "count += 1", "return count", f"Count the {words}."],
    }[combine]
    first, each, last, doc = lines
    inner = [f"    if {keep.test}:", f"        {each}"] if keep.test else [f"    {each}"]
    kept = f"if {keep.test} " if keep.test else ""
    plan = f"For each x {kept}{_PLANS[combine]}."

    details = [f"Keep {keep.words}: {keep.test}"] if keep.test else []
    if change is not _SAME:
        details.append(f"Change{change.words.removeprefix(', each')}: {change.code}")
    details.append(f"Begin: {first}")
    details.append(f"Each time: {each}")

    def meaning(items: list[int]) -> Any:
        kept = [change.of(x) for x in items if keep.holds(x)]
        return {"sum": sum(kept), "list": kept, "count": len(kept)}[combine]

    return _Function(
        name="_".join(filter(None, (combine, keep.name, change.name))),
        parameters=items,
        doc=doc,
        body=[first, f"for x in {items}:", *inner, last],
        plan=plan,
        details=details,
        meaning=meaning,
        arguments=lambda: [[rng.randint(0, 30) for _ in range(rng.randint(1, 6))]],
    )


_PLANS = {"sum": "add to the total", "list": "append to the list", "count": "add 1"}


def _of_numbers(rng: Random, difficulty: int) -> _Function:
    k, m = rng.randint(1, 20), rng.randint(2, 9)

    def two() -> list[Any]:
        return [rng.randint(0, 30), rng.randint(0, 30)]

    choices: tuple[tuple[str, str, list[str], str, Callable[[int, int], Any]], ...] = (
        (f"larger_plus_{k}", f"Return the larger of a and b, plus {k}.",
         ["if a > b:", f"    return a + {k}", f"return b + {k}"], "Compare a and b.",
         lambda a, b: max(a, b) + k),
        (f"smaller_times_{m}", f"Return the smaller of a and b, times {m}.",
         ["if a < b:", f"    return a * {m}", f"return b * {m}"], "Compare a and b.",
         lambda a, b: min(a, b) * m),
        ("distance", "Return how far a and b are apart.",
         ["if a > b:", "    return a - b", "return b - a"], "Take the smaller from the larger.",
         lambda a, b: abs(a - b)),
        (f"sum_times_{m}", f"Return the sum of a and b, times {m}.",
         [f"return (a + b) * {m}"], "Add first, then multiply.",
         lambda a, b: m * a + m * b),
        (f"sum_above_{k}", f"Return True if a plus b is greater than {k}, else False.",
         [f"return a + b > {k}"], f"Compare the sum with {k}.",
         lambda a, b: not a + b <= k),
        (f"both_above_{k}", f"Return True if both a and b are greater than {k}, else False.",
         [f"return a > {k} and b > {k}"], "Both must hold.",
         lambda a, b: min(a, b) > k),
        (f"a_{m}_times_plus_b", f"Return {m} times a, plus b.",
         [f"return {m} * a + b"], "Multiply first, then add.",
         lambda a, b: sum([a] * m, b)),
    )  # fmt: skip
    name, doc, body, plan, meaning = rng.choice(choices)
    return _Function(name, "a, b", doc, body, plan, [], meaning, two)


def _of_words(rng: Random, difficulty: int) -> _Function:
    letter, n = rng.choice("aeiorstln"), rng.randint(2, 4)
    choices: tuple[tuple[str, str, list[str], str, Callable[[str], Any]], ...] = (
        ("backwards", "Return the word backwards.",
         ['out = ""', "for c in word:", "    out = c + out", "return out"],
         "Put each letter in front.", lambda w: "".join(reversed(w))),
        (f"count_{letter}", f'Return how often the letter "{letter}" occurs in the word.',
         ["count = 0", "for c in word:", f'    if c == "{letter}":', "        count += 1",
          "return count"], "Go through the letters and count.", lambda w: w.count(letter)),
        (f"without_{letter}", f'Return the word without the letter "{letter}".',
         ['out = ""', "for c in word:", f'    if c != "{letter}":', "        out += c",
          "return out"], "Keep the other letters.", lambda w: w.replace(letter, "")),
        (f"first_{n}", f"Return the first {n} letters of the word.",
         [f"return word[:{n}]"], f"Cut after {n}.",
         lambda w: "".join(c for i, c in enumerate(w) if i < n)),
        (f"last_{n}", f"Return the last {n} letters of the word.",
         [f"return word[-{n}:]"], f"Start {n} before the end.",
         lambda w: "".join(c for i, c in enumerate(w) if i >= len(w) - n)),
        (f"repeat_{n}", f"Return the word {n} times in a row.",
         [f"return word * {n}"], "Repeat the string.", lambda w: "".join(w for _ in range(n))),
        (f"longer_than_{n}", f"Return True if the word has more than {n} letters, else False.",
         [f"return len(word) > {n}"], "Look at the length.", lambda w: not len(w) <= n),
    )  # fmt: skip
    name, doc, body, plan, meaning = rng.choice(choices)
    return _Function(name, "word", doc, body, plan, [], meaning, lambda: [rng.choice(WORDS)])


def write(rng: Random, difficulty: int) -> Exercise:
    shape = rng.choice((_over_list, _over_list, _of_numbers, _of_words))
    function = shape(rng, difficulty)
    name = rng.choice((function.name, function.name, "f", "solve", "answer"))
    head = f'def {name}({function.parameters}):\n    """{function.doc}"""'
    code = f"def {name}({function.parameters}):\n" + _indented(function.body)
    calls = []
    for arguments in (function.arguments() for _ in range(4)):
        expected = function.meaning(*arguments)
        calls.append(f"{name}({', '.join(map(shown, arguments))}) == {shown(expected)}")
    opening = rng.choice(
        ("Complete the function.", "Write the body of this function.", "Finish this function.")
    )
    asserts = "\n".join(f"assert {call}" for call in calls)
    return Exercise(
        question=f"{opening}\n```python\n{head}\n```",
        steps=(function.plan,),
        answer="",
        verifier="code",
        closing=f"```python\n{code}\n```",
        thought=(*(function.details or [function.plan]), *_example(function)),
        gold=json.dumps({"entry": name, "tests": [f"assert {call}" for call in calls]}),
        document=f"{head}\n{_indented(function.body)}\n\n\n{asserts}\n"
        if rng.random() < 0.3
        else "",
    )


def _example(function: _Function) -> list[str]:
    """An example worked by hand, in place of arithmetic."""
    arguments = function.arguments()
    result = function.meaning(*arguments)
    return [f"Example: {', '.join(map(shown, arguments))} gives {shown(result)}."]


def _indented(body: list[str]) -> str:
    return "\n".join(f"    {line}" for line in body)


TYPE = DatasetType(
    name="complete",
    skill="turning a docstring into code that passes its tests",
    write=write,
    source="code",
    dial="one of keeping, changing, combining; two from 2 on; all three from 4 on",
)
