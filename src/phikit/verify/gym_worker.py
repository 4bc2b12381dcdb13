"""The process that scores answers to reasoning-gym's problems: a script for `phikit.verify.gym`.

Reads JSON lines [dataset, entry, answer]; writes JSON lines {"score": number, "error": text}. The
first line, null, only makes it import the package.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, TextIO

MEMORY = 4 << 30


@cache
def scorer(dataset: str) -> Callable[..., float]:
    """reasoning-gym's own scorer of a dataset."""
    from reasoning_gym import get_score_answer_fn

    return get_score_answer_fn(dataset)


def reply(request: Any) -> dict[str, Any]:
    """The score of (dataset, entry, answer); of None, whether reasoning-gym is here."""
    try:
        import reasoning_gym  # noqa: F401
    except ImportError as e:
        return {"score": 0.0, "error": f"{e.name} is not installed", "missing": True}
    if request is None:
        return {"score": 0.0, "error": ""}
    dataset, entry, answer = request
    try:
        return {"score": float(scorer(dataset)(answer=answer, entry=entry)), "error": ""}
    except Exception as e:  # a scorer that stumbles over an answer has not found it right
        return {"score": 0.0, "error": f"{type(e).__name__}: {e}"[:200]}


def serve(lines: TextIO, out: TextIO) -> None:
    """A line of JSON in, a line of JSON out, until the input ends."""
    for line in lines:
        out.write(json.dumps(reply(json.loads(line))) + "\n")
        out.flush()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    replies, sys.stdout = sys.stdout, sys.stderr  # what a scorer prints is no reply
    serve(sys.stdin, replies)
