"""One engine of a pool, inside a Ray actor: work comes in from many calls and runs in one batch."""

from __future__ import annotations

import json
import os
import queue
import threading
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from phikit.chat.load import load_tokenizer
from phikit.engine.base import Constraint, Request, Sampling
from phikit.engine.load import load
from phikit.engine.runners import runner_of
from phikit.engine.samples import Done, Ticket
from phikit.engine.scheduler import Scheduler
from phikit.engine.texts import Texts
from phikit.records import Rollout


def knows_texts(directory: str | Path) -> bool:
    """Whether the engines of a directory can follow stop texts and constraints."""
    return (Path(directory) / "tokenizer.json").is_file()


def packed(requests: list[Request]) -> bytes:
    """Requests as bytes; what they ask for is plain."""
    return json.dumps([asdict(r) for r in requests]).encode()


def unpacked(data: bytes) -> list[Request]:
    """The requests that `packed` wrote."""
    found = []
    for raw in json.loads(data):
        sampling = raw.pop("sampling")
        for name in ("stop_ids", "stop"):
            sampling[name] = tuple(sampling[name])
        sampling["logit_bias"] = tuple((i, b) for i, b in sampling["logit_bias"])
        if sampling["constraint"] is not None:
            sampling["constraint"] = Constraint(**sampling["constraint"])
        raw["prompt_ids"] = tuple(raw["prompt_ids"])
        found.append(Request(sampling=Sampling(**sampling), **raw))
    return found


def packed_rollouts(rollouts: list[list[Rollout]]) -> bytes:
    """The samples of requests as bytes, without the prompts, which the asker has."""
    plain = [
        [[r.completion_ids, r.logprobs, r.raw_logprobs, r.finish, r.meta] for r in group]
        for group in rollouts
    ]
    return json.dumps(plain).encode()


def unpacked_rollouts(data: bytes, requests: list[Request]) -> list[list[Rollout]]:
    """The rollouts of each request, which carry its own prompt ids."""

    def rollout(
        request: Request, ids: Any, logprobs: Any, raw: Any, finish: str, meta: dict[str, Any]
    ) -> Rollout:
        return Rollout(
            prompt_ids=request.prompt_ids, completion_ids=tuple(ids), logprobs=tuple(logprobs),
            raw_logprobs=tuple(raw), finish=finish, meta=meta,
        )  # fmt: skip

    groups = zip(requests, json.loads(data), strict=True)
    return [[rollout(request, *each) for each in group] for request, group in groups]


@dataclass(eq=False)
class _Part:
    """Requests that came in one call, and what has come of them."""

    job: int
    answer: Future[bytes]
    tickets: list[Ticket] = field(default_factory=list)
    done: list[dict[int, Rollout]] = field(default_factory=list)


class EngineWorker:
    """Args: as `ray_pool.RayPool`."""

    def __init__(self, directory: str, max_batch: int, threads: int) -> None:
        torch.set_num_threads(threads)
        runner, texts = runner_of(load(directory)), None
        if knows_texts(directory):
            texts = Texts(load_tokenizer(Path(directory)), runner.vocab_size)
        self._scheduler = Scheduler(runner, max_rows=max_batch, texts=texts)
        self._commands: queue.SimpleQueue[tuple[int, bytes, Future[bytes] | None]]
        self._commands = queue.SimpleQueue()
        self._open: dict[int, tuple[_Part, int]] = {}  # by the ticket's number
        threading.Thread(target=self._run, name="engine", daemon=True).start()

    def pid(self) -> int:
        """Of this process; also says that the model is loaded."""
        return os.getpid()

    def run(self, job: int, requests: bytes) -> bytes:
        """The rollouts of some requests; calls run side by side."""
        answer: Future[bytes] = Future()
        self._commands.put((job, requests, answer))
        return answer.result()

    def drop(self, job: int) -> None:
        """Cancels all that a job has asked for."""
        self._commands.put((job, b"", None))

    # --- the engine's thread ---------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            self._obey()
            try:
                self._deliver(self._scheduler.step().finished)
            except Exception as error:  # goes to those who wait for it
                for part in {id(p): p for p, _ in self._open.values()}.values():
                    self._give_up(part, error)

    def _deliver(self, finished: list[Done]) -> None:
        parts: dict[int, _Part] = {}
        for done in finished:
            part, index = self._open[done.ticket.number]
            part.done[index][done.sample] = done.rollout
            parts[id(part)] = part
        for part in parts.values():
            if not any(ticket.left for ticket in part.tickets):
                for ticket in part.tickets:
                    del self._open[ticket.number]
                groups = [[group[i] for i in sorted(group)] for group in part.done]
                part.answer.set_result(packed_rollouts(groups))

    def _obey(self) -> None:
        """Takes in what has come; waits for it when there is nothing else to do."""
        while True:
            try:
                job, requests, answer = self._commands.get(block=not self._scheduler.busy)
            except queue.Empty:
                return
            if answer is None:
                for part in {id(p): p for p, _ in self._open.values() if p.job == job}.values():
                    self._give_up(part, RuntimeError("cancelled"))
                continue
            part = _Part(job, answer)
            try:
                for request in unpacked(requests):
                    part.tickets.append(self._scheduler.submit(request))
                    part.done.append({})
                    self._open[part.tickets[-1].number] = part, len(part.done) - 1
            except Exception as error:
                self._give_up(part, error)

    def _give_up(self, part: _Part, error: Exception) -> None:
        for ticket in part.tickets:
            self._scheduler.cancel(ticket)
            self._open.pop(ticket.number, None)
        part.answer.set_exception(error)


def options(threads: int, concurrency: int) -> dict[str, Any]:
    """How Ray runs a worker: spread over the nodes, and not started again by Ray itself, which
    would not know what was lost."""
    return {
        "num_cpus": threads,
        "max_restarts": 0,
        "max_concurrency": concurrency,
        "scheduling_strategy": "SPREAD",
    }
