"""Pivotal Token Search: from problems and a model to confirmed pivots and preference pairs.

    problems ─filter─▶ questions with 0.2 ≤ p ≤ 0.8 ─▶ a solution each, subdivided ─▶ suspects
    suspects ─fresh rollouts─▶ candidates ─e-BH over all of them─▶ pivots ─▶ pairs

Source: Phi-4 Technical Report §4.3 and Figure 4. Four things differ, each for a reason:

- every decision is a sequential test at a stated level instead of a comparison of two noisy
  estimates (`evidence.py`): exact and anytime-valid for what is reported, and on rollouts drawn
  after the token was suspected; asymptotic for what is dropped, which is most of the cost;
- rollouts count at every prefix they pass through, and the known probability of a token joins the
  two sides of the comparison (`path.py`), which saves most of the samples;
- tokens more probable than 1 - gap are never looked at: they cannot be pivots;
- by default it looks also into stretches whose ends agree, where two pivots may cancel.

The null hypothesis of a candidate is |Δp| ≤ gap, with Δp = p(success | prefix + token) -
p(success | prefix) under the sampling distribution. Reported are the candidates that e-BH rejects
at level `error` among all that were ever put to the test, so that among the reported pivots the
expected share with |Δp| ≤ gap is at most `error`.

The search goes in rounds. In each, every question in flight says what it wants; all of it is one
list of requests to the generator, so that the engine is full; the verdicts come in one call, each
distinct answer once. A round is recorded before it counts.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from phikit.engine.base import Generator, Request, collect
from phikit.errors import PhikitError
from phikit.files import canonical_json
from phikit.pivots.config import SearchConfig
from phikit.pivots.evidence import e_bh
from phikit.pivots.question import Drawn, QuestionSearch, Start
from phikit.pivots.results import Candidate, Pivot, SearchResult, Totals, Trace, candidate, trace
from phikit.pivots.rounds import Round, RoundLog
from phikit.pivots.suspect import PIVOTAL, State
from phikit.records import Rollout
from phikit.verify.base import Problem, Verifier


@dataclass(frozen=True, slots=True)
class Question:
    """A problem with its prompt as token ids.

    Attributes:
        solution: searched as it is, without the question filter, in place of sampled ones.
    """

    problem: Problem
    prompt_ids: tuple[int, ...]
    solution: Drawn | None = None


AnswerText = Callable[[Sequence[int]], str]
AnswerKey = Callable[[Problem, str], str]


def search(
    generator: Generator,
    verifier: Verifier,
    questions: Iterable[Question],
    answer_text: AnswerText,
    config: SearchConfig,
    *,
    stop_ids: tuple[int, ...] = (),
    seed: int = 0,
    log: RoundLog | None = None,
    answer_key: AnswerKey = lambda problem, text: text,
    on_search: Callable[[Trace], None] = lambda trace: None,
    on_round: Callable[[Totals], None] = lambda totals: None,
) -> SearchResult:
    """Searches the questions, many at a time, until they or the budget are used up.

    Args:
        answer_text: completion ids → the answer that the verifier reads.
        stop_ids: tokens that end a completion.
        log: where rounds are recorded and read back from, to go on after a kill.
        answer_key: what of an answer its verdict depends on; answers of one problem with equal
            keys are verified once.
        on_search: is given each question's trace as it is finished; they are not kept.
        on_round: is given the running totals after each round.

    Raises:
        PhikitError: a rollout lacks log-probabilities, or the log belongs to another search.
    """
    driver = _Driver(generator, verifier, answer_text, answer_key, config, stop_ids, seed, log)
    for totals in driver.run(iter(questions), on_search):
        on_round(totals)
    return driver.result()


class _Driver:
    def __init__(
        self,
        generator: Generator,
        verifier: Verifier,
        answer_text: AnswerText,
        answer_key: AnswerKey,
        config: SearchConfig,
        stop_ids: tuple[int, ...],
        seed: int,
        log: RoundLog | None,
    ) -> None:
        self.generator, self.verifier = generator, verifier
        self.answer_text, self.answer_key = answer_text, answer_key
        self.config, self.stop_ids, self.seed, self.log = config, stop_ids, seed, log
        self.active: list[QuestionSearch] = []
        self.candidates: list[Candidate] = []
        self.totals = Totals()

    def run(
        self, questions: Iterator[Question], on_search: Callable[[Trace], None]
    ) -> Iterator[Totals]:
        self._admit(questions)
        while self.active:
            target = self._target()
            plans = [q.plan(target) for q in self.active]
            drawn = self._round(plans)
            after = self._target()
            for question, plan, groups in zip(self.active, plans, drawn, strict=True):
                pairs = list(zip(plan, groups, strict=True))
                question.absorb(self.totals.rounds, pairs, after)
            self.totals.rounds += 1
            self._retire(on_search, everything=self._enough())
            self._admit(questions)
            yield self.totals

    def result(self) -> SearchResult:
        # what was given up is not reported, so it may not lower the bar for what is: it counts as
        # a test without evidence
        threshold = e_bh([c.log_e if c.pivotal else -math.inf for c in self.candidates],
                         self.config.error)  # fmt: skip
        found = [c for c in self.candidates if c.pivotal and c.log_e >= threshold]
        share = len(found) / len(self.candidates) if self.candidates else 1.0
        # e-BY (Xu, Wang & Ramdas 2024): this level covers over the selected, not only over all
        level = (1.0 - self.config.coverage) * share
        pivots = [Pivot.of(c, level) for c in found]
        return SearchResult(pivots, len(self.candidates), self.totals, self.config)

    # --- one round -------------------------------------------------------------------------------

    def _round(self, plans: Sequence[Sequence[Start]]) -> list[list[list[Drawn]]]:
        """Draws and verifies what each active question planned, or reads it from the log."""
        requests = [
            self._request(question, start)
            for question, plan in zip(self.active, plans, strict=True)
            for start in plan
        ]
        digest = _digest(self.seed, requests)
        done = self.log.read(self.totals.rounds, digest) if self.log else None
        if done is None:
            done = self._draw(plans, requests)
            if self.log:
                self.log.write(self.totals.rounds, digest, done)
        else:
            self._remember(plans, done)
        self.totals.count([len(r.prompt_ids) for r in requests], done.rollouts, done.verified)
        groups = iter(done.rollouts)
        return [[next(groups) for _ in plan] for plan in plans]

    def _request(self, question: QuestionSearch, start: Start) -> Request:
        ids = (*question.prompt_ids, *start.ids)
        first = question.drawn.get(start.ids, 0)
        question.drawn[start.ids] = first + start.n
        sampling = self.config.sampling(self.stop_ids, len(start.ids))
        return Request(ids, sampling, start.n, _stream(self.seed, question.problem.id, ids), first)

    def _draw(self, plans: Sequence[Sequence[Start]], requests: Sequence[Request]) -> Round:
        rollouts = collect(self.generator, requests)
        owners = [(q, start) for q, plan in zip(self.active, plans, strict=True) for start in plan]
        texts: list[list[tuple[QuestionSearch, str, str]]] = []
        new: dict[tuple[int, str], tuple[QuestionSearch, str, str]] = {}
        for (question, start), group in zip(owners, rollouts, strict=True):
            row = []
            for rollout in group:
                text = self.answer_text((*start.ids, *rollout.completion_ids))
                key = self.answer_key(question.problem, text)
                row.append((question, key, text))
                if key not in question.verdicts:
                    new.setdefault((id(question), key), (question, key, text))
            texts.append(row)
        asked = list(new.values())
        verdicts = self.verifier.verify([(q.problem, text) for q, _, text in asked])
        for (question, key, _), verdict in zip(asked, verdicts, strict=True):
            question.verdicts[key] = verdict.passed
        groups = [
            [
                _drawn(r, q.verdicts[key], whole=not start.ids)
                for r, (q, key, _) in zip(group, row, strict=True)
            ]
            for (_, start), group, row in zip(owners, rollouts, texts, strict=True)
        ]
        return Round(groups, len(asked))

    def _remember(self, plans: Sequence[Sequence[Start]], done: Round) -> None:
        """Fills the cache of verdicts from a recorded round."""
        groups = iter(done.rollouts)
        for question, plan in zip(self.active, plans, strict=True):
            for start in plan:
                for drawn in next(groups):
                    text = self.answer_text((*start.ids, *drawn.ids))
                    question.verdicts[self.answer_key(question.problem, text)] = drawn.passed

    # --- admission, retirement, stopping ---------------------------------------------------------

    def _admit(self, questions: Iterator[Question]) -> None:
        """Fills up the questions in flight, as far as the budget is likely to finish them."""
        mean = (self.totals.tokens - sum(q.tokens for q in self.active)) / max(
            self.totals.finished, 1
        )
        budget = self.config.total_tokens or math.inf
        while len(self.active) < self.config.in_flight and not self._enough():
            if self.totals.tokens + mean * len(self.active) / 2 >= budget:
                return
            question = next(questions, None)
            if question is None:
                return
            self.totals.questions += 1
            self.active.append(
                QuestionSearch(
                    question.problem, question.prompt_ids, self.config, question.solution
                )
            )

    def _retire(self, on_search: Callable[[Trace], None], everything: bool) -> None:
        going: list[QuestionSearch] = []
        for question in self.active:
            if everything:
                question.abandon()
            if question.state not in ("done", "refused"):
                going.append(question)
                continue
            self.totals.finished += 1
            self.totals.kept += question.state == "done"
            self.candidates += [
                candidate(question, s) for s in question.suspects if s.tested
            ]  # fmt: skip
            on_search(trace(question))
        self.active = going

    def _enough(self) -> bool:
        config = self.config
        if config.total_tokens and self.totals.tokens >= config.total_tokens:
            return True
        if not config.target_pairs:
            return False
        tested = [s for q in self.active for s in q.suspects if s.tested]
        states = [(c.state, c.log_e) for c in self.candidates]
        states += [(s.state, s.log_e) for s in tested]
        log_e = [e if state in PIVOTAL else -math.inf for state, e in states]
        threshold = e_bh(log_e, config.error)
        paired = sum(state is State.PAIRED and e >= threshold for state, e in states)
        return paired >= config.target_pairs

    def _target(self) -> float:
        """The log e-value that e-BH will ask for, judged by the candidates decided so far.

        Two confirmed and sixteen refuted ones are imagined beforehand, and some reserve is added:
        to go on with a true pivot for longer costs little. Whether the forecast is right decides
        only how many samples a test takes, not whether it is valid.
        """
        states = [c.state for c in self.candidates]
        states += [s.state for q in self.active for s in q.suspects if s.tested]
        share = (len(states) + 18) / (sum(s in PIVOTAL for s in states) + 2)
        return math.log(1.5 * share / self.config.error)


def _drawn(rollout: Rollout, passed: bool, whole: bool) -> Drawn:
    """Keeps what the search needs; the raw log-probabilities only of `whole` completions, since
    solutions are taken from those.

    Log-probabilities are rounded to float32, as they are recorded, so that a replay is exact.
    """
    n = len(rollout.completion_ids)
    raw = rollout.raw_logprobs if whole else ()
    if len(rollout.logprobs) != n or (whole and len(raw) != n):
        raise PhikitError(
            f"a rollout of {n} tokens has {len(rollout.logprobs)} log-probabilities and "
            f"{len(raw)} raw ones",
            "Pivotal Token Search needs both for every token: use a generator that returns them",
        )
    return Drawn(rollout.completion_ids, _float32(rollout.logprobs), _float32(raw), passed)


def _float32(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(np.asarray(values, np.float32).tolist())


def _digest(seed: int, requests: Sequence[Request]) -> str:
    state = hashlib.blake2b(str(seed).encode(), digest_size=16)
    for r in requests:
        state.update(canonical_json([r.prompt_ids, r.n, r.seed, r.first_sample]).encode())
        state.update(repr(r.sampling).encode())
    return state.hexdigest()


def _stream(seed: int, problem: str, ids: Sequence[int]) -> int:
    """The random stream of a prefix: 63 bits that depend on nothing else."""
    text = canonical_json([seed, problem, list(ids)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1
