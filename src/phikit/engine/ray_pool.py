"""Engines on the nodes of a Ray cluster, as one generator.

Requests are cut into parts of a few samples. Each engine has as many parts as fill its batch and a
few more, so that a slow caller or a slow engine holds back what has not been handed out. An engine
that dies is replaced, and its unfinished parts are handed out again: a part's samples are delivered
when all of them are there, so nothing is lost and nothing comes twice, and since a draw depends on
its request alone they are the same samples.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from phikit.engine import ray_worker
from phikit.engine.base import Finished, Request
from phikit.engine.ray_cluster import Engines, cause, check_all
from phikit.errors import PhikitError
from phikit.models.architectures import read_config

_SAMPLES = 16  # of a part
_AHEAD = 1.5  # batches that an engine has been given


@dataclass(eq=False)
class _Part:
    """Some samples of request `index`, from its sample `offset` on."""

    index: int
    offset: int
    request: Request
    attempts: int = 0


@dataclass(eq=False)
class _Engine:
    """An actor, and the parts that it works on by their references.

    `ready`: a reference to its process number, which is there once the model is loaded; `up`:
    whether that has been seen. A cluster without room starts an engine when there is some.
    """

    actor: Any
    ready: Any
    up: bool = False
    parts: dict[Any, _Part] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        return sum(p.request.n for p in self.parts.values())


class RayPool(Engines[_Engine]):
    """A `Generator` over engines on a Ray cluster.

    Args:
        directory: a model directory that every node sees under this path.
        engines: how many; each takes `threads` of Ray's CPUs.
        max_batch: samples that each has in the making at once.
        address: of the cluster; the one this process is connected to, or else one on this machine,
            when left out.
        attempts: how often a part is handed out before its engines' deaths are taken for its fault.
        patience: seconds until the first engine must be ready.

    Raises:
        PhikitError: the extra is missing, there is no cluster or too little of it, or the model
            cannot be loaded.
    """

    def __init__(
        self,
        directory: Path,
        engines: int = 1,
        threads: int = 1,
        max_batch: int = 64,
        address: str | None = None,
        attempts: int = 3,
        patience: float = 300.0,
    ) -> None:
        if min(engines, threads, max_batch, attempts) < 1:
            raise PhikitError("engines, threads, max_batch and attempts must be at least 1")
        self.directory, self.max_batch, self.attempts = directory.resolve(), max_batch, attempts
        self.config = read_config(directory)
        super().__init__(address, patience)
        kept = ray_worker.options(threads, int(_AHEAD * max_batch) + 2)
        self._new: Any = self._ray.remote(ray_worker.EngineWorker).options(**kept)
        self._settings = (str(self.directory), max_batch, threads)
        self._texts = ray_worker.knows_texts(self.directory)
        self._jobs = 0
        self.engines = [self._start() for _ in range(engines)]
        try:
            self._wait_for_one()
        except BaseException:
            self.close()
            raise

    def _start(self) -> _Engine:
        actor = self._new.remote(*self._settings)
        return _Engine(actor, actor.pid.remote())

    def _wait_for_one(self) -> None:
        """Until an engine is ready.

        Raises:
            PhikitError: none became so in time, or the model cannot be loaded.
        """
        waiting = {e.ready: e for e in self.engines if not e.up}
        ready, _ = self._ray.wait(list(waiting), timeout=self.patience)
        if not ready:
            raise self._none_ready("was ready", "threads")
        self._greet(waiting[ready[0]])

    def _greet(self, engine: _Engine) -> None:
        """Takes note that an engine is ready.

        Raises:
            PhikitError: it died on the way, or could not load the model.
        """
        try:
            self._ray.get(engine.ready)
        except self._ray.exceptions.RayError as e:
            raise PhikitError(f"an engine of {self.directory} did not start: {cause(e)}") from e
        engine.up = True

    # --- generating ------------------------------------------------------------------------------

    def generate(self, requests: Sequence[Request]) -> Iterator[Finished]:
        """Yields every sample of every request exactly once, in order of finishing.

        Raises:
            PhikitError: a request is wrong for the model, or a part's engines died again and again.
        """
        requests = list(requests)
        check_all(requests, self.config, self._texts)
        return self._run(requests)

    def _run(self, requests: list[Request]) -> Iterator[Finished]:
        self._check_open()
        self._jobs += 1
        todo: deque[_Part] = deque(_parts(requests))
        try:
            while todo or any(e.parts for e in self.engines):
                self._hand_out(todo)
                yield from self._collect(todo)
        finally:  # also when the caller stops early
            for engine in self.engines:
                if engine.parts:
                    engine.actor.drop.remote(self._jobs)
                    engine.parts.clear()

    def _hand_out(self, todo: deque[_Part]) -> None:
        """Fills the engines up, the emptiest one first."""
        limit = _AHEAD * self.max_batch
        up = [engine for engine in self.engines if engine.up]
        while todo and up:
            engine = min(up, key=lambda e: e.samples)
            if engine.parts and engine.samples + todo[0].request.n > limit:
                return
            part = todo.popleft()
            part.attempts += 1
            reference = engine.actor.run.remote(self._jobs, ray_worker.packed([part.request]))
            engine.parts[reference] = part

    def _collect(self, todo: deque[_Part]) -> Iterator[Finished]:
        """Waits for something to happen, and yields what is finished."""
        owner = {reference: engine for engine in self.engines for reference in engine.parts}
        if not owner:
            self._wait_for_one()
            return
        waiting = {engine.ready: engine for engine in self.engines if not engine.up}
        [reference], _ = self._ray.wait([*owner, *waiting], num_returns=1)
        if reference in waiting:
            self._greet(waiting[reference])
            return
        engine = owner[reference]
        part = engine.parts[reference]
        try:
            data = self._ray.get(reference)
        except self._ray.exceptions.RayActorError:
            self._replace(engine, todo)
            return
        except self._ray.exceptions.RayError as e:
            raise PhikitError(f"request {part.index}: {cause(e)}") from e
        del engine.parts[reference]
        [rollouts] = ray_worker.unpacked_rollouts(data, [part.request])
        for number, rollout in enumerate(rollouts):
            yield Finished(part.index, part.offset + number, rollout)

    def _replace(self, dead: _Engine, todo: deque[_Part]) -> None:
        """Puts a new engine in a dead one's place, and its parts first in the queue.

        Raises:
            PhikitError: a part has had its attempts.
        """
        self.replaced += 1
        parts = list(dead.parts.values())
        dead.parts.clear()
        for part in parts:
            if part.attempts >= self.attempts:
                raise PhikitError(
                    f"request {part.index}: the engine died {part.attempts} times while it was at "
                    "work on this",
                    "see Ray's logs; is there enough memory on the nodes?",
                )
        todo.extendleft(reversed(parts))
        self._ray.kill(dead.actor)
        self.engines[self.engines.index(dead)] = self._start()


def _parts(requests: Sequence[Request]) -> Iterator[_Part]:
    for index, request in enumerate(requests):
        for offset in range(0, request.n, _SAMPLES):
            n = min(_SAMPLES, request.n - offset)
            part = replace(request, n=n, first_sample=request.first_sample + offset)
            yield _Part(index, offset, part)
