"""A language model behind any OpenAI-compatible chat endpoint, asked many things at once.

What goes wrong on the way (429, 5xx, time-outs, a broken connection, half a body) is tried again
after a growing, jittered pause, or after what Retry-After says. What comes back but does not hold
to the schema was paid for: it is stored, and asked again a stated number of times.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import logging
import time
from pathlib import Path
from random import Random
from typing import Any

from pydantic import Field

from phikit.errors import PhikitError
from phikit.files import explain_os_errors
from phikit.synth.connections import Broken, Connections, HttpAnswer
from phikit.synth.limiter import ConcurrencyLimiter
from phikit.synth.replies import Reply, ReplyStore, Request
from phikit.synth.stored_teacher import (
    CHARACTERS_PER_TOKEN,
    Answer,
    Budget,
    Call,
    NoAnswer,
    StoredTeacher,
)

_log = logging.getLogger("phikit")
_NEXT_DRAW = 1_000_003  # apart from the draws of other samples


class Endpoint(Budget):
    """Where the teacher is and how hard it may be pushed.

    Attributes:
        url: up to and including the version, as "http://127.0.0.1:8000/v1".
        model: the name under which the endpoint offers it.
        key_file: a file that holds the endpoint's key, if it wants one.
        in_flight: calls at the same time.
        requests_per_minute, tokens_per_minute: 0 for no limit. Tokens are counted as the prompt's
            estimated length and the whole of max_tokens.
        timeout: seconds for one call.
        tries: calls for one answer before the request has failed.
        pause, longest_pause: seconds before the second try, and at most.
        structured: ask the endpoint to hold its answers to the schema (response_format).
        batch_api: send requests in files to be answered within a day, where the endpoint has that.
        batch_size: requests in a file, at most.
        batch_poll: seconds between two looks at a batch.
    """

    url: str = ""
    model: str = ""
    key_file: str = ""
    in_flight: int = Field(default=64, ge=1)
    requests_per_minute: float = Field(default=0, ge=0)
    tokens_per_minute: float = Field(default=0, ge=0)
    timeout: float = Field(default=120, gt=0)
    tries: int = Field(default=8, ge=1)
    pause: float = Field(default=0.5, ge=0)
    longest_pause: float = Field(default=60, ge=0)
    structured: bool = True
    batch_api: bool = False
    batch_size: int = Field(default=10_000, ge=1)
    batch_poll: float = Field(default=30, gt=0)


class Again(Exception):
    """A call that should be made again, after `pause` seconds if the server said so."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.pause = pause


class Rate:
    """Spreads units evenly: at most `per_minute` of them, with a second's worth at once."""

    def __init__(self, per_minute: float) -> None:
        self._seconds = 60 / per_minute if per_minute else 0.0
        self._next = 0.0

    async def take(self, units: float) -> None:
        """Waits until so many units may be spent."""
        if not self._seconds:
            return
        now = time.monotonic()
        self._next = max(self._next, now - 1)
        wait = self._next - now
        self._next += units * self._seconds
        if wait > 0:
            await asyncio.sleep(wait)


class RemoteTeacher(StoredTeacher):
    """A `StoredTeacher` whose model is behind an endpoint; `calls` counts HTTP calls."""

    def __init__(self, endpoint: Endpoint, store: ReplyStore) -> None:
        # beside those in flight as many that are ready to be sent, or are being stored
        super().__init__(endpoint.model, endpoint, store, at_once=2 * endpoint.in_flight)
        self.endpoint = endpoint
        self._connections = connect(endpoint)
        self._limiter: ConcurrencyLimiter[asyncio.Future[Reply]] = ConcurrencyLimiter(
            endpoint.in_flight
        )
        self._requests = Rate(endpoint.requests_per_minute)
        self._tokens = Rate(endpoint.tokens_per_minute)
        self._jitter = Random()

    async def __aenter__(self) -> RemoteTeacher:
        return self

    async def __aexit__(self, *_: object) -> None:
        await super().__aexit__()
        if count := self._connections.under_way:
            _log.warning(
                "stopping when the calls on the wire (%d) are answered, as they are paid for; "
                "Ctrl-C does not wait",
                count,
            )
        # a slot stores its answer in the step in which the call ends, whoever asked for it
        await self._connections.close()

    async def _in_turn(self, call: Call) -> asyncio.Future[Reply]:
        return await self._limiter.run(call)

    async def _generate(self, request: Request, attempt: int) -> Answer:
        """Calls until there is an answer."""
        e = self.endpoint
        body = chat_body(self, request, attempt)
        prompt = self.estimate(request)
        for number in range(e.tries):
            await self._requests.take(1)
            await self._tokens.take(prompt + request.max_tokens)
            if self._stopped:
                raise NoAnswer("the teacher has stopped")
            try:
                return read_answer(await self._call(body), prompt)
            except Again as again:
                if number + 1 == e.tries:
                    raise NoAnswer(f"{again.reason} ({e.tries} tries)") from again
                pause = min(e.longest_pause, e.pause * 2**number) * self._jitter.uniform(0.5, 1)
                await asyncio.sleep(max(pause, min(again.pause or 0, e.longest_pause)))
        raise AssertionError("unreachable: the last try returns or raises")

    async def _call(self, body: dict[str, Any]) -> HttpAnswer:
        self.calls += 1
        data = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
        try:
            # for the whole call: a server that drips must not hold a slot
            async with asyncio.timeout(self.endpoint.timeout):
                answer = await self._connections.call("/chat/completions", data)
        except (Broken, TimeoutError) as error:
            raise Again(f"no answer: {str(error) or 'time-out'}") from error
        refuse(answer)
        return answer


def connect(endpoint: Endpoint) -> Connections:
    """The connections to an endpoint, with its key.

    Raises:
        PhikitError: the address or the model's name is missing, or the key cannot be read.
    """
    if not endpoint.url or not endpoint.model:
        raise PhikitError(
            "the teacher needs the endpoint's url and the model's name",
            "as url: http://127.0.0.1:8000/v1 and model: smollm2",
        )
    headers = {"Accept": "application/json", "User-Agent": "phikit"}
    if endpoint.key_file:
        headers["Authorization"] = f"Bearer {_key(endpoint.key_file)}"
    return Connections(endpoint.url, headers)


def refuse(answer: HttpAnswer) -> None:
    """
    Raises:
        Again: the server is busy or broken.
        NoAnswer: it would refuse this again.
    """
    status = answer.status
    if status in (408, 409, 425, 429) or status >= 500:
        raise Again(f"status {status}", retry_after(answer.headers.get("retry-after")))
    if status != 200:
        raise NoAnswer(f"status {status}: {answer.body[:200].decode('utf-8', 'replace')}")


def read_answer(answer: HttpAnswer, prompt: int) -> Answer:
    """
    Raises:
        Again: it is not a chat completion.
    """
    try:
        return completion(json.loads(answer.body), prompt)
    except ValueError as error:
        raise Again("the answer's envelope is malformed") from error


def completion(data: Any, prompt: int) -> Answer:
    """The answer in a chat completion; tokens that it does not state are estimated.

    Raises:
        ValueError: it is none.
    """
    try:
        choice = data["choices"][0]
        text = choice["message"]["content"] or ""
        if not isinstance(text, str):
            raise ValueError("the content is no text")
        usage = data.get("usage") or {}
        made, read = usage.get("completion_tokens"), usage.get("prompt_tokens")
        if made is None:
            made = len(text.encode("utf-8", "replace")) / CHARACTERS_PER_TOKEN
        cut = choice.get("finish_reason") == "length"
        return Answer(text, int(prompt if read is None else read), int(made), cut)
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError("no chat completion") from error


def chat_body(teacher: StoredTeacher, request: Request, attempt: int) -> dict[str, Any]:
    """A call of /chat/completions. Another attempt draws anew."""
    endpoint = teacher.budget
    assert isinstance(endpoint, Endpoint)
    body: dict[str, Any] = {
        "model": endpoint.model,
        "messages": teacher.messages(request),
        "temperature": request.temperature,
        "max_tokens": request.max_tokens,
    }
    if request.draw:
        body["seed"] = (request.draw + attempt * _NEXT_DRAW) % 2**31
    if request.schema is not None and endpoint.structured:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "reply", "schema": request.schema, "strict": True},
        }
    return body


def retry_after(value: str | None) -> float | None:
    """Seconds from a Retry-After header: a number, or a date."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None  # unreadable: the ordinary pause


def _key(path: str) -> str:
    with explain_os_errors(Path(path), "reading the endpoint's key in"):
        return Path(path).read_text().strip()
