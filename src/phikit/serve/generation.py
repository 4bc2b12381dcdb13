"""One answer: the engine's updates turned into a body or a stream, cancelled when nobody reads it.

The client leaves, or the time is over: the whole job is cancelled, and its blocks of the cache are
free before the engine's next step.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from phikit.engine.base import Request as Ask
from phikit.errors import PhikitError
from phikit.serve.answers import Chunks, Sample, event, head, usage
from phikit.serve.forms import source
from phikit.serve.guard import error_body, in_a_line
from phikit.serve.requests import Limits
from phikit.serve.schema import ChatBody, CompletionBody
from phikit.serve.served import Refused, Served
from phikit.serve.text import Part
from phikit.serve.worker import BadForm, Down, Job, Update

_LEFT = 499  # nobody reads it, but the figures tell: the client has left


def _failure(error: PhikitError) -> tuple[int, Any]:
    """The status and body for an error that ended an answer."""
    status, code = (503, error.code) if isinstance(error, Down) else (500, Down.code)
    return status, error_body(status, in_a_line(error), code=code)


class _Stream(StreamingResponse):
    """Closes its job however it ends, also when it never began."""

    def __init__(self, content: AsyncIterator[bytes], job: Job) -> None:
        super().__init__(
            content, media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
        )
        self.job = job

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.job.close()


class Generation:
    """Runs one request. `asked` has one entry per sample, prompt by prompt."""

    def __init__(
        self,
        model: Served,
        body: ChatBody | CompletionBody,
        asked: Sequence[Ask],
        limits: Limits,
        tools: bool,
    ) -> None:
        self.model, self.body, self.asked, self.limits = model, body, asked, limits
        self.chat = isinstance(body, ChatBody)
        ends = asked[0].sampling.stop_ids
        self.samples = [
            Sample(model, body.stops, body.stream, self.chat, tools, ends) for _ in asked
        ]
        self.kind = "chat.completion" if self.chat else "text_completion"
        logprobs = body.logprobs
        self.logprobs = logprobs if isinstance(logprobs, bool) else logprobs is not None

    async def respond(self, request: Request) -> Response:
        """Starts the engine, and answers."""
        every = self.body.stream or self.asked[0].sampling.top_logprobs > 0
        try:
            job = await self.model.worker.start(self.asked, every)
        except BadForm as error:
            raise Refused(source(self.body), error.message, error.hint) from None
        if self.body.stream:
            return _Stream(self._events(job), job)
        try:
            return await self._whole(job, request)
        finally:
            job.close()

    def _feed(self, updates: Sequence[Update]) -> Iterator[tuple[int, list[Part]]]:
        """Hands news to the samples that they are of; yields these and their new text."""
        news: dict[int, list[Update]] = {}
        for update in updates:
            news.setdefault(update.sample, []).append(update)
        for index, mine in news.items():
            yield index, self.samples[index].feed(mine)

    # --- in one piece ----------------------------------------------------------------------------

    async def _whole(self, job: Job, request: Request) -> Response:
        async def collect() -> None:
            while job.left:
                for _ in self._feed(await job.next()):
                    pass

        async def gone() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        work, leaving = asyncio.create_task(collect()), asyncio.create_task(gone())
        try:
            await asyncio.wait(
                (work, leaving),
                timeout=self.limits.timeout,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not work.done() and leaving.done():
                return Response(status_code=_LEFT)
            if not work.done():
                text = f"the answer was not there after {self.limits.timeout:g} s"
                return JSONResponse(error_body(408, text, code="timeout"), 408)
            try:
                work.result()
            except PhikitError as error:
                status, body = _failure(error)
                return JSONResponse(body, status, {"Retry-After": "1"} if status == 503 else None)
        finally:
            work.cancel()
            leaving.cancel()
        choices = [self._choice(i, sample) for i, sample in enumerate(self.samples)]
        return JSONResponse(
            {**head(self.kind, self.model.name), "choices": choices, "usage": self._usage()}
        )

    def _choice(self, index: int, sample: Sample) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "finish_reason": sample.finish, "logprobs": None}
        if self.chat:
            choice["message"] = sample.message()
        else:
            choice["text"] = sample.text.get("text", "")
        if self.logprobs:
            choice["logprobs"] = sample.chat_logprobs() if self.chat else sample.plain_logprobs()
        if self.body.return_token_ids:
            choice |= sample.extras(0, self.asked[index].prompt_ids)
        return choice

    def _usage(self) -> dict[str, Any]:
        """Prompts count once, however many samples they have."""
        n = self.body.n
        prompts = sum(len(r.prompt_ids) for r in self.asked[::n])
        drawn = sum(len(s.token_ids) for s in self.samples)
        groups = (self.samples[i : i + n] for i in range(0, len(self.samples), n))
        return usage(prompts, drawn, sum(min(s.reused for s in group) for group in groups))

    # --- as a stream -----------------------------------------------------------------------------

    async def _events(self, job: Job) -> AsyncIterator[bytes]:
        kind = "chat.completion.chunk" if self.chat else self.kind
        start = head(kind, self.model.name)
        counted = bool(self.body.stream_options and self.body.stream_options.include_usage)
        if counted:
            start["usage"] = None
        chunks = Chunks(start)
        try:
            if self.chat:
                for index in range(len(self.samples)):
                    delta = {"role": "assistant", "content": ""}
                    choice = {"index": index, "delta": delta, "finish_reason": None}
                    yield chunks.of(choice)
            async with asyncio.timeout(self.limits.timeout):
                while job.left:
                    # all that is there goes out at once: a packet costs more than a chunk
                    yield b"".join(
                        chunks.of(choice)
                        for index, parts in self._feed(await job.next())
                        for choice in self._chunks(index, parts)
                    )
        except TimeoutError:
            text = f"the answer was not whole after {self.limits.timeout:g} s"
            yield event(error_body(408, text, code="timeout"))
            return
        except PhikitError as error:
            yield event(_failure(error)[1])
            return
        if counted:
            yield event({**start, "choices": [], "usage": self._usage()})
        yield b"data: [DONE]\n\n"

    def _chunks(self, index: int, parts: Sequence[Part]) -> list[dict[str, Any]]:
        """What is new of one sample, as choices. Its ids and log-probabilities go with the first;
        they may run ahead of the text, parts of which are held back."""
        sample = self.samples[index]
        pieces: list[tuple[dict[str, Any], str | None]] = [
            ({name: text}, None) for name, text in parts
        ]
        fresh = sample.fresh < len(sample.token_ids)
        if calls := sample.call_deltas():
            pieces.append(({"tool_calls": calls}, None))
        if sample.finish is not None:
            pieces.append(({}, sample.finish))
        elif not pieces and fresh and (self.logprobs or self.body.return_token_ids):
            pieces.append(({}, None))
        choices = []
        for number, (piece, finish) in enumerate(pieces):
            choice: dict[str, Any] = {"index": index, "finish_reason": finish, "logprobs": None}
            if self.chat:
                choice["delta"] = piece
            else:
                choice["text"] = piece.get("text", "")
            if number == 0 and fresh:
                since, sample.fresh = sample.fresh, len(sample.token_ids)
                if self.logprobs:
                    column = sample.chat_logprobs if self.chat else sample.plain_logprobs
                    choice["logprobs"] = column(since)
                if self.body.return_token_ids:
                    prompt = self.asked[index].prompt_ids if since == 0 else None
                    choice |= sample.extras(since, prompt)
            choices.append(choice)
        return choices
