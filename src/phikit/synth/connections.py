"""HTTP/1.1 over kept connections, for hundreds of calls in flight at little cost each.

The protocol's grammar is h11's; this file moves its bytes with asyncio and keeps connections for
the next call. It knows POST and GET with whole bodies, TLS, and nothing else: no redirects, no
proxies, no compression.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

import h11

from phikit.errors import PhikitError

_READ = 65_536
_LARGEST = 1 << 28  # bytes of an answer


class Broken(Exception):
    """The connection failed before the answer was whole."""


class HttpAnswer(NamedTuple):
    """`headers` are by lower-case names."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class _Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.state = h11.Connection(h11.CLIENT)

    async def exchange(self, request: h11.Request, body: bytes) -> HttpAnswer:
        parts = [self.state.send(request)]
        if body:
            parts.append(self.state.send(h11.Data(body)))
        parts.append(self.state.send(h11.EndOfMessage()))
        self.writer.write(b"".join(part for part in parts if part))
        status, headers, got, size = 0, {}, [], 0
        while True:
            event = self.state.next_event()
            if event is h11.NEED_DATA:
                self.state.receive_data(await self.reader.read(_READ))
            elif isinstance(event, h11.Response):
                status = event.status_code
                headers = {k.decode(): v.decode("latin-1") for k, v in event.headers}
            elif isinstance(event, h11.Data):
                got.append(bytes(event.data))
                size += len(event.data)
                if size > _LARGEST:
                    raise Broken("the answer is too long")
            elif isinstance(event, h11.EndOfMessage):
                return HttpAnswer(status, headers, b"".join(got))
            elif isinstance(event, h11.ConnectionClosed):
                raise Broken("the connection was closed")

    def reusable(self) -> bool:
        if self.state.our_state is not h11.DONE or self.state.their_state is not h11.DONE:
            return False
        self.state.start_next_cycle()
        return not self.reader.at_eof()


class Connections:
    """Connections to one server. Bound the number of calls in flight outside.

    Args:
        url: its beginning decides server and TLS; paths are given with each call.
        headers: sent with every call.

    Raises:
        PhikitError: the address is none.
    """

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise PhikitError(
                f"{url!r} is no address of a server", "write http://127.0.0.1:8000/v1"
            )
        self._host = parts.hostname
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = port or (443 if self._tls else 80)
        self._prefix = parts.path.rstrip("/")
        self._headers = [("Host", parts.netloc.rpartition("@")[2]), *headers.items()]
        self._idle: list[_Connection] = []

    async def call(
        self, path: str, body: bytes = b"", method: str = "POST", kind: str = "application/json"
    ) -> HttpAnswer:
        """The server's answer.

        A kept connection that the server has closed meanwhile, before it said anything, is
        replaced by a new one at once.

        Raises:
            Broken: no connection, or it failed half way.
        """
        headers = [*self._headers, ("Content-Length", str(len(body)))]
        if body:
            headers.append(("Content-Type", kind))
        request = h11.Request(method=method, target=self._prefix + path, headers=headers)
        while self._idle:
            connection = self._idle.pop()
            if connection.reader.at_eof() or connection.writer.is_closing():
                connection.writer.close()
                continue
            return await self._over(connection, request, body)
        try:
            reader, writer = await asyncio.open_connection(
                self._host, self._port, ssl=self._tls, limit=_READ
            )
        except OSError as e:
            raise Broken(f"no connection: {e.strerror or e}") from e
        return await self._over(_Connection(reader, writer), request, body)

    async def _over(self, connection: _Connection, request: h11.Request, body: bytes) -> HttpAnswer:
        try:
            answer = await connection.exchange(request, body)
        except BaseException as e:  # also when the call is cancelled: half an exchange is no use
            connection.writer.close()
            if isinstance(e, OSError | h11.ProtocolError):
                raise Broken(f"{type(e).__name__}: {e}") from e
            raise
        if connection.reusable():
            self._idle.append(connection)
        else:
            connection.writer.close()
        return answer

    async def close(self) -> None:
        """Closes the idle connections."""
        for connection in self._idle:
            connection.writer.close()
        self._idle.clear()
        await asyncio.sleep(0)  # let the transports go
