"""Several small batches side by side, each on one core.

The samples for a small model are divided once, and every core runs a batch of its own; why that is
faster is told in `models.lanes`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from phikit.engine.base import Finished, Request
from phikit.engine.scheduler import Scheduler
from phikit.models.lanes import Lanes, lane_count

_ROWS = 16  # a batch with fewer rows is not worth a core
_STEPS = 8  # steps between two meetings of the batches


@dataclass(frozen=True)
class Part:
    """Some samples of request number `index`, the first of them being its sample `offset`."""

    index: int
    offset: int
    request: Request


def shard_count(parameters: int, rows: int, threads: int) -> int:
    """How many batches to run side by side."""
    return max(1, min(lane_count(parameters, threads), rows // _ROWS))


def divide(requests: Sequence[Request], count: int) -> list[list[Part]]:
    """Deals the samples out evenly; a prompt stays whole when there are prompts enough."""
    if count == 1:
        return [[Part(i, 0, r) for i, r in enumerate(requests)]]
    shards: list[list[Part]] = [[] for _ in range(count)]
    if len({r.prompt_ids for r in requests}) >= 4 * count:
        load = [0] * count
        home: dict[tuple[int, ...], int] = {}
        for index, request in enumerate(requests):
            shard = home.setdefault(request.prompt_ids, load.index(min(load)))
            load[shard] += request.n
            shards[shard].append(Part(index, 0, request))
        return [s for s in shards if s]
    for index, request in enumerate(requests):
        bounds = [request.n * k // count for k in range(count + 1)]
        for k in range(count):
            # turning the order evens out requests with fewer samples than there are shards
            start, stop = bounds[k], bounds[k + 1]
            if stop > start:
                part = replace(request, n=stop - start, first_sample=request.first_sample + start)
                shards[(k + index) % count].append(Part(index, start, part))
    return [s for s in shards if s]


def run_together(
    schedulers: Sequence[Scheduler], shards: Sequence[Sequence[Part]]
) -> Iterator[Finished]:
    """Drives the schedulers to their end, one thread each; yields in an order that does not depend
    on the threads' speed, with the numbers that the undivided requests have."""
    parts: list[dict[int, Part]] = []
    for scheduler, shard in zip(schedulers, shards, strict=True):
        parts.append({scheduler.submit(part.request).number: part for part in shard})
    steps = _STEPS if len(schedulers) > 1 else 1

    def advance(number: int) -> list[Finished]:
        scheduler = schedulers[number]
        found: list[Finished] = []
        for _ in range(steps):
            if not scheduler.busy:
                break
            for done in scheduler.step().finished:
                part = parts[number][done.ticket.number]
                found.append(Finished(part.index, part.offset + done.sample, done.rollout))
        return found

    with Lanes(len(schedulers)) as lanes:
        while any(scheduler.busy for scheduler in schedulers):
            for finished in lanes.map(advance, range(len(schedulers))):
                yield from finished
