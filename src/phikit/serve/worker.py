"""The server's side of an engine's process.

HTTP handlers start a `Job` (one or more samples), read its updates from an asyncio queue, and close
it; a job that is closed before its end is cancelled, and its blocks of the cache are free before
the engine's next step.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from phikit.engine.base import Request
from phikit.errors import PhikitError
from phikit.serve.wire import Frames, Line, Message, pack, pack_requests

_PIECE = 2**18
_PATIENCE = 60.0  # seconds for the process to end


@dataclass(frozen=True)
class Settings:
    """Of an engine.

    Attributes:
        rows: samples generated at once.
        cache_bytes: of its KV cache; `share`, when None, of the memory that is free.
        invariant: results of the same bits whatever else is in the batch.
        adapters: LoRA adapters that requests may name, and their directories.
    """

    rows: int = 64
    cache_bytes: int | None = None
    share: float = 1.0
    invariant: bool = False
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
        stats: the scheduler's figures of a moment ago.
    """

    def __init__(self, name: str, directory: Path, settings: Settings, most: int = 1024) -> None:
        self.name, self.most, self.open = name, most, 0
        self.observer: Observer | None = None
        self._numbers = itertools.count(1)
        self._jobs: dict[int, Job] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._sock, theirs = socket.socketpair()
        command = [sys.executable, "-m", "phikit.serve.process", str(theirs.fileno())]
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        theirs.close()
        self._line = Line(self._sock)
        told = dataclasses.asdict(settings)
        told["adapters"] = {name: str(folder) for name, folder in settings.adapters.items()}
        self._line.send({"directory": str(directory), **told})
        self.about: Message = {}
        self.stats: dict[str, int] = {}

    # --- its life --------------------------------------------------------------------------------

    def wait(self) -> None:
        """Until the model is loaded.

        Raises:
            PhikitError: it cannot be loaded.
        """
        answer = (self._line.receive(None) or [{}])[0]
        if "ready" not in answer:
            self._process.wait(_PATIENCE)
            told = answer.get("message", f"the engine's process ended ({self._process.returncode})")
            raise PhikitError(f"{self.name}: {told}", answer.get("hint", ""))
        self.about = answer["ready"]
        self.stats = self.about["stats"]

    async def begin(self) -> None:
        """Listens to the engine; what it has said since it was ready is not lost."""
        self._sock.setblocking(False)
        reader, self._writer = await asyncio.open_connection(sock=self._sock)
        self._reading = asyncio.create_task(self._listen(reader))

    @property
    def alive(self) -> bool:
        return self._reading is not None and not self._reading.done()

    async def stop(self) -> None:
        """Ends the process after its step; what is unfinished is cancelled."""
        self.say({"do": "stop"})
        try:
            await asyncio.to_thread(self._process.wait, _PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
        if self._reading is not None:
            self._reading.cancel()
        if self._writer is not None:
            self._writer.close()

    def abandon(self) -> None:
        """Ends the process, if it still runs: it ends when nobody holds the line."""
        self._sock.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()

    # --- jobs ------------------------------------------------------------------------------------

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
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(pack(command))

    def forget(self, job: Job) -> None:
        self._jobs.pop(job.number, None)

    # --- what the engine says --------------------------------------------------------------------

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        frames = Frames()
        try:
            while data := await reader.read(_PIECE):
                for message in frames.take(data):
                    self._hear(message)
        except OSError:
            pass  # the engine's process is gone: told to all who wait, as when it closes
        finally:
            gone = PhikitError(f"the engine of {self.name} stopped", "restart the server")
            self._fail(list(self._jobs), gone)

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
        for number, index, token, logprob, raw, top in message["tokens"]:
            self._put(number, Update(index, (token,), (logprob,), (raw,), (top,)))
        for number, index, finish, reused, problem, *columns in message["finished"]:
            end: dict[str, Any] = {"finish": finish, "reused": reused, "problem": problem}
            self._put(number, Update(index, *columns, **end))

    def _put(self, number: int, update: Update) -> None:
        if (job := self._jobs.get(number)) is not None:
            job.updates.put_nowait(update)
