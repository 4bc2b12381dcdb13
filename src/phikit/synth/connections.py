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

_LARGEST = 1 << 28  # bytes of an answer


class Broken(Exception):
    """The connection failed before the answer was whole."""


class HttpAnswer(NamedTuple):
    """`headers` are by lower-case names."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class _Connection(asyncio.Protocol):
    """One connection, for one exchange after the other.

    Bytes are read where they arrive: an answer that is whole wakes its caller and nothing before.
    """

    def __init__(self) -> None:
        self._state = h11.Connection(h11.CLIENT)
        self._answer: asyncio.Future[HttpAnswer] | None = None
        self._head: h11.Response | None = None
        self._got: list[bytes] = []
        self._size = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    async def exchange(self, request: h11.Request, body: bytes) -> HttpAnswer:
        """
        Raises:
            Broken, OSError: there is no whole answer; the connection is of no more use.
        """
        if not self.open():  # closed as soon as it was there
            raise Broken("the connection was closed")
        parts = [self._state.send(request)]
        if body:
            parts.append(self._state.send(h11.Data(body)))
        parts.append(self._state.send(h11.EndOfMessage()))
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(b"".join(part for part in parts if part))
        try:
            return await self._answer
        finally:
            self._answer = None

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._answer.done():
            self.close()  # nobody asked: what follows it would not be an answer either
            return
        try:
            self._state.receive_data(data)
            answer = self._read()
        except (h11.RemoteProtocolError, Broken) as error:
            self._answer.set_exception(error)
            return
        if answer is not None:
            self._answer.set_result(answer)

    def eof_received(self) -> None:
        self.data_received(b"")

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or Broken("the connection was closed"))

    def _read(self) -> HttpAnswer | None:
        """The answer, if all of it is there."""
        while True:
            event = self._state.next_event()
            if event is h11.NEED_DATA:
                return None
            if isinstance(event, h11.Response):
                self._head, self._got, self._size = event, [], 0
            elif isinstance(event, h11.Data):
                self._got.append(bytes(event.data))
                self._size += len(event.data)
                if self._size > _LARGEST:
                    raise Broken("the answer is too long")
            elif isinstance(event, h11.EndOfMessage):
                assert self._head is not None
                headers = {k.decode(): v.decode("latin-1") for k, v in self._head.headers}
                return HttpAnswer(self._head.status_code, headers, b"".join(self._got))
            elif isinstance(event, h11.ConnectionClosed):
                raise Broken("the connection was closed")

    def reusable(self) -> bool:
        """Makes ready for another exchange, if there can be one."""
        if self._state.our_state is not h11.DONE or self._state.their_state is not h11.DONE:
            return False
        self._state.start_next_cycle()
        return self.open() and not self._state.trailing_data[0]

    def open(self) -> bool:
        """May something still be sent?"""
        return not self._transport.is_closing()

    def close(self) -> None:
        self._transport.close()


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
        self.under_way = 0  # calls
        self._quiet = asyncio.Event()
        self._quiet.set()

    async def call(
        self, path: str, body: bytes = b"", method: str = "POST", kind: str = "application/json"
    ) -> HttpAnswer:
        """The server's answer.

        A kept connection that the server has closed meanwhile, before it said anything, is
        replaced by a new one at once.

        Raises:
            Broken: no connection, or it failed half way.
        """
        self.under_way += 1
        self._quiet.clear()
        try:
            return await self._call(path, body, method, kind)
        finally:
            self.under_way -= 1
            if not self.under_way:
                self._quiet.set()

    async def _call(self, path: str, body: bytes, method: str, kind: str) -> HttpAnswer:
        headers = [*self._headers, ("Content-Length", str(len(body)))]
        if body:
            headers.append(("Content-Type", kind))
        request = h11.Request(method=method, target=self._prefix + path, headers=headers)
        while self._idle:
            connection = self._idle.pop()
            if connection.open():
                return await self._over(connection, request, body)
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                _Connection, self._host, self._port, ssl=self._tls
            )
        except OSError as e:
            raise Broken(f"no connection: {e.strerror or e}") from e
        return await self._over(connection, request, body)

    async def _over(self, connection: _Connection, request: h11.Request, body: bytes) -> HttpAnswer:
        try:
            answer = await connection.exchange(request, body)
        except BaseException as e:  # also when the call is cancelled: half an exchange is no use
            connection.close()
            if isinstance(e, OSError | h11.ProtocolError):
                raise Broken(f"{type(e).__name__}: {e}") from e
            raise
        if connection.reusable():
            self._idle.append(connection)
        else:
            connection.close()
        return answer

    async def close(self) -> None:
        """Lets the calls that are under way end, and closes all connections.

        Begin none any more; how long one may take is its caller's affair.
        """
        await self._quiet.wait()
        for connection in self._idle:
            connection.close()
        self._idle.clear()
        await asyncio.sleep(0)  # let the transports go
