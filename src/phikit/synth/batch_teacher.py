"""A teacher behind a batch API (files and batches, as OpenAI's): half the price, within a day.

Requests that come together are uploaded as one file of JSON lines and run as one batch. What a
batch holds is in `batches.jsonl` beside the replies before the batch is created, and its id after:
a run that was killed waits for the batches that it began, and creates none of them again. One that
was killed between the two finds its batch by the digest that stands in its metadata.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from phikit.errors import PhikitError
from phikit.files import Journal
from phikit.synth.connections import Broken, HttpAnswer
from phikit.synth.remote_teacher import Again, Endpoint, chat_body, completion, connect, refuse
from phikit.synth.replies import ReplyStore, Request
from phikit.synth.stored_teacher import Answer, NoAnswer, StoredTeacher

_QUIET = 0.05  # seconds without a new request, after which a batch is closed
_OVER = ("completed", "failed", "expired", "cancelled")


class BatchTeacher(StoredTeacher):
    """A `StoredTeacher` on the batch API; `calls` counts the requests in batches."""

    def __init__(self, endpoint: Endpoint, store: ReplyStore) -> None:
        super().__init__(endpoint.model, endpoint, store)
        self.endpoint = endpoint
        self._connections = connect(endpoint)
        self._journal = Journal(store.path.with_name("batches.jsonl"))
        self._futures: dict[str, asyncio.Future[Answer]] = {}
        self._waiting: dict[str, dict[str, Any]] = {}  # bodies by their ids
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> BatchTeacher:
        """Takes up the batches that an earlier run began and did not live to read."""
        names = {row["digest"]: row["batch"] for row in self._journal.rows if "batch" in row}
        for row in list(self._journal.rows):
            if "ids" not in row or all(map(self._stored, row["ids"])):
                continue
            try:
                name = names.get(row["digest"]) or await self._find(row["digest"])
            except (Again, NoAnswer) as e:
                raise PhikitError(
                    f"cannot find out what became of an earlier batch: {e}",
                    "run the same command again when the endpoint answers",
                ) from e
            if name is not None:
                for one in row["ids"]:
                    self._futures[one] = self._future()
                self._start(self._read(name, row["ids"]))
        return self

    async def __aexit__(self, *_: object) -> None:
        await super().__aexit__()
        for task in [*self._tasks, *([self._closing] if self._closing else [])]:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._journal.close()
        await self._connections.close()

    def _stored(self, name: str) -> bool:
        key, _, attempt = name.partition(".")
        return int(attempt) < len(self.store.replies.get(key, ()))

    @staticmethod
    def _future() -> asyncio.Future[Answer]:
        return asyncio.get_running_loop().create_future()

    def _start(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _generate(self, request: Request, attempt: int) -> Answer:
        name = f"{request.key(self.name)}.{attempt}"
        for _ in range(self.endpoint.tries):
            if name not in self._futures:
                self._futures[name] = self._future()
                self._waiting[name] = chat_body(self, request, attempt)
                if self._closing is not None:
                    self._closing.cancel()
                if len(self._waiting) >= self.endpoint.batch_size:
                    self._close()
                else:
                    self._closing = asyncio.create_task(self._close_when_quiet())
            try:
                return await self._futures[name]
            except Again as again:
                self._futures.pop(name, None)
                reason = again.reason
        raise NoAnswer(f"{reason} ({self.endpoint.tries} tries)")

    # --- a batch ---------------------------------------------------------------------------------

    async def _close_when_quiet(self) -> None:
        await asyncio.sleep(_QUIET)
        self._close()

    def _close(self) -> None:
        bodies, self._waiting = self._waiting, {}
        self._closing = None
        self._start(self._run(bodies))

    async def _run(self, bodies: Mapping[str, dict[str, Any]]) -> None:
        names = list(bodies)
        try:
            rows = (
                {"custom_id": n, "method": "POST", "url": "/v1/chat/completions", "body": b}
                for n, b in bodies.items()
            )
            data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
            # the same requests again, after a failure, are another batch
            number = sum("ids" in row for row in self._journal.rows)
            digest = hashlib.sha256(data + str(number).encode()).hexdigest()[:32]
            await asyncio.to_thread(self._journal.append, {"digest": digest, "ids": names})
            self.calls += len(names)
            name = await self._create(data, digest)
            await asyncio.to_thread(self._journal.append, {"digest": digest, "batch": name})
        except (Again, NoAnswer, PhikitError, LookupError) as e:
            self._give_up(names, e)
            return
        await self._read(name, names)

    async def _create(self, data: bytes, digest: str) -> str:
        """Uploads and begins a batch; its id."""
        mark = f"phikit-{digest}"
        head = (
            f'--{mark}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
            f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="batch.jsonl"\r\n'
            "Content-Type: application/jsonl\r\n\r\n"
        )
        form = head.encode() + data + f"\r\n--{mark}--\r\n".encode()
        file = await self._json("/files", form, kind=f"multipart/form-data; boundary={mark}")
        asked = {
            "input_file_id": file["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "metadata": {"phikit": digest},
        }
        return str((await self._json("/batches", json.dumps(asked).encode()))["id"])

    async def _find(self, digest: str) -> str | None:
        """A batch that was created, but whose id was not written down any more."""
        listed = await self._json("/batches?limit=100", method="GET")
        for batch in listed.get("data", ()):
            if (batch.get("metadata") or {}).get("phikit") == digest:
                return str(batch["id"])
        return None

    async def _read(self, name: str, ids: list[str]) -> None:
        """Waits for a batch and gives its answers out."""
        try:
            batch = await self._json(f"/batches/{name}", method="GET")
            while batch.get("status") not in _OVER:
                await asyncio.sleep(self.endpoint.batch_poll)
                batch = await self._json(f"/batches/{name}", method="GET")
            for role in ("output_file_id", "error_file_id"):
                if batch.get(role):
                    answer = await self._call(f"/files/{batch[role]}/content", method="GET")
                    for line in answer.body.splitlines():
                        if line.strip():
                            self._settle(json.loads(line))
            self._give_up(ids, Again(f"the batch {batch['status']} without an answer"))
        except (Again, NoAnswer) as e:
            self._give_up(ids, e)
        except (ValueError, LookupError, TypeError, AttributeError) as e:
            self._give_up(ids, NoAnswer(f"batch {name}: its answers are malformed ({e})"))

    def _settle(self, row: Mapping[str, Any]) -> None:
        future = self._futures.get(row["custom_id"])
        if future is None or future.done():
            return
        response = row.get("response") or {}
        status = response.get("status_code") or 0
        try:
            if status == 200:
                future.set_result(completion(response.get("body"), 0))
            elif status in (408, 409, 425, 429) or status >= 500 or not status:
                future.set_exception(Again(f"status {status}"))
            else:
                future.set_exception(NoAnswer(f"status {status}: {str(response)[:200]}"))
        except ValueError:
            future.set_exception(Again("the answer's envelope is malformed"))

    def _give_up(self, names: list[str], error: Exception) -> None:
        known = error if isinstance(error, Again | NoAnswer) else NoAnswer(str(error))
        for name in names:
            future = self._futures.get(name)
            if future is not None and not future.done():
                future.set_exception(known)

    # --- calls -----------------------------------------------------------------------------------

    async def _json(self, path: str, body: bytes = b"", **how: str) -> dict[str, Any]:
        answer = await self._call(path, body, **how)
        try:
            found = json.loads(answer.body)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise Again(f"{path} answers with something else than a JSON object")
        return found

    async def _call(self, path: str, body: bytes = b"", **how: str) -> HttpAnswer:
        """
        Raises:
            Again, NoAnswer: there is none after all tries.
        """
        e = self.endpoint
        reason = ""
        for number in range(e.tries):
            try:
                async with asyncio.timeout(e.timeout):
                    answer = await self._connections.call(path, body, **how)
                refuse(answer)
                return answer
            except (Broken, TimeoutError) as error:
                reason, asked = f"no answer: {str(error) or 'time-out'}", None
            except Again as again:
                reason, asked = again.reason, again.pause
            await asyncio.sleep(min(e.longest_pause, max(e.pause * 2**number, asked or 0)))
        raise NoAnswer(f"{path}: {reason} ({e.tries} tries)")
