"""From candidates to samples: nothing twice, nothing that is evaluated on, nothing unverified."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from phikit.records import Sample, Verdict
from phikit.synth.teacher import Candidate
from phikit.verify.base import Problem, Verifier
from phikit.verify.sandbox import Check, Program, run_python

_DROPPED = str.maketrans("", "", ".,?!:;'\"")


def normalised(prompt: str) -> str:
    """A prompt without case, spacing and the punctuation of sentences."""
    return " ".join(prompt.lower().translate(_DROPPED).split())


class Collector:
    """Takes candidates in, keeps the good ones, and counts why the others went.

    Attributes:
        accepted, rejected: the samples, with the verdicts that they got.
        tally: per dataset type, how many were asked, accepted, dropped as duplicate or collision
            with an evaluation item, and rejected for each reason.
    """

    def __init__(
        self,
        items: Iterable[Sample] = (),
        verifier: Verifier | None = None,
    ) -> None:
        self._items = {normalised(Problem.of(item).prompt) for item in items}
        self._seen: set[str] = set()
        self._verifier = verifier
        self.accepted: list[Sample] = []
        self.rejected: list[Sample] = []
        self.tally: dict[str, Counter[str]] = {}

    def add(self, candidates: Iterable[Candidate | None], kind: str, limit: int) -> int:
        """Validates a batch and keeps at most `limit` of it; returns how many it kept."""
        tally = self.tally.setdefault(kind, Counter())
        fresh = []
        for candidate in candidates:
            tally["asked"] += 1
            if candidate is None:
                tally["not written"] += 1
                continue
            prompt = normalised(candidate.question)
            if prompt in self._items:
                tally["collision"] += 1
            elif prompt in self._seen:
                tally["duplicate"] += 1
            else:
                self._seen.add(prompt)
                fresh.append(candidate)
        kept = 0
        for candidate, verdicts in zip(fresh, self._judge(fresh), strict=True):
            failed = [v for v in verdicts if not v.passed]
            if failed:
                tally[f"rejected by {failed[0].verifier}"] += 1
                self.rejected.append(candidate.sample(verdicts))
            elif kept == limit:
                tally["surplus"] += 1
            else:
                kept += 1
                self.accepted.append(candidate.sample(verdicts))
        tally["accepted"] += kept
        return kept

    def _judge(self, candidates: list[Candidate]) -> list[tuple[Verdict, ...]]:
        """The verdicts on each candidate: its own solution's, and its program's if it has one."""
        verdicts = [c.verdicts for c in candidates]
        if not self._verifier:
            return verdicts
        named = [i for i, c in enumerate(candidates) if c.verifier]
        answers = [(candidates[i].problem, candidates[i].response) for i in named]
        for i, verdict in zip(named, self._verifier.verify(answers), strict=True):
            verdicts[i] = (*verdicts[i], verdict)
        with_program = [i for i, c in enumerate(candidates) if c.program]
        executed = _execute([candidates[i].program for i in with_program])
        for i, verdict in zip(with_program, executed, strict=True):
            verdicts[i] = (*verdicts[i], verdict)
        return verdicts

    def fill(
        self,
        kind: str,
        wanted: int,
        write: Callable[[range], Iterable[Candidate | None]],
        attempts: int = 3,
        batch: int = 2000,
        report: Callable[[], Any] = lambda: None,
    ) -> int:
        """Asks for candidate after candidate until `wanted` are accepted, or `attempts` times as
        many have been asked for (a small type may not have so many different problems)."""
        kept, start, end = 0, 0, wanted * attempts
        while kept < wanted and start < end:
            stop = min(end, start + min(batch, wanted - kept))
            kept += self.add(write(range(start, stop)), kind, wanted - kept)
            start = stop
            report()
        return kept

    def summary(self) -> dict[str, Any]:
        """Counts per dataset type, and the evidence that no item is trained on."""
        total: Counter[str] = Counter()
        for counts in self.tally.values():
            total.update(counts)
        return {
            "accepted": len(self.accepted),
            "types": {kind: dict(sorted(c.items())) for kind, c in sorted(self.tally.items())},
            "disjointness": {
                "items": len(self._items),
                "compared": total["asked"] - total["not written"],
                "dropped": total["collision"],
            },
        }


def _execute(programs: list[str], together: int = 100) -> list[Verdict]:
    """Does each program run without an error, in the sandbox?

    Many run one after the other in one process, as checks of an empty program: a process each
    would cost more than all the rest. Those that are not reported on, because one before them ended
    the process, run again alone.
    """
    chunks = [programs[i : i + together] for i in range(0, len(programs), together)]
    outcomes = run_python(
        [Program("", tuple(Check("statement", source) for source in chunk)) for chunk in chunks]
    )
    errors: list[str | None] = []
    for chunk, outcome in zip(chunks, outcomes, strict=True):
        known = [check.error for check in outcome.checks]
        errors.extend([*known, *[None] * (len(chunk) - len(known))])
    alone = [i for i, error in enumerate(errors) if error is None]
    for i, outcome in zip(alone, run_python([programs[i] for i in alone]), strict=True):
        errors[i] = "" if outcome.ok else outcome.error or outcome.status
    return [
        Verdict(
            passed=not error,
            score=float(not error),
            reason=error or "the program ran",
            verifier="execution",
        )
        for error in errors
    ]


def shares(count: int, weights: dict[str, float]) -> dict[str, int]:
    """`count` divided by weights, exactly: largest remainders get what rounding leaves."""
    whole = sum(weights.values())
    exact = {name: count * weight / whole for name, weight in weights.items()}
    parts = {name: int(value) for name, value in exact.items()}
    by_rest = sorted(exact, key=lambda name: (parts[name] - exact[name], name))
    for name in itertools.islice(by_rest, count - sum(parts.values())):
        parts[name] += 1
    return parts
