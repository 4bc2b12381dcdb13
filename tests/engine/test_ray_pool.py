"""A pool of engines on a real cluster of two nodes, one of whose workers is killed on the way."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from engine_fixtures import CONFIGS, make

from phikit.engine.base import Request, Sampling, collect
from phikit.engine.local import LocalEngine
from phikit.engine.ray_pool import RayPool
from phikit.engine.ray_worker import (
    EngineWorker,
    packed,
    packed_rollouts,
    unpacked,
    unpacked_rollouts,
)
from phikit.errors import PhikitError
from phikit.models.checkpoint import save
from phikit.models.load import load

ray = pytest.importorskip("ray", reason="pip install -e '.[ray]'")

ASKED = [
    Request((5, 6, 7), Sampling(max_tokens=20), n=40, seed=1),
    *[Request((i, 9, 4), Sampling(max_tokens=16), n=2, seed=i) for i in range(24)],
    Request((90,), Sampling(top_k=5, logit_bias=((4, 1.5),), stop_ids=(3,), max_tokens=9), n=2),
]


def test_requests_and_rollouts_travel_as_they_are(models):
    assert unpacked(packed(ASKED)) == ASKED
    rollouts = collect(LocalEngine(models["phi"]), ASKED[-3:])
    assert unpacked_rollouts(packed_rollouts(rollouts), ASKED[-3:]) == rollouts


def test_a_worker_runs_calls_side_by_side_and_drops_a_job(tmp_path: Path):
    save(make(CONFIGS["phi"]), tmp_path / "model")
    worker = EngineWorker(str(tmp_path / "model"), 4, torch.get_num_threads())
    expected = collect(LocalEngine(load(tmp_path / "model")), ASKED[:6])
    with ThreadPoolExecutor(8) as calls:
        endless = [Request((7, i), Sampling(max_tokens=60), n=50) for i in range(2)]
        dropped = [calls.submit(worker.run, 2, packed([r])) for r in endless]
        while len(worker._open) < 2:
            time.sleep(0.01)
        mine = [calls.submit(worker.run, 1, packed([r, ASKED[1]])) for r in ASKED[:6]]
        worker.drop(2)
        for call, group in zip(mine, expected, strict=True):
            [found, _] = unpacked_rollouts(call.result(timeout=60), [ASKED[0], ASKED[1]])
            assert [r.completion_ids for r in found] == [r.completion_ids for r in group]
        for call in dropped:
            with pytest.raises(RuntimeError, match="cancelled"):
                call.result(timeout=60)
        with pytest.raises(PhikitError, match="not in the vocabulary"):
            worker.run(3, packed([Request((10**6,), Sampling())]))


def test_what_cannot_be_is_said(tmp_path: Path):
    save(make(CONFIGS["phi"]), tmp_path / "model")
    with pytest.raises(PhikitError, match="at least 1"):
        RayPool(tmp_path / "model", engines=0)
    with pytest.raises(PhikitError, match=r"no Ray cluster at 127\.0\.0\.1:1"):
        RayPool(tmp_path / "model", address="127.0.0.1:1")


@pytest.mark.slow
def test_nothing_is_lost_and_nothing_comes_twice_when_an_engine_dies(tmp_path: Path):
    from ray.cluster_utils import Cluster

    torch.manual_seed(0)
    save(make(CONFIGS["phi"]), tmp_path / "model")
    expected = collect(LocalEngine(load(tmp_path / "model")), ASKED)
    # what else needs memory on this machine is no reason to kill engines here
    calm = {
        "num_cpus": 1,
        "_system_config": {"memory_monitor_refresh_ms": 0, "worker_niceness": 0},
    }
    cluster = Cluster(initialize_head=True, head_node_args=calm)
    try:
        other = cluster.add_node(num_cpus=1)
        with RayPool(tmp_path / "model", 2, max_batch=4, address=cluster.address) as pool:
            pids = pool.pids()
            nodes = {n["NodeID"] for n in ray.nodes() if n["Alive"]}
            assert len(set(pids)) == len(nodes) == 2
            found = []
            for done in pool.generate(ASKED):
                found.append(done)
                if len(found) == 8:
                    os.kill(pids[0], signal.SIGKILL)
                assert max(e.samples for e in pool.engines) <= 16 + 6  # a part, and 1.5 batches
            assert pool.replaced == 1
            assert_same(found, expected)
            # the caller leaves early; then a whole node goes away for good
            assert next(iter(pool.generate(ASKED))).rollout.completion_ids
            found = []
            for done in pool.generate(ASKED):
                found.append(done)
                if len(found) == 8:
                    cluster.remove_node(other, allow_graceful=False)
            assert_same(found, expected)
            with pytest.raises(PhikitError, match="request 1: token id 1000 is not"):
                pool.generate([ASKED[0], Request((1000,), Sampling())])
    finally:
        ray.shutdown()
        cluster.shutdown()


def assert_same(found, expected):
    places = [(done.request, done.sample) for done in found]
    assert sorted(places) == [(i, j) for i, r in enumerate(ASKED) for j in range(r.n)]
    for done in found:
        same = expected[done.request][done.sample]
        assert done.rollout.completion_ids == same.completion_ids
        assert done.rollout.logprobs == pytest.approx(same.logprobs, abs=1e-4)
