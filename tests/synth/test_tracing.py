from __future__ import annotations

import pytest

from phikit.errors import PhikitError
from phikit.synth.tracing import trace

LOOP = """def f(items):
    total = 1
    for x in items:
        if x > 2:
            total += x * 2
    return total + 1
"""


def test_notes_of_a_loop() -> None:
    value, turns = trace(LOOP, [[1, 5]])
    assert value == 12
    assert turns == [
        ["total = 1"],
        ["x = 1", "1 > 2 is false"],
        ["x = 5", "5 > 2 is true", "5 * 2 = 10", "total = 1 + 10 = 11"],
        ["return 11 + 1 = 12"],
    ]


def test_while_and_strings() -> None:
    source = (
        "def f(n):\n    k = 0\n    while n > 1:\n        n -= 2\n        k += 1\n    return k\n"
    )
    assert trace(source, [4])[0] == 2
    source = 'def f(w):\n    out = ""\n    for c in w:\n        out = c + out\n    return out\n'
    assert trace(source, ["abc"])[0] == "cba"


def test_what_it_does_not_know_is_named() -> None:
    with pytest.raises(PhikitError, match="cannot trace"):
        trace("def f(n):\n    del n\n    return 1\n", [1])
    with pytest.raises(PhikitError, match="returns nothing"):
        trace("def f(n):\n    m = n\n", [1])
