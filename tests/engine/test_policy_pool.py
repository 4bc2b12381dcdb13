"""Engines whose weights are renewed: what they draw, from which weights, and through deaths."""

import os
import signal
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from engine_fixtures import CONFIGS, make

from phikit.engine.base import Request, Sampling, collect
from phikit.engine.local import LocalEngine
from phikit.engine.policy_pool import PolicyPool, parts
from phikit.engine.policy_worker import PolicyWorker, weights_of
from phikit.engine.ray_worker import packed, unpacked_rollouts
from phikit.errors import PhikitError
from phikit.models import lora
from phikit.models.lora_spec import LoraSpec

ray = pytest.importorskip("ray", reason="pip install -e '.[ray]'")

HEAD = tuple(range(5, 45))  # more than a block: all requests share what is cached of them
ASKED = [
    *[Request((*HEAD, i), Sampling(max_tokens=12), n=5, seed=i) for i in range(6)],
    Request((90,), Sampling(top_k=5, logit_bias=((4, 1.5),), stop_ids=(3,), max_tokens=9), n=7),
]


def seeded(seed, name="phi"):
    return make(CONFIGS[name], seed)


@pytest.fixture(scope="module")
def cluster():
    # what else needs memory on this machine is no reason to kill engines here
    calm = {"memory_monitor_refresh_ms": 0, "worker_niceness": 0}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _system_config=calm)
    yield
    ray.shutdown()


def ids(groups):
    return [[r.completion_ids for r in group] for group in groups]


@pytest.mark.parametrize(("engines", "max_batch"), [(1, 64), (2, 64), (3, 1), (50, 4)])
def test_parts_hold_every_sample_once_and_do_not_depend_on_time(engines, max_batch):
    requests = [replace(r, first_sample=3) for r in ASKED]
    cut = parts(requests, engines, max_batch)
    found = [
        (index, offset + i)
        for part in cut
        for (index, offset), request in zip(part.places, part.requests, strict=True)
        for i in range(request.n)
        if request == replace(requests[index], n=request.n, first_sample=3 + offset)
    ]
    assert sorted(found) == [(i, j) for i, r in enumerate(requests) for j in range(r.n)]
    sizes = [sum(r.n for r in part.requests) for part in cut]
    assert max(sizes) <= 4 * max_batch and max(sizes[:-1], default=0) - min(sizes[:-1] or [0]) == 0
    assert len(cut) == max(min(engines, 37), -(-37 // (4 * max_batch)))


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.float32, "phi"), (torch.float32, "llama"), (torch.bfloat16, "mini")]
)
def test_a_worker_has_the_weights_whole_or_none(dtype, name):
    torch.set_num_threads(1)
    model, other = seeded(0, name), seeded(1, name)
    worker = PolicyWorker(model.config, str(dtype).removeprefix("torch."), 8, 1, False)
    assert worker.run(1, packed(ASKED)) == (0, b"")
    for version, given in enumerate((model, other), 1):
        assert worker.load(version, weights_of(given, dtype)) == os.getpid()
        held, data = worker.run(version, packed(ASKED))
        expected = collect(LocalEngine(given, 8, dtype), ASKED)
        assert held == version and unpacked_rollouts(data, ASKED) == expected
    assert worker.run(1, packed(ASKED)) == (2, b"")
    weights = weights_of(model, dtype)
    last = max(weights)
    with pytest.raises(PhikitError, match="another size"):
        worker.load(3, weights | {last: weights[last][:-2]})
    assert worker.run(3, packed(ASKED)) == worker.run(2, packed(ASKED)) == (0, b"")
    del weights[last]
    with pytest.raises(PhikitError, match=f"another model's: {last}"):
        worker.load(3, weights)


def test_weights_are_views_where_they_can_be():
    model = seeded(0)
    weights = weights_of(model, torch.float32)
    name, p = next(iter(model.named_parameters()))
    assert weights[name].ctypes.data == p.data_ptr() and weights[name].dtype == np.uint8
    lora.add(model, "a", LoraSpec(2, 4.0, ".*qkv_proj", 0.0))
    with pytest.raises(PhikitError, match="merge the adapter"):
        weights_of(model, torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("invariant", [False, True])
def test_the_pool_draws_what_the_local_engine_draws_of_each_version(invariant, cluster):
    torch.set_num_threads(1)
    first, second = seeded(0), seeded(1)
    with PolicyPool(first.config, 2, max_batch=8, invariant=invariant) as pool:
        with pytest.raises(PhikitError, match="call `load` first"):
            pool.generate(ASKED)
        drawn = []
        for version, model in enumerate((first, second, first), 1):
            assert pool.load(model) == version
            drawn.append(collect(pool, ASKED))
            expected = collect(LocalEngine(model, 8, invariant=invariant), ASKED)
            assert ids(drawn[-1]) == ids(expected)
            for a, b in zip(chain(*drawn[-1]), chain(*expected), strict=True):
                assert a.logprobs == pytest.approx(b.logprobs, abs=0 if invariant else 1e-4)
        assert drawn[0] == drawn[2] and ids(drawn[0]) != ids(drawn[1])
        assert (pool.replaced, pool.refused) == (0, 0)


@pytest.mark.slow
def test_deaths_and_answers_of_other_weights_change_nothing(cluster):
    old, new = seeded(0), seeded(1)
    stale = ray.put(weights_of(old, torch.float32))
    with PolicyPool(new.config, 2, max_batch=8) as pool:
        pool.load(old)
        assert collect(pool, ASKED)
        pool.load(new)
        expected = collect(pool, ASKED)

        # an engine that went back to the old weights behind the pool's back
        ray.get(pool.engines[0].actor.load.remote(1, stale))
        assert collect(pool, ASKED) == expected and pool.refused == 1

        # one that dies while it draws, and one that dies idle
        hand_out, victims = pool._hand_out, [pool.pids()[1]]

        def killing(todo):
            hand_out(todo)
            if victims and all(e.part for e in pool.engines):
                os.kill(victims.pop(), signal.SIGKILL)

        pool._hand_out = killing
        assert collect(pool, ASKED) == expected and pool.replaced == 1 and not victims
        pool._hand_out = hand_out
        os.kill(pool.pids()[0], signal.SIGKILL)
        assert collect(pool, ASKED) == expected and pool.replaced == 2

        # one that dies with the new weights on their way
        victim = pool.pids()[0]
        pool.load(old)
        os.kill(victim, signal.SIGKILL)
        assert ids(collect(pool, ASKED)) == ids(collect(LocalEngine(old, 8), ASKED))
        assert pool.replaced == 3
        pool.load(new)

        # a caller that leaves early; and weights cannot change under one that has not left
        drawn = pool.generate(ASKED)
        next(drawn)
        with pytest.raises(PhikitError, match="while rollouts are drawn"):
            pool.load(old)
        with pytest.raises(PhikitError, match="at work already"):
            pool.generate(ASKED)
        drawn.close()
        assert collect(pool, ASKED) == expected
        with pytest.raises(PhikitError, match="another shape"):
            pool.load(seeded(0, "mini"))
        with pytest.raises(PhikitError, match="request 1: token id 1000 is not"):
            pool.generate([ASKED[0], Request((1000,), Sampling())])
    with pytest.raises(PhikitError, match="closed"):
        pool.load(new)


@pytest.mark.slow
def test_engines_that_die_again_and_again_are_given_up(cluster):
    model = seeded(0)
    with PolicyPool(model.config, 1, max_batch=8) as pool:
        pool.load(model)
        pool.pids()
        hand_out = pool._hand_out

        def killing(todo):
            hand_out(todo)
            if pool.engines[0].part:
                os.kill(pool.pids()[0], signal.SIGKILL)

        pool._hand_out = killing
        with pytest.raises(PhikitError, match="request 0: 3 engines died"):
            collect(pool, ASKED)
