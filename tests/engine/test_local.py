"""The local engine against fresh forward passes, its own promises, and its limits."""

import random
from dataclasses import replace

import pytest
import torch
from engine_fixtures import CONFIGS, make
from hypothesis import given, settings
from hypothesis import strategies as st

from phikit.engine.base import Request, Sampling, collect
from phikit.engine.local import LocalEngine
from phikit.engine.score import logprobs
from phikit.errors import PhikitError
from phikit.models.decoder import Decoder


def prompts(count, seed=0, longest=30, vocab=97):
    rng = random.Random(seed)
    return [tuple(rng.choices(range(vocab), k=rng.randint(1, longest))) for _ in range(count)]


def requests(count=8, n=3, **sampling):
    return [
        Request(p, Sampling(max_tokens=4 + 3 * i, **sampling), n=1 + (i * n) % 5, seed=i)
        for i, p in enumerate(prompts(count))
    ]


def ids(groups):
    return [[r.completion_ids for r in group] for group in groups]


@torch.no_grad()
def fresh_greedy(model, prompt, count):
    """Greedy decoding without any cache."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return tuple(ids[len(prompt) :])


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_is_what_fresh_forward_passes_give(models, name):
    model = models[name]
    todo = [Request(p, Sampling(temperature=0, max_tokens=24)) for p in prompts(6)]
    for request, group in zip(todo, collect(LocalEngine(model, max_batch=4), todo), strict=True):
        assert group[0].completion_ids == fresh_greedy(model, request.prompt_ids, 24)
        assert set(group[0].logprobs) == {0.0}
        assert group[0].finish == "length"


@pytest.mark.parametrize("name", CONFIGS)
def test_logprobs_are_the_trainers(models, name):
    model = models[name]
    if model.config.long_rope:  # past the original length a pass over all turns otherwise
        todo = [replace(r, sampling=replace(r.sampling, max_tokens=4)) for r in requests()]
        todo = [r for r in todo if len(r.prompt_ids) > 20 or len(r.prompt_ids) < 17]
    else:
        todo = requests()
    for group in collect(LocalEngine(model, max_batch=5), todo):
        scored = logprobs(model, [(r.prompt_ids, r.completion_ids) for r in group])
        for rollout, expected in zip(group, scored, strict=True):
            assert rollout.logprobs == pytest.approx(expected, abs=1e-5)
            assert rollout.raw_logprobs == pytest.approx(expected, abs=1e-5)


def test_logprobs_at_another_temperature(models):
    model = models["phi"]
    for group in collect(LocalEngine(model), requests(temperature=0.6)):
        pairs = [(r.prompt_ids, r.completion_ids) for r in group]
        for rollout, cool, raw in zip(
            group, logprobs(model, pairs, 0.6), logprobs(model, pairs), strict=True
        ):
            assert rollout.logprobs == pytest.approx(cool, abs=1e-5)
            assert rollout.raw_logprobs == pytest.approx(raw, abs=1e-5)


def test_bf16_logprobs_are_near_the_f32_trainers(models):
    model = make(CONFIGS["phi"], sharpness=5.0)
    engine = LocalEngine(model, dtype=torch.bfloat16)
    gaps = []
    for group in collect(engine, requests(12)):
        scored = logprobs(model, [(r.prompt_ids, r.completion_ids) for r in group])
        for rollout, expected in zip(group, scored, strict=True):
            gaps += [abs(a - b) for a, b in zip(rollout.logprobs, expected, strict=True)]
    assert 0 < sum(gaps) / len(gaps) < 0.01


def test_bf16_weights_are_the_trained_ones_at_every_call(models):
    model = make(CONFIGS["phi"])
    engine = LocalEngine(model, dtype=torch.bfloat16)
    todo = [Request((5, 6), Sampling(temperature=0, max_tokens=20))]
    before = ids(collect(engine, todo))
    with torch.no_grad():
        model.lm_head.weight.copy_(model.lm_head.weight.flip(0))
    assert ids(collect(engine, todo)) != before
    assert ids(collect(LocalEngine(model, dtype=torch.bfloat16), todo)) == ids(
        collect(engine, todo)
    )


@settings(max_examples=15)
@given(
    seed=st.integers(0, 10**6),
    mates=st.lists(st.tuples(st.integers(0, 99), st.integers(1, 6)), max_size=6),
    place=st.integers(0, 6),
    max_batch=st.integers(1, 20),
    name=st.sampled_from(sorted(CONFIGS)),
)
def test_a_request_does_not_feel_its_neighbours(models, seed, mates, place, max_batch, name):
    model, pool = models[name], prompts(100, seed=1)
    sampling = Sampling(temperature=0.8, top_p=0.9, max_tokens=18, stop_ids=(3,))
    mine = Request(pool[seed % 100], sampling, n=2, seed=seed)
    others = [Request(pool[i], replace(sampling, max_tokens=5 * n), n=n, seed=i) for i, n in mates]
    alone = collect(LocalEngine(model, max_batch=2), [mine])[0]
    place = min(place, len(others))
    among = [*others[:place], mine, *others[place:]]
    together = collect(LocalEngine(model, max_batch=max_batch), among)[place]
    assert ids([alone]) == ids([together])
    for a, b in zip(alone, together, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


def test_samples_may_be_asked_for_in_parts():
    engine = LocalEngine(make(CONFIGS["phi"], sharpness=4.0))
    ask = Request((1, 2, 3), Sampling(max_tokens=12), n=8, seed=5)
    whole = collect(engine, [ask])[0]
    parts = collect(engine, [replace(ask, n=4), replace(ask, n=4, first_sample=4)])
    assert ids([whole]) == ids([parts[0] + parts[1]])
    assert len({r.completion_ids for r in whole}) == 8
    other = collect(engine, [replace(ask, seed=6)])[0]
    assert not {r.completion_ids for r in whole} & {r.completion_ids for r in other}


def test_the_same_list_gives_the_same_bits(models):
    runs = [collect(LocalEngine(models["phi"], max_batch=6), requests()) for _ in range(2)]
    assert runs[0] == runs[1]


def test_a_shared_prompt_is_computed_once(models):
    engine = LocalEngine(models["phi"], max_batch=4)
    ask = Request(tuple(range(20)), Sampling(max_tokens=5), n=9, seed=1)
    groups = collect(engine, [ask, replace(ask, seed=2), Request((1, 2), Sampling(max_tokens=2))])
    assert [len(g) for g in groups] == [9, 9, 1]
    assert engine.tokens_prefilled == 19 + 1  # the last token of a prompt is fed by each sample
    assert engine.tokens_generated == 18 * 5 + 2


def test_stop_ids_end_a_completion_and_are_kept(models):
    model = models["phi"]
    free = collect(LocalEngine(model), [Request((9, 8), Sampling(max_tokens=30), n=6, seed=3)])[0]
    stop = (free[0].completion_ids[4], free[1].completion_ids[7])
    for before, after in zip(
        free,
        collect(
            LocalEngine(model),
            [Request((9, 8), Sampling(max_tokens=30, stop_ids=stop), n=6, seed=3)],
        )[0],
        strict=True,
    ):
        cut = next((i + 1 for i, t in enumerate(before.completion_ids) if t in stop), 30)
        assert after.completion_ids == before.completion_ids[:cut]
        assert after.finish == ("stop" if after.completion_ids[-1] in stop else "length")


def test_a_completion_ends_with_the_context(models):
    long = tuple(range(60))
    rollout = collect(LocalEngine(models["phi"]), [Request(long, Sampling(max_tokens=50))])[0][0]
    assert (len(rollout.completion_ids), rollout.finish) == (4, "length")


@pytest.mark.parametrize(
    "prompt, words",
    [
        ((), "empty"),
        (tuple([1] * 64), "has 64 tokens; the model's context is 64"),
        ((5, 97), "token id 97 is not in the vocabulary of 97"),
        ((-1,), "token id -1"),
    ],
)
def test_wrong_prompts_are_refused_at_once(models, prompt, words):
    with pytest.raises(PhikitError, match=words):
        LocalEngine(models["phi"]).generate(
            [Request((1,), Sampling()), Request(prompt, Sampling())]
        )


def test_broken_weights_are_named():
    model = make(CONFIGS["phi"])
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(PhikitError, match="not finite"):
        collect(LocalEngine(model), [Request((1, 2), Sampling(max_tokens=3))])


def test_no_requests_and_no_training_mode_left_behind(models):
    engine = LocalEngine(models["phi"])
    assert list(engine.generate([])) == []
    for _ in engine.generate([Request((1,), Sampling(max_tokens=3), n=3)]):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_a_stream_is_the_same_sample(models):
    for name in ("phi", "mini"):
        engine = LocalEngine(models[name])
        ask = Request((4, 5, 6), Sampling(max_tokens=40, stop_ids=(3,)), seed=8)
        assert tuple(engine.stream(ask)) == collect(engine, [ask])[0][0].completion_ids


def test_big_batches_of_one_prompt_sit_in_few_slots(models):
    """Mixed numbers of samples: some prompts take several slots, some leave seats empty."""
    model: Decoder = models["phi"]
    todo = [
        Request(p, Sampling(max_tokens=6), n=n, seed=i)
        for i, (p, n) in enumerate(zip(prompts(6), (1, 17, 2, 1, 9, 3), strict=True))
    ]
    expected = [ids(collect(LocalEngine(model, max_batch=1), [r])) for r in todo]
    assert [ids([g]) for g in collect(LocalEngine(model, max_batch=12), todo)] == expected
