"""GRPO whose engines are on two nodes of a Ray cluster: the same training as on one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psutil
import pytest
from train_runs import run

from phikit.engine.base import Finished, Request
from phikit.engine.policy_pool import PolicyPool
from phikit.stage import Context

New = Callable[..., Context]

ray = pytest.importorskip("ray", reason="pip install 'phikit[ray]'")


@ray.remote(num_cpus=1)
class Occupant:
    """Holds a CPU of a node."""

    def here(self) -> None:
        return


@pytest.mark.slow
def test_two_nodes_train_to_the_bit_what_one_does(
    new_context: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.cluster_utils import Cluster
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    generate, hand_out = PolicyPool.generate, PolicyPool._hand_out
    nodes: list[set[int]] = []  # the engines' own, at each iteration
    held: list[list[int]] = []  # the engines' versions of the weights, at each iteration
    drew: set[tuple[int, int]] = set()  # (version, engine)

    def asked(self: PolicyPool, requests: Sequence[Request]) -> Iterator[Finished]:
        nodes.append({psutil.Process(pid).ppid() for pid in self.pids()})
        # an engine that is asked for another version than its own says which that is
        held.append([v for v, _ in ray.get([e.actor.run.remote(-1, b"") for e in self.engines])])
        return generate(self, requests)

    def watched(self: PolicyPool, todo: Any) -> None:
        hand_out(self, todo)
        drew.update((self.version, i) for i, e in enumerate(self.engines) if e.part)

    monkeypatch.setattr(PolicyPool, "generate", asked)
    monkeypatch.setattr(PolicyPool, "_hand_out", watched)
    # what else needs memory on this machine is no reason to kill engines here
    calm = {"memory_monitor_refresh_ms": 0, "worker_niceness": 0}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "_system_config": calm})
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        one = new_context("one")
        run("grpo-ray", one)
        assert [len(n) for n in nodes] == [1, 1, 1] and held == [[1, 1], [2, 2], [3, 3]]
        [head] = ray.nodes()
        occupant = Occupant.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(head["NodeID"], soft=False)
        ).remote()
        ray.get(occupant.here.remote())
        cluster.add_node(num_cpus=1)  # now each node has room for one engine
        cluster.wait_for_nodes()
        for seen in (nodes, held, drew):
            seen.clear()
        two = new_context("two")
        run("grpo-ray", two)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert [len(n) for n in nodes] == [2, 2, 2] and held == [[1, 1], [2, 2], [3, 3]]
    assert drew >= {(2, 0), (2, 1), (3, 0), (3, 1)}
    for file in ("model/model.safetensors", "metrics.jsonl"):
        assert (two.dir / file).read_bytes() == (one.dir / file).read_bytes(), file
    local = new_context("local")
    run("grpo", local)
    losses = [[row["loss"] for row in ctx.metrics.rows] for ctx in (two, local)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
