"""The thread that owns a model's scheduler, and the asyncio side's way to it.

Only this thread touches the scheduler. HTTP handlers start a `Job` (one or more samples), read its
updates from an asyncio queue, and close it; a job that is closed before its end is cancelled, and
its blocks of the cache are free before the next step.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from phikit.engine.base import Request
from phikit.engine.samples import Events, Stats, Ticket
from phikit.engine.scheduler import Scheduler
from phikit.errors import PhikitError

_STATS_EVERY = 0.2  # seconds between two snapshots of a busy scheduler's figures


class Update(NamedTuple):
    """News of one sample: new tokens, and at its end why it ended, or the error that ended it."""

    sample: int
    tokens: Sequence[int] = ()
    logprobs: Sequence[float] = ()
    raw_logprobs: Sequence[float] = ()
    finish: str | None = None
    error: PhikitError | None = None


def _hand_over(news: Sequence[tuple[Job, list[Update]]]) -> None:
    for job, updates in news:
        job.take(updates)


class Busy(PhikitError):
    """The queue is full; the request may be sent again later."""


class Observer(NamedTuple):
    """What is told, from the engine's thread, of every first and every further token: seconds."""

    first: Callable[[float], object]
    further: Callable[[float], object]


@dataclass(eq=False, slots=True)
class _Open:
    """A sample in the scheduler: when the last thing happened to it."""

    job: Job
    index: int
    ticket: Ticket
    last: float
    begun: bool = False


class Job:
    """The samples of one HTTP request, each a request of its own to the scheduler.

    Attributes:
        every: whether tokens are reported as they come, or all at the end of each sample.
    """

    def __init__(self, worker: Worker, requests: Sequence[Request], every: bool) -> None:
        self.worker, self.requests, self.every = worker, list(requests), every
        self.loop = asyncio.get_running_loop()
        self.accepted: asyncio.Future[None] = self.loop.create_future()
        self.updates: asyncio.Queue[Update] = asyncio.Queue()
        self.left = set(range(len(self.requests)))
        self.born = time.perf_counter()

    async def next(self) -> Update:
        """The next news.

        Raises:
            PhikitError: the engine failed.
        """
        update = await self.updates.get()
        if update.error is not None:
            raise update.error
        if update.finish is not None:
            self._gone({update.sample})
        return update

    def drop(self, index: int) -> None:
        """Cancels one sample, if it is not finished."""
        if index in self.left:
            self._gone({index})
            self.worker.commands.put(("cancel", self, (index,)))

    def close(self) -> None:
        """Cancels what is not finished."""
        if self.left:
            rest = tuple(self.left)
            self._gone(set(rest))
            self.worker.commands.put(("cancel", self, rest))

    def _gone(self, which: set[int]) -> None:
        self.worker.open -= len(which & self.left)
        self.left -= which

    def take(self, updates: list[Update]) -> None:
        for update in updates:
            self.updates.put_nowait(update)

    def accept(self, error: PhikitError | None) -> None:
        if self.accepted.done():
            return
        if error is None:
            self.accepted.set_result(None)
        else:
            self.accepted.set_exception(error)


class Worker:
    """Runs one model's scheduler in a thread.

    Args:
        name: of the model.
        scheduler: handed over: nobody else may touch it while the thread runs.
        most: samples that may be open at once, waiting ones included.

    Attributes:
        open: samples that the HTTP side has open.
        stats: the scheduler's figures of a moment ago.
        failure: what ended the thread, if anything did.
    """

    def __init__(self, name: str, scheduler: Scheduler, most: int = 1024) -> None:
        self.name, self.scheduler, self.most = name, scheduler, most
        self.open = 0
        self.stats: Stats = scheduler.stats()
        self.failure: BaseException | None = None
        self.observer: Observer | None = None
        self.commands: queue.SimpleQueue[tuple[str, Job | None, tuple[int, ...]]]
        self.commands = queue.SimpleQueue()
        self._tickets: dict[int, _Open] = {}  # by the ticket's number
        self._of: dict[Job, dict[int, _Open]] = {}
        self._news: dict[Job, list[Update]] = {}
        self._snapshot = 0.0
        self._thread = threading.Thread(target=self._run, name=f"engine {name}", daemon=True)

    # --- the asyncio side ------------------------------------------------------------------------

    def begin(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and self.failure is None

    def stop(self) -> None:
        """Ends the thread after its step; what is unfinished is cancelled."""
        self.commands.put(("stop", None, ()))
        self._thread.join(timeout=60)

    async def start(self, requests: Sequence[Request], every: bool) -> Job:
        """Hands samples to the engine; returns when they are in its queue.

        Raises:
            Busy: too many samples are open.
            PhikitError: a request is wrong for the model, or does not fit into the cache.
        """
        if not self.alive:
            raise PhikitError(f"the engine of {self.name} is not running", "restart the server")
        if self.open + len(requests) > self.most:
            raise Busy(
                f"{self.open} samples are running or waiting; {len(requests)} more would exceed "
                f"the limit of {self.most}",
                "try again later",
            )
        job = Job(self, requests, every)
        self.open += len(requests)
        self.commands.put(("submit", job, ()))
        try:
            await job.accepted
        except BaseException:  # also when the handler is cancelled while it waits
            job.close()
            raise
        return job

    # --- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._commands():
                try:
                    events = self.scheduler.step() if self.scheduler.busy else Events()
                except PhikitError as error:
                    self._fail(error)
                    continue
                self._report(events)
        except BaseException as error:
            self.failure = error
            self._fail(PhikitError(f"the engine of {self.name} stopped: {error!r}"))
            raise
        finally:
            self.stats = self.scheduler.stats()

    def _commands(self) -> bool:
        """Obeys; waits for a command when there is nothing to do. False: the end."""
        while True:
            try:
                idle = not self.scheduler.busy
                if idle:
                    self.stats = self.scheduler.stats()
                what, job, which = self.commands.get(block=idle)
            except queue.Empty:
                return True
            if what == "stop" or job is None:
                self._cancel_all()
                return False
            if what == "submit":
                self._submit(job)
            else:
                self._cancel(job, which)

    def _submit(self, job: Job) -> None:
        mine: dict[int, _Open] = {}
        self._of[job] = mine
        error = None
        for index, request in enumerate(job.requests):
            try:
                ticket = self.scheduler.submit(request)
            except PhikitError as refused:
                self._cancel(job, tuple(mine))
                error = refused
                break
            mine[index] = _Open(job, index, ticket, job.born)
            self._tickets[ticket.number] = mine[index]
        self._call(job.loop, lambda: job.accept(error))

    def _cancel(self, job: Job, which: Sequence[int]) -> None:
        mine = self._of.get(job, {})
        for index in which:
            entry = mine.pop(index, None)
            if entry is not None:
                self.scheduler.cancel(entry.ticket)
                del self._tickets[entry.ticket.number]
        if not mine:
            self._of.pop(job, None)

    def _cancel_all(self) -> None:
        for job, mine in list(self._of.items()):
            self._cancel(job, tuple(mine))

    def _fail(self, error: PhikitError) -> None:
        """All that is open ends with this error; the engine goes on with an empty cache."""
        jobs = list(self._of)
        self._cancel_all()
        self.scheduler.clear_cache()
        for job in jobs:
            self._tell(job, Update(0, error=error))
        self._send()

    def _report(self, events: Events) -> None:
        now, seen = time.perf_counter(), self.observer
        for token in events.tokens():
            entry = self._tickets[token.ticket.number]
            if seen is not None:
                (seen.further if entry.begun else seen.first)(now - entry.last)
            entry.begun, entry.last = True, now
            if entry.job.every:
                column = ((token.token,), (token.logprob,), (token.raw_logprob,))
                self._tell(entry.job, Update(entry.index, *column))
        for done in events.finished:
            entry = self._tickets.pop(done.ticket.number)
            mine, rollout = self._of[entry.job], done.rollout
            del mine[entry.index]
            if not mine:
                del self._of[entry.job]
            columns = (rollout.completion_ids, rollout.logprobs, rollout.raw_logprobs)
            told = ((), (), ()) if entry.job.every else columns
            self._tell(entry.job, Update(entry.index, *told, finish=rollout.finish))
        self._send()
        if now - self._snapshot > _STATS_EVERY:
            self.stats, self._snapshot = self.scheduler.stats(), now

    def _tell(self, job: Job, update: Update) -> None:
        self._news.setdefault(job, []).append(update)

    def _send(self) -> None:
        """One wake-up of each event loop for all news of a step."""
        news, self._news = self._news, {}
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Job, list[Update]]]] = {}
        for job, updates in news.items():
            by_loop.setdefault(job.loop, []).append((job, updates))
        for loop, jobs in by_loop.items():
            self._call(loop, partial(_hand_over, jobs))

    @staticmethod
    def _call(loop: asyncio.AbstractEventLoop, what: Callable[[], object]) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(what)
