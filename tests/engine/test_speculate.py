"""Guessed tokens: the same tokens by matching, the same distribution by rejection, fewer steps."""

import math
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from crowd import COMPILERS, Crowd, model_of, request_of
from engine_fixtures import CONFIGS, PLAIN, make
from hypothesis import given, settings
from hypothesis import strategies as st

from phikit.engine.base import Request, Sampling, collect
from phikit.engine.guessers import DraftModel, Lookup
from phikit.engine.invariant import InvariantRunner
from phikit.engine.local import LocalEngine
from phikit.engine.native.runner import NativeRunner
from phikit.engine.scheduler import Scheduler
from phikit.engine.speculate import Speculation
from phikit.errors import PhikitError
from phikit.models.decoder import Decoder

PATTERN = (1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3)


def run(scheduler: Scheduler, todo: list[Request], draw: random.Random | None = None):
    """The rollouts of all requests that are not cancelled, and how many steps it took."""
    crowd, told = Crowd(scheduler, todo, draw, drops=0.05), {}
    for events in crowd.events:
        for t in events.tokens():
            tokens = told.setdefault((t.ticket.number, t.sample), [])
            assert t.place == len(tokens)
            tokens.append(t.token)
    for key, rollout in crowd.found.items():
        assert tuple(told[key]) == rollout.completion_ids
    kept = crowd.tickets.keys() - crowd.cancelled
    return {i: crowd.rollouts(i) for i in kept}, len(crowd.events)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["float32", "bfloat16", "int8"]),
    name=st.sampled_from(sorted(CONFIGS)),
    small=st.booleans(),
)
def test_by_matching_every_bit_is_that_of_no_guesses(seed, kind, name, small):
    """With an invariant runner, by look-up and by a small model, in any crowd."""
    draw, compiler = random.Random(seed), COMPILERS["native"]
    model = model_of(kind, "even", name)
    todo = [request_of(draw) for _ in range(draw.randint(1, 4))]
    todo = [
        replace(
            r, prompt_ids=r.prompt_ids + r.prompt_ids[:5], n=min(r.n, 2),
            sampling=replace(r.sampling, max_tokens=12, stop_ids=(60,), top_logprobs=0),
        )
        for r in todo
    ]  # fmt: skip
    need = -(-(max(len(r.prompt_ids) + 12 for r in todo)) // 4)
    rows, blocks = draw.randint(1, 6), need + draw.randint(0, 12)

    def scheduler(guessing: bool) -> Scheduler:
        runner = InvariantRunner(model, 4, compiler)
        speculation = None
        if guessing:
            drafts = DraftModel(NativeRunner(model, 4), rows, matching=True)
            speculation = Speculation(drafts if small else Lookup(), matching=True)
        return Scheduler(
            runner, cache_bytes=blocks * runner.block_bytes, max_rows=rows, speculation=speculation
        )  # fmt: skip

    mine, _ = run(scheduler(True), todo, draw)
    ours, _ = run(scheduler(False), todo)
    assert mine == {i: ours[i] for i in mine}


@pytest.mark.parametrize("guesser", ["lookup", "model"])
def test_greedy_tokens_are_the_same_in_fewer_steps(guesser: str) -> None:
    """A model that repeats is guessed by look-up; one that is its own draft, by the draft."""
    model = make(PLAIN)
    request = Request(PATTERN, Sampling(temperature=0, max_tokens=40))
    steps, found = {}, {}
    for guessing in (False, True):
        speculation = None
        if guessing:
            small = DraftModel(NativeRunner(model), 2)
            speculation = Speculation(Lookup() if guesser == "lookup" else small)
        scheduler = Scheduler(NativeRunner(model), max_rows=2, speculation=speculation)
        rollouts, steps[guessing] = run(scheduler, [request])
        found[guessing] = rollouts[0][0].completion_ids
    assert found[True] == found[False]
    assert speculation.accepted + steps[True] >= 40
    assert steps[True] <= (0.7 if guesser == "lookup" else 0.3) * steps[False]


SMALL = replace(PLAIN, vocab_size=6, max_positions=32)
LENGTH = 2


def exact(
    model: Decoder, prompt: tuple[int, ...], sampling: Sampling
) -> dict[tuple[int, ...], float]:
    """The probability of every completion of `LENGTH` tokens."""
    found = {(): 1.0}
    for _ in range(LENGTH):
        longer = {}
        for tokens, p in found.items():
            with torch.no_grad():
                logits_V = model(torch.tensor([[*prompt, *tokens]]))[0, -1].double()
            p_V = torch.softmax(logits_V / sampling.temperature, -1)
            if sampling.top_k:
                p_V[p_V < p_V.topk(sampling.top_k).values[-1]] = 0
            p_V /= p_V.sum()
            longer |= {(*tokens, t): p * float(p_V[t]) for t in range(len(p_V))}
        found = longer
    return found


@pytest.mark.parametrize("sampling", [
    Sampling(max_tokens=LENGTH), Sampling(temperature=1.7, top_k=4, max_tokens=LENGTH),
], ids=["plain", "filtered"])  # fmt: skip
@pytest.mark.parametrize(
    "how", ["rejection", *(pytest.param(h, marks=pytest.mark.slow) for h in ("matching", "lookup"))]
)
def test_the_distribution_is_the_models_own(how: str, sampling: Sampling) -> None:
    """Chi-square against exact probabilities; the draft is another model, and often wrong."""
    matching, sharpness = how == "matching", 1.0 if how == "matching" else 2.0
    model, draft = (make(SMALL, seed=i, sharpness=sharpness) for i in (1, 2))
    prompt, count = (0, 1, 2, 3, 0, 1, 2), 600
    guesser = Lookup() if how == "lookup" else DraftModel(NativeRunner(draft), 4, matching)
    speculation = Speculation(guesser, matching)
    scheduler = Scheduler(NativeRunner(model), max_rows=4, speculation=speculation, keep=False)
    todo = [Request(prompt, sampling, n=count, seed=5)]
    rollouts, _ = run(scheduler, todo)
    assert speculation.guessed > 0.1 * count
    if how != "matching":  # there the filters may leave the likeliest guess out every time
        assert 0.05 < speculation.accepted / speculation.guessed < 0.95
    seen = Counter(r.completion_ids for r in rollouts[0])
    right = exact(model, prompt, sampling)
    assert all(right[t] > 0 for t in seen)
    large = [t for t, p in right.items() if p * count >= 8]
    rest = 1 - sum(right[t] for t in large)
    observed = [seen[t] for t in large]
    expected = [right[t] * count for t in large]
    if rest * count > 1:
        observed.append(count - sum(observed))
        expected.append(rest * count)
    x = sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True))
    # a chi-square of k degrees as a normal variable (Wilson and Hilferty 1931)
    k = len(observed) - 1
    assert ((x / k) ** (1 / 3) - (1 - 2 / (9 * k))) / (2 / (9 * k)) ** 0.5 < 3.1
    by_step = {t: r for r in rollouts[0] for t in [r.completion_ids]}
    for tokens, rollout in list(by_step.items())[:20]:
        assert sum(rollout.logprobs) == pytest.approx(math.log(right[tokens]), abs=1e-3)


def test_only_rejection_is_another_stream() -> None:
    """By look-up a seed draws what it draws without."""
    model = make(PLAIN, sharpness=2.0)
    todo = [Request(PATTERN, Sampling(max_tokens=20), n=3, seed=i) for i in range(3)]
    scheduler = Scheduler(NativeRunner(model), max_rows=4, speculation=Speculation(Lookup()))
    rollouts, _ = run(scheduler, todo)
    expected = collect(LocalEngine(model), todo)
    assert [[r.completion_ids for r in rollouts[i]] for i in range(3)] == [
        [r.completion_ids for r in group] for group in expected
    ]


def test_the_drafts_blocks_are_given_back() -> None:
    model = make(PLAIN)
    guesser = DraftModel(NativeRunner(model), 4)
    scheduler = Scheduler(NativeRunner(model), max_rows=4, speculation=Speculation(guesser))
    run(scheduler, [Request(PATTERN, Sampling(max_tokens=30), n=9)])
    run(scheduler, [Request(PATTERN[:2], Sampling(max_tokens=30))])
    assert guesser.blocks.used <= -(-33 // 32)


def test_another_vocabulary_is_refused() -> None:
    with pytest.raises(PhikitError, match=r"vocabulary of 6.*97"):
        LocalEngine(make(PLAIN), speculate=make(SMALL))
