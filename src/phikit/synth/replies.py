"""What was asked of a language model and what it answered: paid for once, kept for good.

A request's id is the hash of all that decides its answer. Every answered call is one line of an
append-only journal: in the file at once, so that killing the process loses none, and on the disk
before anyone uses it. Lines that arrive together go to the disk together, so that hundreds of calls
in flight do not wait for it each.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

from phikit.errors import PhikitError
from phikit.files import Journal, canonical_json, explain_os_errors

Status = Literal["accepted", "rejected", "failed", "unsent"]


@dataclass(frozen=True, slots=True)
class Request:
    """One call. `draw` tells apart several answers wanted to the same prompt."""

    messages: tuple[Mapping[str, str], ...]
    schema: Mapping[str, Any] | None = None
    temperature: float = 0.7
    max_tokens: int = 1024
    draw: int = 0

    def key(self, model: str) -> str:
        """32 hex digits over the model and everything above."""
        content = canonical_json(
            [model, list(self.messages), self.schema, self.temperature, self.max_tokens, self.draw]
        )
        return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Reply:
    """A paid answer. `attempt` counts the answers to one request, from 0; `cut`: it has as many
    tokens as were allowed, and was not at its end."""

    request: str
    attempt: int
    text: str
    prompt_tokens: int
    completion_tokens: int
    cut: bool = False

    @property
    def id(self) -> str:
        """What samples made of it name as their parent."""
        return f"{self.request}.{self.attempt}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request ended: accepted with a `value`, or not, with a `reason`.

    "rejected": answered, but no answer held to the schema. "failed": never answered, will be asked
    again by the next run. "unsent": the budget was spent before it. `cut` is the accepted reply's.
    """

    request: str
    status: Status
    value: Any = None
    reason: str = ""
    replies: tuple[str, ...] = ()
    cut: bool = False


@dataclass
class ReplyStore:
    """Every reply by the id of its request, in `path` (JSON lines).

    Raises:
        PhikitError: another process writes there; or the file is corrupt.
    """

    path: Path
    replies: dict[str, list[Reply]] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __post_init__(self) -> None:
        self._lock = self._locked()
        self._journal = Journal(self.path)
        for row in self._journal.rows:
            reply = Reply(**row)
            self._count(reply)
            self._index(reply)
        self._journal.rows.clear()
        self._waiting: list[tuple[Reply, asyncio.Future[Reply]]] = []
        self._writer: asyncio.Task[None] | None = None

    def _locked(self) -> BinaryIO:
        """The file, held for this process alone: opening it cuts off a torn last line."""
        with explain_os_errors(self.path, "opening"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            file.close()
            raise PhikitError(
                f"{self.path}: another job keeps its replies here",
                "wait for it, or keep them in another file",
            ) from e
        return file

    def _index(self, reply: Reply) -> None:
        self.replies.setdefault(reply.request, []).append(reply)

    def _count(self, reply: Reply) -> None:
        self.prompt_tokens += reply.prompt_tokens
        self.completion_tokens += reply.completion_tokens

    def add(self, reply: Reply) -> asyncio.Future[Reply]:
        """Writes a reply, which outlives the process from now on; the future gives it once it is on
        the disk, or the disk's error.

        Raises:
            PhikitError: it cannot be written.
        """
        self._count(reply)  # paid for, written or not
        self._journal.write({name: getattr(reply, name) for name in Reply.__slots__})
        self._journal.rows.clear()
        done: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting.append((reply, done))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._sync())
        return done

    async def _sync(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                await asyncio.to_thread(self._journal.sync)
            except Exception as e:
                for _, done in batch:
                    if not done.done():
                        done.set_exception(e)
                        done.exception()  # in a stop nobody waits, and asyncio would complain
                continue
            for reply, done in batch:
                self._index(reply)
                if not done.done():  # whoever waited was cancelled
                    done.set_result(reply)

    async def close(self) -> None:
        """Waits for what is being written, and lets go of the file and its lock."""
        if self._writer is not None:
            await self._writer
        self._journal.close()
        self._lock.close()
