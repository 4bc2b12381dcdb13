"""Engines on a Ray cluster whose weights are renewed while it stands: the rollouts of training.

`load` puts weights into Ray's object store once, under a new version number, and every engine takes
them from there. A request names the version that it wants, and an answer the one that it came from;
an answer of another version is refused, its engine is given the weights anew, and the requests are
handed out again. An engine that dies is replaced by one with the current weights, and its requests
are handed out again: what it was at work on had not been delivered, so nothing is lost and nothing
comes twice.

Training must go on to the bit, whatever an engine's speed and whichever of them dies. So requests
are cut into parts beforehand, by numbers alone, and a part is one batch of its own: which engine
has it, and when, changes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from phikit.engine import policy_worker
from phikit.engine.base import Finished, Request
from phikit.engine.ray_cluster import Engines, cause, check_all
from phikit.engine.ray_worker import packed, unpacked_rollouts
from phikit.errors import PhikitError
from phikit.models.decoder import Decoder
from phikit.models.decoder_config import DecoderConfig

_BATCHES = 4  # that a part has at most: rows that finish early are filled again within a part


@dataclass(eq=False)
class _Part:
    """Samples of some requests; `places`: the index of each request, and its first sample there."""

    places: list[tuple[int, int]] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    attempts: int = 0


@dataclass(eq=False)
class _Engine:
    """An actor, and what it is at work on.

    Attributes:
        ready: a reference that is there once it has the current weights; None before there are any.
        up: whether that has been seen.
        part, answer: what it draws now, and the reference to that.
        deaths: of its predecessors, since one of them last had weights.
    """

    actor: Any
    ready: Any = None
    up: bool = False
    part: _Part | None = None
    answer: Any = None
    deaths: int = 0


class PolicyPool(Engines[_Engine]):
    """A `Generator` over engines on a Ray cluster, for a model whose weights change.

    With `invariant`, results are a function of the weights and the request alone, bit by bit, and
    equal those of `LocalEngine(model, invariant=True)`. Without, they are one of the weights, the
    list of requests, `engines`, `max_batch` and `threads`, on processors of one kind.

    Args:
        config: of the model; its weights come with `load`.
        engines: how many; each takes `threads` of Ray's CPUs and holds a copy of the weights.
        max_batch: samples that each has in the making at once.
        dtype: the precision to hold weights and to compute in.
        invariant: see `engine.invariant`; costs speed.
        address: of the cluster; the one this process is connected to, or else one on this machine,
            when left out.
        attempts: how often a part is handed out, or an engine started, before it is given up.
        patience: seconds until the first engine must have weights.

    Attributes:
        version: of the current weights, from 1 on; 0 before there are any.
        refused: answers from other weights, so far.

    Raises:
        PhikitError: the extra is missing, or there is no cluster.
    """

    def __init__(
        self,
        config: DecoderConfig,
        engines: int = 1,
        threads: int = 1,
        max_batch: int = 256,
        dtype: torch.dtype = torch.float32,
        invariant: bool = False,
        address: str | None = None,
        attempts: int = 3,
        patience: float = 300.0,
    ) -> None:
        if min(engines, threads, max_batch, attempts) < 1:
            raise PhikitError("engines, threads, max_batch and attempts must be at least 1")
        super().__init__(address, patience)
        self.config, self.max_batch, self.dtype, self.attempts = config, max_batch, dtype, attempts
        new = self._ray.remote(policy_worker.PolicyWorker)
        self._new: Any = new.options(**policy_worker.options(threads))
        named = str(dtype).removeprefix("torch.")
        self._settings = (config, named, max_batch, threads, invariant)
        self._weights: Any = None
        self._drawing = False
        self.version = self.refused = 0
        self.engines = [self._start() for _ in range(engines)]

    def _start(self, deaths: int = 0) -> _Engine:
        engine = _Engine(self._new.remote(*self._settings), deaths=deaths)
        if self._weights is not None:
            self._send(engine)
        return engine

    def _send(self, engine: _Engine) -> None:
        engine.ready, engine.up = engine.actor.load.remote(self.version, self._weights), False

    def load(self, model: Decoder) -> int:
        """Gives all engines the weights of a model of the pool's configuration; returns their
        version. What is drawn from now on comes from them.

        Raises:
            PhikitError: the model is another one or carries adapters, rollouts are being drawn, the
                pool is closed, or Ray's object store has no room.
        """
        self._check_open()
        if self._drawing:
            raise PhikitError(
                "the weights of a pool cannot change while rollouts are drawn",
                "take all rollouts of `generate` first, or close its iterator",
            )
        if model.config != self.config:
            raise PhikitError("the weights are of a model of another shape than the pool's engines")
        self._weights = None  # the store need not hold two versions
        try:
            self._weights = self._ray.put(policy_worker.weights_of(model, self.dtype))
        except self._ray.exceptions.RayError as e:
            raise PhikitError(
                f"the weights do not go into Ray's object store: {cause(e)}",
                "give it more memory: ray start --object-store-memory BYTES",
            ) from e
        self.version += 1
        for engine in self.engines:
            self._send(engine)
        return self.version

    def close(self) -> None:
        """Ends the engines and lets go of the weights; the cluster stays."""
        super().close()
        self._weights = None

    # --- generating ------------------------------------------------------------------------------

    def generate(self, requests: Sequence[Request]) -> Iterator[Finished]:
        """Yields every sample of every request exactly once, part by part as they finish.

        Raises:
            PhikitError: a request is wrong for the model, there are no weights yet, or engines died
                again and again.
        """
        requests = list(requests)
        check_all(requests, self.config)
        self._check_open()
        if self._weights is None:
            raise PhikitError("the engines of this pool have no weights", "call `load` first")
        if self._drawing:
            raise PhikitError("this pool is at work already", "give it all requests at once")
        return self._run(requests)

    def _run(self, requests: list[Request]) -> Iterator[Finished]:
        todo = deque(parts(requests, len(self.engines), self.max_batch))
        self._drawing = True
        try:
            while todo or any(e.part for e in self.engines):
                self._hand_out(todo)
                yield from self._collect(todo)
        finally:
            self._drawing = False
            # when the caller stops early: a call cannot be stopped within its actor
            for number, engine in enumerate(self.engines):
                if engine.part is not None:
                    self._ray.kill(engine.actor)
                    self.engines[number] = self._start()

    def _hand_out(self, todo: deque[_Part]) -> None:
        for engine in self.engines:
            if todo and engine.up and engine.part is None:
                engine.part = todo.popleft()
                engine.part.attempts += 1
                asked = packed(engine.part.requests)
                engine.answer = engine.actor.run.remote(self.version, asked)

    def _collect(self, todo: deque[_Part]) -> Iterator[Finished]:
        """Waits for something to happen, and yields what is finished."""
        working = {e.answer: e for e in self.engines if e.part is not None}
        waiting = {e.ready: e for e in self.engines if not e.up}
        # an engine that waits for room in the cluster does so as long as another one works
        patience = None if working else self.patience
        found, _ = self._ray.wait([*working, *waiting], num_returns=1, timeout=patience)
        if not found:
            raise self._none_ready("had its weights", "workers or threads")
        if found[0] in waiting:
            self._greet(waiting[found[0]])
        else:
            yield from self._take(working[found[0]], todo)

    def _greet(self, engine: _Engine) -> None:
        """Takes note that an engine has the current weights, or replaces it if it died."""
        try:
            self._ray.get(engine.ready)
        except self._ray.exceptions.RayActorError as e:
            if engine.deaths + 1 >= self.attempts:
                raise PhikitError(
                    f"an engine died {engine.deaths + 1} times before it had its weights: "
                    f"{cause(e)}",
                    "see Ray's logs; is there enough memory on the nodes?",
                ) from e
            self._replace(engine)
        except self._ray.exceptions.RayError as e:
            raise PhikitError(f"an engine did not take its weights: {cause(e)}") from e
        else:
            engine.up, engine.deaths = True, 0

    def _take(self, engine: _Engine, todo: deque[_Part]) -> Iterator[Finished]:
        """Yields an engine's answer, or hands its part out again if it died or the answer is of
        other weights."""
        part = engine.part
        assert part is not None
        try:
            version, data = self._ray.get(engine.answer)
        except self._ray.exceptions.RayActorError:
            engine.part = None
            self._again(part, todo)
            self._replace(engine)
            return
        except self._ray.exceptions.RayError as e:
            raise PhikitError(f"request {part.places[0][0]}: {cause(e)}") from e
        engine.part = None
        if version != self.version:
            self.refused += 1
            self._again(part, todo)
            self._send(engine)
            return
        groups = unpacked_rollouts(data, part.requests)
        for (index, offset), rollouts in zip(part.places, groups, strict=True):
            for number, rollout in enumerate(rollouts):
                yield Finished(index, offset + number, rollout)

    def _again(self, part: _Part, todo: deque[_Part]) -> None:
        if part.attempts >= self.attempts:
            raise PhikitError(
                f"request {part.places[0][0]}: {part.attempts} engines died while they were at "
                "work on this, or had other weights",
                "see Ray's logs; is there enough memory on the nodes?",
            )
        todo.appendleft(part)

    def _replace(self, dead: _Engine) -> None:
        self.replaced += 1
        self._ray.kill(dead.actor)
        self.engines[self.engines.index(dead)] = self._start(dead.deaths + (not dead.up))


def parts(requests: Sequence[Request], engines: int, max_batch: int) -> list[_Part]:
    """Requests in parts of as many samples, cut within a request where need be: one part for each
    engine, or more where those would be long, so that a death costs little."""
    total = sum(r.n for r in requests)
    size = max(1, min(-(-total // engines), _BATCHES * max_batch))
    found: list[_Part] = []
    room = 0
    for index, request in enumerate(requests):
        offset = 0
        while offset < request.n:
            if not room:
                found.append(_Part())
                room = size
            n = min(room, request.n - offset)
            first = request.first_sample + offset
            found[-1].places.append((index, offset))
            found[-1].requests.append(replace(request, n=n, first_sample=first))
            offset, room = offset + n, room - n
    return found
