"""A language model behind any OpenAI-compatible chat endpoint, asked many things at once.

    ask ──▶ stored already? ──▶ budget ──▶ in flight < limit ──▶ rates ──▶ POST ──▶ store ──▶ check
               └──────────────────────────────────────────────────────────────────────▶┘

What goes wrong on the way (429, 5xx, time-outs, a broken connection, half a body) is tried again
after a growing, jittered pause, or after what Retry-After says. What comes back but does not hold
to the schema was paid for: it is stored, and asked again a stated number of times.
"""

from __future__ import annotations

import asyncio
import email.utils
import time
from pathlib import Path
from random import Random
from typing import Any

import httpx
from pydantic import Field

from phikit.errors import PhikitError
from phikit.files import explain_os_errors
from phikit.stage import Config
from phikit.synth.replies import Outcome, Reply, ReplyStore, Request
from phikit.synth.schema import read_reply

_POOL = 32  # connections per client: the pool looks through all of its connections at each call
_CHARACTERS_PER_TOKEN = 3.0  # an estimate on the high side, for what is not answered yet


class Endpoint(Config):
    """Where the teacher is and how hard it may be pushed.

    Attributes:
        url: up to and including the version, as "http://127.0.0.1:8000/v1".
        key_file: a file that holds the endpoint's key, if it wants one.
        in_flight: calls at the same time.
        requests_per_minute, tokens_per_minute: 0 for no limit. Tokens are counted as the prompt's
            estimated length and the whole of max_tokens.
        timeout: seconds for one call.
        tries: calls for one answer before the request has failed.
        pause, longest_pause: seconds before the second try, and at most.
        rewrites: answers asked for in place of one that does not hold to its schema.
        max_total_tokens, max_cost: the budget of the whole store, earlier runs included; 0: none.
        prompt_price, completion_price: money per million tokens.
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
    rewrites: int = Field(default=2, ge=0)
    max_total_tokens: int = Field(default=0, ge=0)
    max_cost: float = Field(default=0, ge=0)
    prompt_price: float = Field(default=0, ge=0)
    completion_price: float = Field(default=0, ge=0)


class _Again(Exception):
    """A call that should be made again, after `pause` seconds if the server said so."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.pause = pause


class _Refused(Exception):
    """A call that would be refused again."""


class _BudgetSpent(Exception):
    """The next call could exceed the budget."""


class Rate:
    """Spreads units evenly: at most `per_minute` of them, with a second's worth at once."""

    def __init__(self, per_minute: float) -> None:
        self._seconds = 60 / per_minute if per_minute else 0.0
        self._next = 0.0

    async def take(self, units: float) -> None:
        if not self._seconds:
            return
        now = time.monotonic()
        self._next = max(self._next, now - 1)
        wait = self._next - now
        self._next += units * self._seconds
        if wait > 0:
            await asyncio.sleep(wait)


class RemoteTeacher:
    """Use as `async with`. One instance serves any number of concurrent `ask`s.

    Attributes:
        calls: how many HTTP calls this instance made.
    """

    def __init__(self, endpoint: Endpoint, store: ReplyStore) -> None:
        if not endpoint.url or not endpoint.model:
            raise PhikitError(
                "the teacher needs the endpoint's url and the model's name",
                "as url: http://127.0.0.1:8000/v1 and model: smollm2",
            )
        if endpoint.max_cost and not (endpoint.prompt_price or endpoint.completion_price):
            raise PhikitError("max_cost needs prompt_price and completion_price to be counted in")
        self.endpoint = endpoint
        self.name = endpoint.model
        self.store = store
        self.calls = 0
        self._slots = asyncio.Semaphore(endpoint.in_flight)
        self._requests = Rate(endpoint.requests_per_minute)
        self._tokens = Rate(endpoint.tokens_per_minute)
        self._reserved = [0, 0]  # prompt and completion tokens of calls in flight
        self._running: dict[str, asyncio.Task[Outcome]] = {}
        self._jitter = Random()

    async def __aenter__(self) -> RemoteTeacher:
        e = self.endpoint
        headers = {"Authorization": f"Bearer {_key(e.key_file)}"} if e.key_file else {}
        clients = -(-e.in_flight // _POOL)
        limits = httpx.Limits(max_connections=_POOL, max_keepalive_connections=_POOL)
        self._clients = [
            httpx.AsyncClient(timeout=e.timeout, limits=limits, headers=headers, trust_env=False)
            for _ in range(clients)
        ]
        self._free = [i % clients for i in range(e.in_flight)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self._clients:
            await client.aclose()

    @property
    def cost(self) -> float:
        """Money spent by the store's replies."""
        return self._cost(self.store.prompt_tokens, self.store.completion_tokens)

    def _cost(self, prompt: int, completion: int) -> float:
        e = self.endpoint
        return (prompt * e.prompt_price + completion * e.completion_price) / 1e6

    async def ask(self, request: Request) -> Outcome:
        """The outcome of a request; equal requests that run at the same time are one call."""
        key = request.key(self.endpoint.model)
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(self._ask(request, key))
            task.add_done_callback(lambda _: self._running.pop(key, None))
        return await asyncio.shield(task)

    async def _ask(self, request: Request, key: str) -> Outcome:
        reason = ""
        for attempt in range(self.endpoint.rewrites + 1):
            stored = self.store.replies.get(key, [])
            if attempt >= len(stored):
                try:
                    reply = await self._answer(request, key, attempt)
                except _BudgetSpent:
                    return self._end(key, "unsent", reason="the budget is spent")
                except (_Again, _Refused) as e:
                    return self._end(key, "failed", reason=str(e))
            else:
                reply = stored[attempt]
            value, reason = read_reply(reply.text, request.schema)
            if not reason:
                return self._end(key, "accepted", value=value)
        return self._end(key, "rejected", reason=reason)

    def _end(self, key: str, status: Any, value: Any = None, reason: str = "") -> Outcome:
        ids = tuple(reply.id for reply in self.store.replies.get(key, []))
        return Outcome(key, status, value, reason, ids)

    async def _answer(self, request: Request, key: str, attempt: int) -> Reply:
        """Calls until there is an answer, and stores it."""
        length = sum(len(m["content"]) for m in request.messages)
        prompt = int(length / _CHARACTERS_PER_TOKEN) + 8 * len(request.messages)
        async with self._slots:
            self._reserve(prompt, request.max_tokens)
            client = self._free.pop()
            try:
                text, used, made = await self._persist(request, self._clients[client], prompt)
                reply = Reply(key, attempt, text, used, made)
                await self.store.add(reply)
                return reply
            finally:
                self._free.append(client)
                self._reserved[0] -= prompt
                self._reserved[1] -= request.max_tokens

    def _reserve(self, prompt: int, completion: int) -> None:
        """
        Raises:
            _BudgetSpent: with all that is in flight at its longest, this call could exceed it.
        """
        e = self.endpoint
        prompts = self.store.prompt_tokens + self._reserved[0] + prompt
        completions = self.store.completion_tokens + self._reserved[1] + completion
        if e.max_total_tokens and prompts + completions > e.max_total_tokens:
            raise _BudgetSpent
        if e.max_cost and self._cost(prompts, completions) > e.max_cost:
            raise _BudgetSpent
        self._reserved[0] += prompt
        self._reserved[1] += completion

    async def _persist(
        self, request: Request, client: httpx.AsyncClient, prompt: int
    ) -> tuple[str, int, int]:
        e = self.endpoint
        for attempt in range(e.tries):
            await self._requests.take(1)
            await self._tokens.take(prompt + request.max_tokens)
            try:
                return await self._call(request, client, prompt)
            except _Again as again:
                if attempt + 1 == e.tries:
                    raise _Again(f"{again.reason} ({e.tries} tries)") from again
                pause = min(e.longest_pause, e.pause * 2**attempt) * self._jitter.uniform(0.5, 1)
                await asyncio.sleep(max(pause, min(again.pause or 0, e.longest_pause)))
        raise AssertionError("unreachable: the last try returns or raises")

    async def _call(
        self, request: Request, client: httpx.AsyncClient, prompt: int
    ) -> tuple[str, int, int]:
        """(the answer, its prompt's tokens, its own tokens)."""
        e = self.endpoint
        self.calls += 1
        try:
            # the client's own limit is per read: a server that drips must not hold a slot
            async with asyncio.timeout(e.timeout):
                response = await client.post(f"{e.url}/chat/completions", json=self._body(request))
        except (httpx.HTTPError, TimeoutError) as error:
            raise _Again(f"no answer: {type(error).__name__}") from error
        status = response.status_code
        if status in (408, 409, 425, 429) or status >= 500:
            raise _Again(f"status {status}", _retry_after(response.headers.get("Retry-After")))
        if status != 200:
            raise _Refused(f"status {status}: {response.text[:200]}")
        try:
            data = response.json()
            text = data["choices"][0]["message"]["content"] or ""
            usage = data.get("usage") or {}
            made = usage.get("completion_tokens", int(len(text) / _CHARACTERS_PER_TOKEN))
            return str(text), int(usage.get("prompt_tokens", prompt)), int(made)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise _Again("the answer's envelope is malformed") from error

    def _body(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.endpoint.model,
            "messages": list(request.messages),
            "temperature": request.temperature,
            "max_tokens": request.max_tokens,
        }
        if request.draw:
            body["seed"] = request.draw
        if request.schema is not None:
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "reply", "schema": request.schema, "strict": True},
            }
        return body


def _retry_after(value: str | None) -> float | None:
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
