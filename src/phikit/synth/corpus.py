"""Many samples of many declared types, asked at once: a corpus, and what became of every sample.

Each type is asked in rounds. The size of a round depends on what the rounds before it yielded and
on nothing else, and replies are judged in the order of their samples' numbers; so the corpus is a
function of the replies, whatever order they came in. A run that was killed finds its replies in the
store and goes through the same rounds again without paying for them.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from phikit.errors import BadRecord
from phikit.records import Sample, Verdict
from phikit.synth.collect import normalised
from phikit.synth.declared_run import AsyncTeacher, Made, candidate, make
from phikit.synth.declared_types import DeclaredType
from phikit.synth.diversity import Nearness
from phikit.synth.replies import Request
from phikit.synth.seeds import Seeds
from phikit.synth.teacher import Candidate
from phikit.verify.base import ByName, Problem, get

_LARGEST_ROUND = 2000  # samples of one type that wait for one another


@dataclass(frozen=True)
class Rules:
    """What is wanted and what is let through.

    Attributes:
        stream: names the random streams.
        attempts: samples asked for, at most, per sample wanted.
        validators: keep only what they pass; off only to measure what they are worth.
        most_alike: of the word 8-grams that the teacher wrote, the share that earlier samples of
            the type may hold; 1 lets all through.
        most_gain: of what the teacher wrote, how much better it may compress beside the last
            samples of its type than alone; 1 lets all through.
        longest_reply: in tokens; 0: as the types' steps say.
    """

    stream: str
    attempts: int = 4
    validators: bool = True
    most_alike: float = 0.6
    most_gain: float = 0.8
    longest_reply: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one sample that was asked for.

    `status`: "accepted"; "rejected" (by a validator or for its form), "duplicate", "collision"
    (with an evaluation item), "alike", "surplus" (good, but there are enough), "failed" (no answer)
    or "unsent" (the budget was spent). `reason` is one of a few words, `detail` the whole of it.
    """

    kind: str
    index: int
    status: str
    reason: str
    detail: str
    sample: str
    seed: str
    requests: tuple[str, ...]
    replies: tuple[str, ...]


@dataclass
class Corpus:
    """All that came of it. `requests` are those that were asked, by their keys."""

    accepted: list[Sample] = field(default_factory=list)
    rejected: list[Sample] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    requests: dict[str, Request] = field(default_factory=dict)

    def tally(self) -> dict[str, dict[str, int]]:
        """Counts by type and status."""
        found: dict[str, Counter[str]] = {}
        for row in self.rows:
            counts = found.setdefault(row.kind, Counter())
            counts["asked"] += 1
            counts[row.status] += 1
        return {kind: dict(counts) for kind, counts in sorted(found.items())}


Tell = Callable[[int, Mapping[str, int]], None]  # how many are accepted; counts by status


async def write(
    types: Mapping[str, DeclaredType],
    wanted: Mapping[str, int],
    seeds: Seeds,
    teacher: AsyncTeacher,
    rules: Rules,
    items: Iterable[Sample] = (),
    tell: Tell = lambda accepted, counts: None,
) -> Corpus:
    """Asks for `wanted[name]` samples of each type; all types at the same time.

    Raises:
        PhikitError: a type needs a seed that there is not, or its verifier cannot be run.
    """
    avoid = {normalised(Problem.of(item).prompt) for item in items}
    judge = _Judge(rules.validators)
    counts: Counter[str] = Counter()

    def heard(row: Row) -> None:
        counts[row.status] += 1
        tell(counts["accepted"], counts)

    names = sorted(name for name, count in wanted.items() if count)
    for name in names:  # before anything is paid for
        seeds.draw(types[name].seed, name, rules.stream, 0)
        if verifier := types[name].validators.verifier:
            get(verifier)
    runs = [
        _OneType(types[n], wanted[n], seeds, teacher, rules, avoid, judge, heard) for n in names
    ]
    await asyncio.gather(*(run.run() for run in runs))
    return _together(runs)


def _together(runs: list[_OneType]) -> Corpus:
    """One corpus, in the order of types and numbers; what two types both made is kept once."""
    corpus = Corpus()
    seen: set[str] = set()
    for run in runs:
        corpus.requests |= run.requests
        for row, sample in run.done:
            if row.status == "accepted" and sample is not None:
                prompt = normalised(Problem.of(sample).prompt)
                if prompt in seen:
                    row = replace(row, status="duplicate", reason="another type asks the same")
                seen.add(prompt)
            corpus.rows.append(row)
            if sample is not None and row.status == "accepted":
                corpus.accepted.append(sample)
            elif sample is not None:
                corpus.rejected.append(sample)
    return corpus


class _Judge:
    """Runs verifiers, one batch at a time, outside the event loop.

    A sample that cannot be judged is rejected; a verifier that cannot judge any, or fails, would
    have all of them rejected that are still to be paid for, and ends the run.
    """

    def __init__(self, validators: bool) -> None:
        self.validators = validators
        self._lock = asyncio.Lock()

    async def finish(self, mades: list[Made], teacher: str) -> list[tuple[Candidate | None, str]]:
        """(the candidate with all its verdicts, or why there is none) of each."""
        async with self._lock:
            return await asyncio.to_thread(self._finish, mades, teacher)

    def _finish(self, mades: list[Made], teacher: str) -> list[tuple[Candidate | None, str]]:
        found: list[tuple[Candidate | None, str]] = []
        for made in mades:
            if made.status != "done":
                found.append((None, made.reason))
                continue
            try:
                found.append((candidate(made, teacher), ""))
            except BadRecord as e:
                found.append((None, f"form: {e.message}"))
        named = [i for i, (c, _) in enumerate(found) if c is not None and c.verifier]
        if not self.validators:
            return found
        judged = [c for c, _ in found if c is not None and c.verifier]
        for i, one, verdict in zip(named, judged, self._verdicts(judged), strict=True):
            found[i] = replace(one, verdicts=(*one.verdicts, verdict)), ""
        return found

    @staticmethod
    def _verdicts(candidates: list[Candidate]) -> list[Verdict]:
        try:
            return ByName().verify([(c.problem, c.response) for c in candidates])
        except BadRecord:
            return [_verdict_alone(c) for c in candidates]  # one has tests or a gold of no use


def _verdict_alone(made: Candidate) -> Verdict:
    try:
        return ByName().verify([(made.problem, made.response)])[0]
    except BadRecord as e:
        return Verdict(passed=False, score=0.0, reason=e.message, verifier=made.verifier)


class _OneType:
    """The rounds of one type.

    Attributes:
        done: every sample asked for, in order: its row, and the record if it got so far.
    """

    def __init__(
        self,
        kind: DeclaredType,
        wanted: int,
        seeds: Seeds,
        teacher: AsyncTeacher,
        rules: Rules,
        avoid: set[str],
        judge: _Judge,
        heard: Callable[[Row], None],
    ) -> None:
        self.kind, self.wanted, self.seeds, self.teacher = kind, wanted, seeds, teacher
        self.rules, self.avoid, self.judge, self.heard = rules, avoid, judge, heard
        self.done: list[tuple[Row, Sample | None]] = []
        self.requests: dict[str, Request] = {}
        self.kept = 0
        self._prompts: set[str] = set()
        self._near = Nearness()

    async def run(self) -> None:
        limit = self.wanted * self.rules.attempts
        start = 0
        while self.kept < self.wanted and start < limit:
            stop = start + self._round(start, limit)
            mades = await asyncio.gather(*(self._make(i) for i in range(start, stop)))
            finished = await self.judge.finish(mades, self.teacher.name)
            for made, (found, why) in zip(mades, finished, strict=True):
                self._settle(made, found, why)
            if any(made.status == "unsent" for made in mades):
                return  # the budget is spent
            if all(made.status == "failed" for made in mades):
                return  # the teacher is away
            start = stop

    def _round(self, asked: int, limit: int) -> int:
        """How many to ask for: what is lacking at the yield so far, and never much more than so
        far in one go."""
        lacking = self.wanted - self.kept
        if asked:
            lacking = math.ceil(lacking * asked / max(self.kept, asked / self.rules.attempts))
            lacking = min(lacking, 2 * asked)
        return max(1, min(lacking, limit - asked, _LARGEST_ROUND))

    async def _make(self, index: int) -> Made:
        seed = self.seeds.draw(self.kind.seed, self.kind.name, self.rules.stream, index)
        rules = self.rules
        return await make(self.kind, self.teacher, seed, rules.stream, index, rules.longest_reply)

    def _settle(self, made: Made, found: Candidate | None, why: str) -> None:
        status, reason, detail = self._status(made, found, why)
        sample = found.sample(found.verdicts) if found is not None else None
        if status == "accepted":
            self.kept += 1
        for _, request, outcome in made.asked:
            self.requests[outcome.request] = request
        row = Row(
            self.kind.name,
            made.index,
            status,
            reason,
            detail,
            sample.id if sample else "",
            made.seed.id,
            tuple(outcome.request for *_, outcome in made.asked),
            tuple(r for *_, outcome in made.asked for r in outcome.replies),
        )
        self.done.append((row, sample))
        self.heard(row)

    def _status(self, made: Made, found: Candidate | None, why: str) -> tuple[str, str, str]:
        if found is None:
            if made.status in ("failed", "unsent"):
                return made.status, why.partition(": ")[2] or why, why
            step, _, what = why.partition(": ")
            return "rejected", f"{step}: {short(what)}", why
        failed = [v for v in found.verdicts if not v.passed]
        if failed and self.rules.validators:
            return "rejected", failed[0].verifier, failed[0].reason
        prompt = normalised(found.question)
        if prompt in self.avoid:
            return "collision", "asks what an evaluation item asks", ""
        if prompt in self._prompts:
            return "duplicate", "asked before", ""
        # the same seed twice is no fault: what the teacher made of it counts
        own = found.text.replace(made.seed.text, " ") if made.seed.text else found.text
        alike, gained = self._near.share(own), self._near.gain(own)
        if alike > self.rules.most_alike:
            return "alike", "too like earlier samples", f"{alike:.0%} of its 8-grams are there"
        if gained > self.rules.most_gain:
            return "alike", "little new beside the last samples", f"compresses {gained:.0%} better"
        if self.kept == self.wanted:
            return "surplus", "there are enough", ""
        self._prompts.add(prompt)
        self._near.add(own)
        return "accepted", "", ""


def short(reason: str) -> str:
    """A reason without the values in it, so that equal faults count together."""
    for start in ("wrong schema", "the reply is not JSON", "the reply is empty", "the template"):
        if reason.startswith(start):
            return start
    return reason[:40]
