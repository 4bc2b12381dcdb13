"""The process that compares formulas: run as a script by `phikit.verify.math`, which may kill it.

sympy can take for ever, and an answer that makes it do so must not stop the run. Answers are read
as LaTeX only: the other reader of math-verify hands text to Python's `eval`.
Reads JSON lines [gold, answer]; writes JSON lines {"equal": bool, "error": text}.
"""

from __future__ import annotations

import json
import resource
import sys
from typing import TextIO

MEMORY = 4 << 30
PARSE_SECONDS = 2
COMPARE_SECONDS = 3


def equal(gold: str, answer: str) -> bool:
    """True if the two LaTeX formulas are mathematically equal.

    Raises:
        ValueError: one of them cannot be read.
    """
    from math_verify import LatexExtractionConfig, parse, verify

    read = []
    for text in (gold, answer):
        found = parse(
            f"${text}$",
            extraction_config=[LatexExtractionConfig(boxed_match_priority=-1)],
            fallback_mode="no_fallback",
            parsing_timeout=PARSE_SECONDS,
        )
        if not found:
            raise ValueError(f"cannot read {text!r} as mathematics")
        read.append(found)
    return bool(verify(read[0], read[1], timeout_seconds=COMPARE_SECONDS))


def serve(lines: TextIO, out: TextIO) -> None:
    """A line of JSON in, a line of JSON out, until the input ends."""
    for line in lines:
        gold, answer = json.loads(line)
        try:
            reply = {"equal": equal(gold, answer), "error": ""}
        except Exception as e:  # whatever sympy raises on strange input: it is no proof of equality
            reply = {"equal": False, "error": f"{type(e).__name__}: {e}"[:200]}
        out.write(json.dumps(reply) + "\n")
        out.flush()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    serve(sys.stdin, sys.stdout)
