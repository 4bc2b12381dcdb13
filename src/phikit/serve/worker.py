"""The server's side of an engine.

HTTP handlers start a `Job` (one or more samples), read its updates from an asyncio queue, and close
it; a job that is closed before its end is cancelled, and its blocks of the cache are free before
the engine's next step. When the engine's process dies, the jobs in flight fail and another process
is started.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from phikit.engine.base import Request
from phikit.errors import PhikitError
from phikit.serve.child import Child
from phikit.serve.wire import Message, pack_requests

# seconds before a dead engine is started again: the first time, at most (they double), and how long
# it must have run to count as well again
_PAUSE, _LONGEST, _WELL = 0.5, 30.0, 60.0
_OF_ROWS = ("used", "cached", "waiting", "entering", "running")  # figures that die with an engine
_log = logging.getLogger("phikit")


@dataclass(frozen=True)
class Settings:
    """Of an engine.

    Attributes:
        rows: samples generated at once.
        cache_bytes: of its KV cache; `share`, when None, of the memory that is free.
        invariant: results of the same bits whatever else is in the batch.
        speculate: "lookup", or the directory or GGUF file of a small model that guesses tokens.
        cache: "int8" holds keys and values in 8 bits.
        adapters: LoRA adapters that requests may name, and their directories.
    """

    rows: int = 64
    cache_bytes: int | None = None
    share: float = 1.0
    invariant: bool = False
    speculate: str = ""
    cache: str = ""
    adapters: Mapping[str, Path] = field(default_factory=dict)


class Update(NamedTuple):
    """News of one sample: new tokens, and at its end why it ended, or the error that ended it.

    Attributes:
        tops: of every token the likeliest ones and their log-probabilities, when they were asked.
        reused: at the end: prompt tokens that were found in the cache.
        problem: at the end: why its constraint could not be followed to the end.
    """

    sample: int
    tokens: Sequence[int] = ()
    logprobs: Sequence[float] = ()
    raw_logprobs: Sequence[float] = ()
    tops: Sequence[Sequence[tuple[int, float]]] = ()
    finish: str | None = None
    reused: int = 0
    problem: str = ""
    error: PhikitError | None = None


class Busy(PhikitError):
    """The queue is full; the request may be sent again later."""


class Down(PhikitError):
    """The engine has died and is being started again; the request may be sent again later."""

    code = "engine_failed"


class Closing(Down):
    """The server is being shut down, and the time for what was running is over."""

    code = "shutting_down"


class BadForm(PhikitError):
    """The form that was asked for cannot be kept to."""


class Observer(NamedTuple):
    """What is told of every first and every further token: seconds."""

    first: Callable[[float], object]
    further: Callable[[float], object]


class Job:
    """The samples of one HTTP request, each a request of its own to the scheduler.

    Attributes:
        every: whether tokens are reported as they come, or all at the end of each sample.
    """

    def __init__(self, worker: Worker, number: int, requests: Sequence[Request]) -> None:
        self.worker, self.number = worker, number
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.updates: asyncio.Queue[Update] = asyncio.Queue()
        self.left = set(range(len(requests)))

    async def next(self) -> list[Update]:
        """The next news, all that there are.

        Raises:
            PhikitError: the engine failed.
        """
        found = [await self.updates.get()]
        while not self.updates.empty():
            found.append(self.updates.get_nowait())
        for update in found:
            if update.error is not None:
                raise update.error
            if update.finish is not None:
                self._gone({update.sample})
        return found

    def drop(self, index: int) -> None:
        """Cancels one sample, if it is not finished."""
        if index in self.left:
            self._cancel({index})

    def close(self) -> None:
        """Cancels what is not finished."""
        if self.left:
            self._cancel(set(self.left))
        self.worker.forget(self)

    def _cancel(self, which: set[int]) -> None:
        self._gone(which)
        self.worker.say({"do": "cancel", "job": self.number, "which": sorted(which)})

    def _gone(self, which: set[int]) -> None:
        self.worker.open -= len(which & self.left)
        self.left -= which

    def accept(self, error: PhikitError | None) -> None:
        if self.accepted.done():
            return
        if error is None:
            self.accepted.set_result(None)
        else:
            self.accepted.set_exception(error)


class Worker:
    """One model's engine, in a process of its own; `wait` before anything else is asked of it.

    Args:
        name: of the model.
        most: samples that may be open at once, waiting ones included.

    Attributes:
        about: what the engine said of the model: `vocab_size`, `context`, `eos_ids`,
            `block_bytes`.
        open: samples that the HTTP side has open.
        restarts: how often the engine died and was started again.
        stats: the scheduler's figures of a moment ago.
    """

    def __init__(self, name: str, directory: Path, settings: Settings, most: int = 1024) -> None:
        self.name, self.most, self.open, self.restarts = name, most, 0, 0
        self.observer: Observer | None = None
        self._numbers = itertools.count(1)
        self._jobs: dict[int, Job] = {}
        self._life: asyncio.Task[None] | None = None
        self._ending = False
        self._told = dataclasses.asdict(settings) | {
            "directory": str(directory),
            "adapters": {name: str(folder) for name, folder in settings.adapters.items()},
        }
        self._child = Child(self._told)
        self.about: Message = {}
        self.stats: dict[str, int] = {}

    # --- its life --------------------------------------------------------------------------------

    def wait(self) -> None:
        """Until the model is loaded.

        Raises:
            PhikitError: it cannot be loaded.
        """
        try:
            self._know(self._child.ready())
        except PhikitError as error:
            raise PhikitError(f"{self.name}: {error.message}", error.hint) from None

    def _know(self, about: Message) -> None:
        self.about, self.stats = about, about["stats"]

    async def begin(self) -> None:
        """Listens to the engine; what it has said since it was ready is not lost."""
        await self._child.connect()
        self._life = asyncio.create_task(self._live())

    @property
    def alive(self) -> bool:
        return self._child.connected

    async def _live(self) -> None:
        """Listens to one process after another, until the server ends."""
        pause = _PAUSE
        while True:
            since = time.monotonic()
            await self._child.listen(self._hear)
            self._fail(list(self._jobs), self._down())
            if self._ending:
                return
            pause = _PAUSE if time.monotonic() - since > _WELL else pause
            _log.warning("the engine of %s died; it is started again in %g s", self.name, pause)
            self.stats = {k: 0 if k in _OF_ROWS else v for k, v in self.stats.items()}
            pause = await self._start_again(pause)
            self.restarts += 1

    def _down(self) -> Down:
        return Down(f"the engine of {self.name} died", "it is being started again; try again later")

    async def _start_again(self, pause: float) -> float:
        """A process in the dead one's place; how long to wait should it die as well."""
        while True:
            await asyncio.to_thread(self._child.abandon)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST)
            self._child = Child(self._told)
            try:
                self._know(await asyncio.to_thread(self._child.ready))
            except PhikitError as error:
                _log.warning("%s: %s; tried again in %g s", self.name, error.message, pause)
            else:
                await self._child.connect()
                return pause

    async def stop(self) -> None:
        """Ends the process after its step; what is unfinished is cancelled."""
        self._ending = True
        if self._life is not None and not self.alive:
            self._life.cancel()  # so that none is started any more
        await self._child.stop()

    def give_up(self) -> None:
        """Ends all jobs with an error: the server is being shut down."""
        error = Closing("the server is being shut down", "ask again when it is there again")
        self._fail(list(self._jobs), error)

    def abandon(self) -> None:
        """Ends the process, if it still runs."""
        self._child.abandon()

    # --- jobs ------------------------------------------------------------------------------------

    async def start(self, requests: Sequence[Request], every: bool) -> Job:
        """Hands samples to the engine; returns when they are in its queue.

        Raises:
            Busy: too many samples are open.
            Down: the engine has died, and is not there again yet.
            PhikitError: a request is wrong for the model, or does not fit into the cache.
        """
        if not self.alive:
            raise self._down()
        if self.open + len(requests) > self.most:
            raise Busy(
                f"{self.open} samples are running or waiting; {len(requests)} more would exceed "
                f"the limit of {self.most}",
                "try again later",
            )
        job = Job(self, next(self._numbers), requests)
        self._jobs[job.number] = job
        self.open += len(requests)
        self.say(
            {"do": "submit", "job": job.number, "every": every, "born": time.monotonic()}
            | pack_requests(requests)
        )
        try:
            await job.accepted
        except BaseException:  # also when the handler is cancelled while it waits
            job.close()
            raise
        return job

    def say(self, command: Message) -> None:
        self._child.say(command)

    def forget(self, job: Job) -> None:
        self._jobs.pop(job.number, None)

    # --- what the engine says --------------------------------------------------------------------

    def _hear(self, message: Message) -> None:
        if "stats" in message:
            self.stats = message["stats"]
        if "accepted" in message:
            self._accept(message["accepted"], None)
        elif "refused" in message:
            kind = BadForm if message["form"] else PhikitError
            error = kind(message["message"], message["hint"])
            self._accept(message["refused"], error)
        elif "failed" in message:
            self._fail(message["failed"], PhikitError(message["message"], message["hint"]))
        elif "tokens" in message:
            self._news(message)

    def _accept(self, number: int, error: PhikitError | None) -> None:
        if (job := self._jobs.get(number)) is not None:
            job.accept(error)

    def _fail(self, numbers: Sequence[int], error: PhikitError) -> None:
        for number in numbers:
            if (job := self._jobs.get(number)) is not None:
                job.accept(error)
                job.updates.put_nowait(Update(0, error=error))

    def _news(self, message: Message) -> None:
        if self.observer is not None:
            for seconds in message["first"]:
                self.observer.first(seconds)
            for seconds in message["further"]:
                self.observer.further(seconds)
        for number, index, *columns in message["tokens"]:
            self._put(number, Update(index, *columns))
        for number, index, finish, reused, problem, *columns in message["finished"]:
            end: dict[str, Any] = {"finish": finish, "reused": reused, "problem": problem}
            self._put(number, Update(index, *columns, **end))

    def _put(self, number: int, update: Update) -> None:
        if (job := self._jobs.get(number)) is not None:
            job.updates.put_nowait(update)
