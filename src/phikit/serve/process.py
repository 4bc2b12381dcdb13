"""The process that owns a model's scheduler.

It takes commands between two steps and says after each what is new. Its main thread does all of
it: in another thread the engine is slower (measured: a quarter to a third, by the C library's
memory arenas and by waiting for the interpreter).
"""

from __future__ import annotations

import dataclasses
import math
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from phikit.chat.load import load_tokenizer
from phikit.engine.guessers import speculation_of
from phikit.engine.load import guesser, load
from phikit.engine.runners import rows_to_pack, runner_of
from phikit.engine.samples import Events, Ticket, Token
from phikit.engine.scheduler import Scheduler
from phikit.engine.texts import BadConstraint, Texts
from phikit.errors import PhikitError
from phikit.memory import keep_freed_memory
from phikit.serve.wire import Line, Message, unpack_requests
from phikit.train import adapters

_STATS_EVERY = 0.2  # seconds between two accounts of a busy scheduler's figures
# Seconds between two reports of a stream, for each stream at work, and at most. A chunk costs the
# server, the client and the kernel between them about 0.15 ms of a core that the engine computes
# on: so at most a tenth of one goes there. Nobody sees a twentieth of a second.
_EACH_STREAM, _LONGEST = 0.0015, 0.05


#: of some tokens: their ids, log-probabilities under the sampling and under the raw distribution,
#: and of each the likeliest ones
Columns = tuple[
    Sequence[int], Sequence[float], Sequence[float], Sequence[Sequence[tuple[int, float]]]
]


@dataclasses.dataclass(eq=False, slots=True)
class _Open:
    """A sample in the scheduler: whose it is, and when the last thing happened to it.

    Attributes:
        told, held: when its tokens were last reported, and those drawn since.
    """

    job: int
    index: int
    every: bool
    ticket: Ticket
    last: float
    begun: bool = False
    told: float = -math.inf
    held: list[Token] = dataclasses.field(default_factory=list)

    def take(self) -> Columns:
        """The held tokens, which are held no more."""
        held, self.held = self.held, []
        return (
            [t.token for t in held], [t.logprob for t in held], [t.raw_logprob for t in held],
            [[(token, raw) for token, _, raw in t.top] for t in held],
        )  # fmt: skip


class EngineLoop:
    """Runs a scheduler by a line's commands.

    A command is `submit` (a job's number and its samples), `cancel` (samples of a job) or `stop`.
    A message says what was `accepted` or `refused`, the `tokens` of jobs that want every one, and
    what is `finished`; the seconds to `first` and `further` tokens; and the scheduler's `stats`.
    The first token is told at once; of many samples at work further ones a few at a time.
    """

    def __init__(self, line: Line, scheduler: Scheduler) -> None:
        self.line, self.scheduler = line, scheduler
        self._tickets: dict[int, _Open] = {}  # by the ticket's number
        self._jobs: dict[int, dict[int, _Open]] = {}
        self._said = 0.0

    def run(self) -> None:
        """Until the other end says stop, or is gone."""
        while True:
            idle = not self.scheduler.busy
            if idle:
                self.line.send({"stats": dataclasses.asdict(self.scheduler.stats())})
            for command in self.line.receive(None if idle else 0):
                if command["do"] == "stop":
                    return
                self._obey(command)
            if self.line.closed:
                return
            if self.scheduler.busy:
                try:
                    self._report(self.scheduler.step())
                except PhikitError as error:
                    self._fail(error)

    def _obey(self, command: Message) -> None:
        job = command["job"]
        if command["do"] == "cancel":
            self._cancel(job, command["which"])
            return
        mine: dict[int, _Open] = {}
        self._jobs[job] = mine
        try:
            for index, request in enumerate(unpack_requests(command)):
                ticket = self.scheduler.submit(request)
                mine[index] = _Open(job, index, command["every"], ticket, command["born"])
                self._tickets[ticket.number] = mine[index]
        except PhikitError as error:
            self._cancel(job, list(mine))
            self.line.send(
                {"refused": job, "message": error.message, "hint": error.hint,
                 "form": isinstance(error, BadConstraint)}
            )  # fmt: skip
        else:
            self.line.send({"accepted": job})

    def _cancel(self, job: int, which: Sequence[int]) -> None:
        mine = self._jobs.get(job, {})
        for index in which:
            entry = mine.pop(index, None)
            if entry is not None:
                self.scheduler.cancel(entry.ticket)
                del self._tickets[entry.ticket.number]
        if not mine:
            self._jobs.pop(job, None)

    def _fail(self, error: PhikitError) -> None:
        """All that is open ends with this error; the engine goes on with an empty cache."""
        jobs = list(self._jobs)
        for job in jobs:
            self._cancel(job, list(self._jobs[job]))
        self.scheduler.clear_cache()
        self.line.send({"failed": jobs, "message": error.message, "hint": error.hint})

    def _report(self, events: Events) -> None:
        now = time.monotonic()
        first: list[float] = []
        further: list[float] = []
        for token in events.tokens():
            entry = self._tickets[token.ticket.number]
            (further if entry.begun else first).append(round(now - entry.last, 6))
            entry.begun, entry.last = True, now
            if entry.every:
                entry.held.append(token)
        finished = []
        for done in events.finished:
            entry = self._tickets.pop(done.ticket.number)
            mine, r = self._jobs[entry.job], done.rollout
            del mine[entry.index]
            if not mine:
                del self._jobs[entry.job]
            columns: Columns = (r.completion_ids, r.logprobs, r.raw_logprobs, ())
            problem = r.meta.get("constraint", "")
            finished.append(
                (entry.job, entry.index, r.finish, done.reused, problem,
                 *(entry.take() if entry.every else columns))
            )  # fmt: skip
        streams = [entry for entry in self._tickets.values() if entry.held]
        pause = min(len(streams) * _EACH_STREAM, _LONGEST)
        tokens = []
        for entry in streams:
            if now - entry.told >= pause:
                tokens.append((entry.job, entry.index, *entry.take()))
                entry.told = now
        message: Message = {
            "tokens": tokens, "finished": finished, "first": first, "further": further,
        }  # fmt: skip
        if now - self._said > _STATS_EVERY:
            message["stats"] = dataclasses.asdict(self.scheduler.stats())
            self._said = now
        self.line.send(message)


def load_engine(told: Message) -> tuple[Scheduler, Message]:
    """The scheduler of a model directory or GGUF file, and what the server must know of it.

    Args:
        told: its `directory`, and the fields of `worker.Settings`.

    Raises:
        PhikitError: it cannot be loaded, or is none that the engine runs.
    """
    directory = Path(told["directory"])
    model, tokenizer = load(directory), load_tokenizer(directory)
    for name, folder in told["adapters"].items():
        adapters.load(model, Path(folder), name)
    config = model.config
    invariant, rows = told["invariant"], told["rows"]
    pack = rows_to_pack(model, rows, invariant=invariant, cache=told["cache"])
    speculation = speculation_of(guesser(told["speculate"], model), rows, invariant)
    scheduler = Scheduler(
        runner_of(model, pack, invariant, told["cache"]), max_rows=rows,
        cache_bytes=told["cache_bytes"], cache_share=told["share"],
        texts=Texts(tokenizer, config.vocab_size), speculation=speculation,
    )  # fmt: skip
    about = {
        "vocab_size": config.vocab_size, "context": config.max_positions,
        "eos_ids": list(config.eos_ids), "block_bytes": scheduler.runner.block_bytes,
        "stats": dataclasses.asdict(scheduler.stats()),
    }  # fmt: skip
    return scheduler, about


def main(number: int) -> None:
    """Serves the socket of this number until its other end is gone."""
    for which in (signal.SIGINT, signal.SIGTERM):  # the server says when it is over
        signal.signal(which, signal.SIG_IGN)
    keep_freed_memory()
    line = Line(socket.socket(fileno=number))
    told = line.receive(None)
    if not told:
        return
    try:
        scheduler, about = load_engine(told[0])
    except PhikitError as error:
        line.send({"refused": 0, "message": error.message, "hint": error.hint})
        return
    line.send({"ready": about})
    EngineLoop(line, scheduler).run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
