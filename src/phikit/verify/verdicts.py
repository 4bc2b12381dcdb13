"""Verdicts made once. Making a record hashes its content, which costs more than most checks."""

from __future__ import annotations

import functools

from phikit.records import Verdict

NO_ANSWER = "no final answer: neither a line 'Answer: ...' nor \\boxed{...} after the thought"


@functools.lru_cache(maxsize=65_536)
def verdict(verifier: str, passed: bool, reason: str, score: float | None = None) -> Verdict:
    """A verdict; its score is 1 or 0 unless given. Equal verdicts are one object."""
    return Verdict(
        passed=passed,
        score=float(passed) if score is None else score,
        reason=reason,
        verifier=verifier,
    )


def shorten(text: str, limit: int = 80) -> str:
    """For reasons: one line, quoted, cut."""
    line = " ".join(text.split())
    return repr(line if len(line) <= limit else line[: limit - 1] + "…")
