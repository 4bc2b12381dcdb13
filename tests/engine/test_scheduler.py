"""The scheduler: requests that join, leave and wait; what is stored once; what is refused."""

import random
from dataclasses import replace

import pytest
import torch
from crowd import Crowd
from engine_fixtures import CONFIGS, make
from hypothesis import given, settings
from hypothesis import strategies as st

from phikit.engine.base import Request, Sampling, collect
from phikit.engine.dense import DenseRunner
from phikit.engine.local import LocalEngine
from phikit.engine.scheduler import Scheduler
from phikit.errors import PhikitError

WORDS = [(1, 2, 3, 4, 5, 6, 7, 8, 9, 10), (1, 2, 3, 4, 5, 6, 20, 21), (1, 2, 3, 4), (30,)]


def request_of(draw):
    prompt = list(draw.choice(WORDS)) + draw.choices(range(40, 44), k=draw.randint(0, 30))
    return Request(
        tuple(prompt), Sampling(max_tokens=draw.randint(1, 12)), n=draw.randint(1, 5),
        seed=draw.randint(0, 9),
    )  # fmt: skip


def scheduler_of(model, size=4, blocks=400, **options):
    runner = DenseRunner(model, block_size=size)
    return Scheduler(runner, cache_bytes=blocks * runner.block_bytes, **options)


def drain(scheduler, found=None):
    found = {} if found is None else found
    streams: dict = {}
    while scheduler.busy:
        events = scheduler.step()
        for t in events.tokens():
            first, got = streams.setdefault((t.ticket.number, t.sample), (t.place, []))
            assert t.place == first + len(got)  # none left out, none twice
            got.append(t.token)
        for done in events.finished:
            key = (done.ticket.number, done.sample)
            assert key not in found
            found[key] = done.rollout.completion_ids
            if key in streams:
                first, got = streams[key]
                assert tuple(got) == found[key][first:]
    return found


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    name=st.sampled_from(sorted(CONFIGS)),
    size=st.sampled_from([2, 3, 8]),
    blocks=st.integers(0, 40),
    rows=st.integers(1, 12),
    budget=st.sampled_from([1, 5, 64]),
    keep=st.booleans(),
)
def test_whatever_happens_samples_are_those_of_a_quiet_engine(
    models, seed, name, size, blocks, rows, budget, keep
):
    """Requests join at any step, some are cancelled, blocks run out, prompts come in chunks."""
    draw, model = random.Random(seed), models[name]
    todo = [request_of(draw) for _ in range(draw.randint(1, 12))]
    need = -(-(max(len(r.prompt_ids) + r.sampling.max_tokens for r in todo)) // size)
    scheduler = scheduler_of(
        model, size, need + blocks, max_rows=rows, prefill_tokens=budget, keep=keep
    )
    crowd = Crowd(scheduler, todo, draw)
    for index, request in enumerate(todo):
        if index in crowd.cancelled:
            continue
        expected = collect(LocalEngine(model, max_batch=8), [request])[0]
        got = [r.completion_ids for r in crowd.rollouts(index)]
        assert got == [r.completion_ids for r in expected]
    stats = scheduler.stats()
    assert (stats.used, stats.waiting, stats.entering, stats.running) == (0, 0, 0, 0)
    scheduler.clear_cache()
    assert scheduler.blocks.used == 0 and not scheduler.prefixes.nodes
    assert all(bool((store[0] == 0).all()) for store in scheduler.runner.pool.k)


def test_a_prefix_is_computed_and_stored_once(models):
    """A tree of prefixes at all lengths, and many samples of each: every token once."""
    words = tuple(range(1, 24))
    scheduler = scheduler_of(models["phi"], size=4, max_rows=64)
    for end in range(2, 24):
        scheduler.submit(Request(words[:end], Sampling(max_tokens=3), n=3, seed=end))
    drain(scheduler)
    assert scheduler.stats().prefilled == 22
    # another request finds it all, and the last word, which rows fed themselves
    more = scheduler.submit(Request((*words, 7), Sampling(max_tokens=2)))
    drain(scheduler)
    assert scheduler.stats().prefilled == 22 and more.left == 0


def test_rows_share_the_blocks_of_their_prefix(models):
    scheduler = scheduler_of(models["phi"], size=4, max_rows=16)
    scheduler.submit(Request(tuple(range(1, 34)), Sampling(max_tokens=4), n=16))
    scheduler.step()
    tables = scheduler.rows.table[:16, :8]
    assert (tables == tables[0]).all()
    assert scheduler.stats().used == 8 + 16


def test_generated_tokens_are_found_again(models):
    scheduler = scheduler_of(models["phi"], size=4, max_rows=4)
    first = scheduler.submit(Request((1, 2, 3), Sampling(temperature=0, max_tokens=20)))
    said = drain(scheduler)[first.number, 0]
    before = scheduler.stats()
    scheduler.submit(Request((1, 2, 3, *said, 5), Sampling(temperature=0, max_tokens=5)))
    drain(scheduler)
    after = scheduler.stats()
    assert after.prefilled - before.prefilled == 1  # the last token said was never fed
    assert after.reused - before.reused == 22


def test_a_long_prompt_does_not_stall_the_others(models):
    scheduler = scheduler_of(models["phi"], size=4, max_rows=4, prefill_tokens=8)
    short = scheduler.submit(Request((1, 2), Sampling(max_tokens=30)))
    scheduler.step()
    scheduler.submit(Request(tuple(range(2, 52)), Sampling(max_tokens=2), seed=1))
    drawn = 0
    while scheduler.entrance.entering or scheduler.waiting:
        before = scheduler.runner.prefilled
        drawn += sum(t.ticket is short for t in scheduler.step().tokens())
        assert scheduler.runner.prefilled - before <= 8
    assert drawn == 7  # 49 tokens, 8 at a time


def test_what_cannot_fit_is_refused_with_the_numbers(models):
    scheduler = scheduler_of(models["phi"], size=4, blocks=6)
    with pytest.raises(PhikitError, match=r"need 8 blocks .* the whole cache has 6"):
        scheduler.submit(Request(tuple(range(1, 20)), Sampling(max_tokens=14)))
    scheduler.submit(Request(tuple(range(1, 13)), Sampling(max_tokens=13)))
    assert len(drain(scheduler)) == 1
    runner = DenseRunner(models["phi"])
    with pytest.raises(PhikitError, match=r"does not fit: .* GiB of memory are free"):
        Scheduler(runner, cache_bytes=2**50)
    with pytest.raises(PhikitError, match="holds no block"):
        Scheduler(runner, cache_bytes=10)


def test_when_blocks_run_out_the_last_one_in_waits(models):
    model = models["phi"]
    scheduler = scheduler_of(model, size=4, blocks=12, max_rows=8)
    todo = [Request((i, 9), Sampling(max_tokens=30), seed=i) for i in range(1, 7)]
    tickets = [scheduler.submit(r) for r in todo]
    found = drain(scheduler)
    assert scheduler.stats().preempted > 0 and scheduler.stats().recomputed > 0
    expected = collect(LocalEngine(model), todo)
    for ticket, group in zip(tickets, expected, strict=True):
        assert found[ticket.number, 0] == group[0].completion_ids


def test_cancelling_frees_the_blocks_at_once(models):
    scheduler = scheduler_of(models["phi"], size=4, max_rows=4, keep=False, prefill_tokens=6)
    stays = scheduler.submit(Request((1, 2, 3), Sampling(max_tokens=9)))
    goes = scheduler.submit(Request(tuple(range(1, 40)), Sampling(max_tokens=9), n=3))
    builds_on = scheduler.submit(Request((*range(1, 40), 50), Sampling(max_tokens=4)))
    for _ in range(3):
        scheduler.step()
    assert scheduler.entrance.entering
    scheduler.cancel(goes)
    found = drain(scheduler)
    assert set(found) == {(stays.number, 0), (builds_on.number, 0)}
    scheduler.cancel(goes)  # once more changes nothing
    assert scheduler.stats().used == 0


def test_short_and_long_rope_regimes_do_not_share(models):
    scheduler = scheduler_of(models["mini"], size=4, max_rows=4)
    words = tuple(range(1, 31))
    drain_first = Request(words[:15], Sampling(temperature=0, max_tokens=3))
    scheduler.submit(drain_first)
    drain(scheduler)
    ticket = scheduler.submit(Request(words, Sampling(temperature=0, max_tokens=6)))
    got = drain(scheduler)[ticket.number, 0]
    assert scheduler.stats().reused == 0
    alone = collect(LocalEngine(models["mini"]), [replace(drain_first, prompt_ids=words)])[0][0]
    assert got[:3] == alone.completion_ids


def test_layers_are_called_as_modules(models):
    """Another module may stand in a matrix's place."""

    class Doubled(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x) * 2

    model, plain = make(CONFIGS["phi"]), make(CONFIGS["phi"])
    for layer, other in zip(model.model.layers, plain.model.layers, strict=True):
        layer.mlp.down_proj = Doubled(layer.mlp.down_proj)
        layer.self_attn.qkv_proj = Doubled(layer.self_attn.qkv_proj)
        with torch.no_grad():
            other.mlp.down_proj.weight.mul_(2)
            other.self_attn.qkv_proj.weight.mul_(2)
    ask = [Request((1, 2, 3), Sampling(max_tokens=20), n=4)]
    assert collect(LocalEngine(model), ask)[0] == collect(LocalEngine(plain), ask)[0]
