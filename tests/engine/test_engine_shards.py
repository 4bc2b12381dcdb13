"""Batches side by side give what one batch gives."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phikit.engine.base import Request, Sampling, collect
from phikit.engine.local import LocalEngine
from phikit.engine.shards import divide, shard_count
from phikit.errors import PhikitError

SAMPLING = Sampling(max_tokens=12, stop_ids=(3,))


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), max_size=30), st.integers(1, 4))
def test_every_sample_is_dealt_once(asked, count):
    requests = [Request((p,), SAMPLING, n=n, first_sample=2) for p, n in asked]
    shards = divide(requests, count)
    dealt = Counter()
    for part in (part for shard in shards for part in shard):
        assert part.request.first_sample == 2 + part.offset
        for sample in range(part.offset, part.offset + part.request.n):
            dealt[part.index, sample] += 1
    assert dealt == Counter((i, s) for i, (_, n) in enumerate(asked) for s in range(n))


def test_one_large_request_is_divided_and_prompts_stay_together():
    shards = divide([Request((1,), SAMPLING, n=529)], 2)
    assert [[p.request.n for p in shard] for shard in shards] == [[264], [265]]
    many = divide([Request((i % 8,), SAMPLING, n=3) for i in range(16)], 2)
    homes = [{p.request.prompt_ids for p in shard} for shard in many]
    assert not homes[0] & homes[1] and len(many[0]) == len(many[1])


def test_only_small_models_and_large_batches_are_divided():
    assert shard_count(10**6, rows=256, threads=2) == 2
    assert shard_count(10**6, rows=20, threads=2) == 1
    assert shard_count(10**9, rows=256, threads=2) == 1


@pytest.mark.parametrize("prompts", [2, 12])
def test_the_same_tokens_in_the_same_order_every_time(models, two_threads, prompts):
    requests = [Request((i + 1, 7), SAMPLING, n=8, seed=i) for i in range(prompts)]
    runs = [list(LocalEngine(models["phi"], max_batch=40).generate(requests)) for _ in range(3)]
    assert runs[0] == runs[1] == runs[2]
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    alone = collect(LocalEngine(models["phi"], max_batch=40), requests)
    torch.set_num_threads(2)
    together = collect(LocalEngine(models["phi"], max_batch=40), requests)
    for a, b in zip(alone, together, strict=True):
        assert [r.completion_ids for r in a] == [r.completion_ids for r in b]


def test_stopping_early_leaves_nothing_running(models, two_threads):
    engine = LocalEngine(models["phi"], max_batch=64)
    requests = [Request((1, 2), replace(SAMPLING, max_tokens=40), n=200)]
    stream = engine.generate(requests)
    next(stream)
    assert torch.is_grad_enabled() and torch.get_num_threads() == 2
    stream.close()
    assert 0 < engine.tokens_generated < 200 * 40


def test_an_error_in_one_thread_reaches_the_caller(models, two_threads):
    engine = LocalEngine(models["phi"], max_batch=64)
    weight = models["phi"].model.norm.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(float("inf"))
    try:
        with pytest.raises(PhikitError, match="not finite"):
            list(engine.generate([Request((1, 2), SAMPLING, n=64)]))
    finally:
        with torch.no_grad():
            weight.copy_(kept)
