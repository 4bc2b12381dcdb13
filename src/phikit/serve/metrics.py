"""What Prometheus is told: latencies, queue, cache, tokens, answers by status."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from phikit.serve.worker import Observer, Worker

_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_FURTHER = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """The figures of a server; `text()` is what `/metrics` says."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.registry = CollectorRegistry()
        first = Histogram(
            "phikit_time_to_first_token_seconds",
            "From a request's arrival to each sample's first token.",
            ["model"], buckets=_FIRST, registry=self.registry,
        )  # fmt: skip
        further = Histogram(
            "phikit_time_between_tokens_seconds",
            "From one token of a sample to its next.",
            ["model"], buckets=_FURTHER, registry=self.registry,
        )  # fmt: skip
        self.answers = Counter(
            "phikit_answers", "Answers by path and status.", ["path", "status"],
            registry=self.registry,
        )  # fmt: skip
        for worker in workers:
            worker.observer = Observer(
                first.labels(worker.name).observe, further.labels(worker.name).observe
            )
        self.registry.register(_Schedulers(workers))

    def text(self) -> bytes:
        return generate_latest(self.registry)


_GAUGES = (
    ("phikit_samples_waiting", "Samples in the queue.", lambda s: s["waiting"] + s["entering"]),
    ("phikit_samples_running", "Samples being generated.", lambda s: s["running"]),
    ("phikit_cache_blocks", "Blocks of the KV cache.", lambda s: s["blocks"]),
    ("phikit_cache_blocks_used", "Blocks that samples hold.", lambda s: s["used"]),
    ("phikit_cache_blocks_cached", "Blocks only the prefix cache holds.", lambda s: s["cached"]),
)
_COUNTERS = (
    ("phikit_tokens_generated", "Tokens drawn.", lambda s: s["generated"]),
    ("phikit_tokens_prefilled", "Prompt tokens computed.", lambda s: s["prefilled"]),
    ("phikit_tokens_reused", "Prompt tokens found in the cache.", lambda s: s["reused"]),
    ("phikit_preemptions", "Samples that had to give their blocks up.", lambda s: s["preempted"]),
)


class _Schedulers:
    """A collector: the schedulers' own figures, read when they are asked for."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.workers = workers

    def collect(self) -> Iterable[Metric]:
        stats: list[tuple[str, dict[str, int]]] = [(w.name, w.stats) for w in self.workers]
        for name, text, value in _GAUGES:
            gauge = GaugeMetricFamily(name, text, labels=["model"])
            for model, figures in stats:
                gauge.add_metric([model], value(figures))
            yield gauge
        restarts = CounterMetricFamily(
            "phikit_engine_restarts", "Engines that died and were started again.", labels=["model"]
        )
        for worker in self.workers:
            restarts.add_metric([worker.name], worker.restarts)
        yield restarts
        for name, text, value in _COUNTERS:
            counter = CounterMetricFamily(name, text, labels=["model"])
            for model, figures in stats:
                counter.add_metric([model], value(figures))
            yield counter
