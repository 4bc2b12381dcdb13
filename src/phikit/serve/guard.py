"""What stands before every request: API keys, the size of bodies, how many are in flight.

It is plain ASGI. A body is read here, whole and within bounds, before anything looks at it.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from phikit.errors import PhikitError
from phikit.files import explain_os_errors
from phikit.serve.requests import Limits

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_OPEN = ("/", "/healthz")  # paths that need no key
_BODY_SECONDS = 30.0  # a client has, to send its body
_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> Any:
    """OpenAI's error object."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def in_a_line(error: PhikitError) -> str:
    return f"{error.message}; {error.hint}" if error.hint else error.message


def read_keys(path: Path) -> list[str]:
    """API keys, one a line; empty lines and those that begin with # are left out.

    Raises:
        PhikitError: the file cannot be read or has no key.
    """
    with explain_os_errors(path, "reading"):
        lines = path.read_text(encoding="utf-8").splitlines()
    keys = [line.strip() for line in lines]
    keys = [key for key in keys if key and not key.startswith("#")]
    if not keys:
        raise PhikitError(f"{path} has no API key", "write one a line")
    return keys


class Guard:
    """Lets requests through to `app`, or answers them itself.

    Args:
        count: is told the path (as the application calls it) and status of every answer.
    """

    def __init__(
        self,
        app: App,
        limits: Limits,
        keys: Sequence[str] = (),
        count: Callable[[str, int], object] = lambda path, status: None,
    ) -> None:
        self.app, self.limits, self.count = app, limits, count
        self.keys = [key.encode() for key in keys]
        self.in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        await self._request(scope, receive, self._counted(scope, send))

    def _counted(self, scope: Scope, send: Send) -> Send:
        async def counting(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                path = getattr(scope.get("route"), "path", "other")
                self.count(path, message["status"])
            await send(message)

        return counting

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        if scope["path"] not in _OPEN and not self._known(headers.get(b"authorization", b"")):
            text = "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'"
            await _answer(send, 401, error_body(401, text, code="invalid_api_key"))
        elif scope["method"] != "POST":
            await self.app(scope, receive, send)
        elif self.in_flight >= self.limits.requests:
            text = f"{self.in_flight} requests are in flight, the limit; try again later"
            body = error_body(429, text, code="too_many_requests")
            await _answer(send, 429, body, [(b"retry-after", b"1")])
        else:
            self.in_flight += 1
            try:
                await self._with_body(scope, headers, receive, send)
            finally:
                self.in_flight -= 1

    def _known(self, given: bytes) -> bool:
        """Compares with every key, in a time that tells nothing of them."""
        if not self.keys:
            return True
        scheme, _, key = given.partition(b" ")
        equal = [hmac.compare_digest(key.strip(), known) for known in self.keys]
        return scheme.lower() == b"bearer" and any(equal)

    async def _with_body(
        self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send
    ) -> None:
        most = self.limits.body
        told = headers.get(b"content-length", b"")
        body = b""
        try:
            if told.isdigit() and int(told[:20]) > most:
                raise OverflowError
            async with asyncio.timeout(_BODY_SECONDS):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > most:
                        raise OverflowError
        except OverflowError:
            text = f"the body is larger than {most} bytes"
            await _answer(send, 413, error_body(413, text), [(b"connection", b"close")])
            return
        except TimeoutError:
            text = f"the body did not come within {_BODY_SECONDS:.0f} s"
            await _answer(send, 408, error_body(408, text), [(b"connection", b"close")])
            return
        given = False

        async def replay() -> MutableMapping[str, Any]:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send)


async def _answer(
    send: Send, status: int, body: Any, headers: Sequence[tuple[bytes, bytes]] = ()
) -> None:
    data = json.dumps(body).encode()
    every = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(data))]
    if status == 401:
        every.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": [*every, *headers]})
    await send({"type": "http.response.body", "body": data})
