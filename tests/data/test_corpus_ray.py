"""The same corpus on a real Ray cluster of two nodes, one of whose workers is killed meanwhile."""

import hashlib
import json
import threading
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from phikit.data.corpus.build import Job, build, documents
from phikit.data.corpus.config import CorpusConfig
from phikit.data.corpus.ray_units import OnRay
from phikit.data.corpus.units import Here
from phikit.data.dedup import DedupConfig
from phikit.data.readers import ReaderConfig, read
from phikit.records import Document

ray = pytest.importorskip("ray")
psutil = pytest.importorskip("psutil")


def quiet(step: str, done: int, total: int) -> None:
    return


def fingerprint(out: Path) -> str:
    digest = hashlib.sha256("".join(d.id for d in documents(out)).encode())
    for path in sorted(out.glob("4-kept/*/rejected.jsonl")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def kill_one_at_work(out: Path, killed: list[int]) -> None:
    """Kills the first worker that says it has begun a unit, while it is at it."""
    account = out / "units.jsonl"
    while not killed:
        lines = account.read_text().splitlines() if account.exists() else []
        rows = [json.loads(line) for line in lines]
        done = {row["unit"] for row in rows if row["event"] == "done"}
        for row in rows:
            # not the very first: let some units be done before
            if len(done) >= 2 and row["event"] == "started" and row["unit"] not in done:
                try:
                    psutil.Process(row["pid"]).kill()
                except psutil.NoSuchProcess:
                    continue
                killed.append(row["pid"])
                return
        time.sleep(0.002)


@pytest.mark.slow
def test_two_nodes_and_a_killed_worker_give_the_same_corpus(tmp_path) -> None:
    from ray.cluster_utils import Cluster

    found = (d for d in read(ReaderConfig()) if isinstance(d, Document) and len(d.text) > 400)
    rows = [{"text": d.text, "source": d.source} for d in islice(found, 120)]
    (tmp_path / "in").mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in [*rows, *rows[:20]])
    (tmp_path / "in" / "a.jsonl").write_text(lines)
    # few units: starting Ray's workers is what takes the time
    config = CorpusConfig(shard_bytes=60_000, outliers=False, dedup=DedupConfig(bands=7))
    job = Job((tmp_path / "in",), config)
    build(job, tmp_path / "alone", Here(), quiet)

    # other programs' memory on this machine is no reason to kill these workers
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "_system_config": {"memory_monitor_refresh_ms": 0}},
    )
    try:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        workers = OnRay(cluster.address)
        assert len(ray.nodes()) == 2
        killed: list[int] = []
        killer = threading.Thread(target=kill_one_at_work, args=(tmp_path / "spread", killed))
        killer.start()
        build(job, tmp_path / "spread", workers, quiet)
        killer.join(timeout=5)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert fingerprint(tmp_path / "spread") == fingerprint(tmp_path / "alone")
    account = [
        json.loads(s) for s in (tmp_path / "spread" / "units.jsonl").read_text().splitlines()
    ]
    assert killed
    begun, done = (
        Counter(row["unit"] for row in account if row["event"] == event)
        for event in ("started", "done")
    )
    again = {unit for unit, count in begun.items() if count > 1}
    # the killed one was done again, once, and nothing else was
    assert len(again) == 1 and begun[again.pop()] == 2
    assert set(done) == set(begun) and set(done.values()) == {1}
    assert len({row["pid"] for row in account}) >= 2
