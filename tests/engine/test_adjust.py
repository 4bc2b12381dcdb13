"""Penalties, biases and the likeliest tokens, against a plain calculation from whole forwards."""

import math

import pytest
import torch
from engine_fixtures import CONFIGS, make

from phikit.engine.base import Constraint, Request, Sampling, collect
from phikit.engine.dense import DenseRunner
from phikit.engine.local import LocalEngine
from phikit.engine.scheduler import Scheduler
from phikit.errors import PhikitError

MODEL = make(CONFIGS["phi"], sharpness=3.0)
PROMPT = (5, 9, 5, 20)
SETTINGS = [
    Sampling(max_tokens=16, repetition_penalty=1.7),
    Sampling(max_tokens=16, presence_penalty=1.5),
    Sampling(max_tokens=16, frequency_penalty=0.8, temperature=0.7),
    Sampling(max_tokens=16, logit_bias=((11, 4.0), (12, -100.0), (11, 1.0))),
    Sampling(max_tokens=16, repetition_penalty=1.3, frequency_penalty=-0.5, logit_bias=((7, 2.0),)),
    Sampling(max_tokens=16),
]


def adjusted(
    logits: list[float], s: Sampling, prompt: tuple[int, ...], drawn: list[int]
) -> torch.Tensor:
    out = list(logits)
    for token, bias in s.logit_bias:
        out[token] += bias
    for token in {*prompt, *drawn}:
        p = s.repetition_penalty
        out[token] = out[token] / p if out[token] > 0 else out[token] * p
    for token in set(drawn):
        out[token] -= s.presence_penalty + s.frequency_penalty * drawn.count(token)
    return torch.tensor(out)


@torch.no_grad()
def test_log_probabilities_are_those_of_the_adjusted_logits() -> None:
    todo = [Request(PROMPT, s, n=3, seed=i) for i, s in enumerate(SETTINGS)]
    plain = collect(LocalEngine(MODEL), [Request(PROMPT, SETTINGS[-1], n=3, seed=0)])[0]
    changed = 0
    # all in one batch, and so few rows at once that they come and go
    for batch in (64, 4):
        for request, rollouts in zip(todo, collect(LocalEngine(MODEL, batch), todo), strict=True):
            s = request.sampling
            for rollout in rollouts:
                ids = list(rollout.completion_ids)
                logits = MODEL(torch.tensor([[*PROMPT, *ids]]))[0, len(PROMPT) - 1 : -1]
                for at, token in enumerate(ids):
                    x = adjusted(logits[at].tolist(), s, PROMPT, ids[:at]) / s.temperature
                    assert rollout.logprobs[at] == pytest.approx(
                        x.log_softmax(-1)[token].item(), abs=1e-4
                    )
                    assert rollout.raw_logprobs[at] == pytest.approx(
                        logits[at].log_softmax(-1)[token].item(), abs=1e-4
                    )
            changed += [r.completion_ids for r in rollouts] != [r.completion_ids for r in plain]
    assert changed >= 5


def test_a_greedy_completion_obeys_a_bias() -> None:
    for token in (11, 40):
        s = Sampling(temperature=0, max_tokens=5, logit_bias=((token, 1e4),))
        rollout = collect(LocalEngine(MODEL), [Request(PROMPT, s)])[0][0]
        assert rollout.completion_ids == (token,) * 5
        assert rollout.logprobs == (0.0,) * 5
        assert max(rollout.raw_logprobs) < 0  # the model's own, without the bias


@torch.no_grad()
def test_the_likeliest_tokens_of_every_step() -> None:
    scheduler = Scheduler(DenseRunner(MODEL), max_rows=8)
    asked = {
        scheduler.submit(Request(PROMPT, s, seed=i)).number: s
        for i, s in enumerate(
            [
                Sampling(max_tokens=6, top_logprobs=4, top_k=2, temperature=0.6),
                Sampling(max_tokens=6),
                Sampling(max_tokens=6, top_logprobs=2, temperature=0),
            ]
        )
    }
    drawn: dict[int, list[int]] = {number: [] for number in asked}
    while scheduler.busy:
        for event in scheduler.step().tokens():
            s, ids = asked[event.ticket.number], drawn[event.ticket.number]
            logits = MODEL(torch.tensor([[*PROMPT, *ids]]))[0, -1]
            raw = logits.log_softmax(-1)
            best = raw.topk(s.top_logprobs) if s.top_logprobs else None
            assert [t for t, _, _ in event.top] == (best.indices.tolist() if best else [])
            for rank, (token, logprob, own) in enumerate(event.top):
                assert own == pytest.approx(raw[token].item(), abs=1e-4)
                if token == event.token:
                    assert logprob == pytest.approx(event.logprob, abs=1e-4)
                if s.temperature == 0:
                    assert logprob == (0.0 if token == event.token else -math.inf)
                elif rank >= s.top_k:
                    assert logprob == -math.inf
            ids.append(event.token)
    assert all(len(ids) == 6 for ids in drawn.values())


def test_what_cannot_be_done_is_refused() -> None:
    engine = LocalEngine(MODEL)
    for sampling, text in [
        (Sampling(stop=("x",)), "stop texts"),
        (Sampling(constraint=Constraint("regex", "a+")), "constraint"),
        (Sampling(logit_bias=((97, 1.0),)), "token 97"),
    ]:
        with pytest.raises(PhikitError, match=text):
            engine.generate([Request(PROMPT, sampling)])
        with pytest.raises(PhikitError, match=text):
            engine.stream(Request(PROMPT, sampling))
        with pytest.raises(PhikitError, match=text):
            Scheduler(DenseRunner(MODEL)).submit(Request(PROMPT, sampling))
