"""One process of an engine as the server sees it, from its start to its end."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Callable

from phikit.errors import PhikitError
from phikit.serve.wire import Frames, Line, Message, pack

_PIECE = 2**18
_PATIENCE = 60.0  # seconds for the process to end


class Child:
    """Starts the process: it is to be `ready`, then connected to, then listened to.

    Args:
        told: what it is told first; see `process.load_engine`.
    """

    def __init__(self, told: Message) -> None:
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._sock, theirs = socket.socketpair()
        command = [sys.executable, "-m", "phikit.serve.process", str(theirs.fileno())]
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        theirs.close()
        self._line = Line(self._sock)
        self._line.send(told)

    def ready(self) -> Message:
        """Waits until the model is loaded: what the engine says of it.

        Raises:
            PhikitError: it cannot be loaded.
        """
        answer = (self._line.receive(None) or [{}])[0]
        if "ready" not in answer:
            self.abandon()
            told = answer.get("message", f"the engine's process ended ({self._process.returncode})")
            raise PhikitError(told, answer.get("hint", ""))
        about: Message = answer["ready"]
        return about

    @property
    def connected(self) -> bool:
        return self._writer is not None

    async def connect(self) -> None:
        """From here on commands can be said; what it has said since it was ready is not lost."""
        self._sock.setblocking(False)
        self._reader, self._writer = await asyncio.open_connection(sock=self._sock)

    async def listen(self, hear: Callable[[Message], None]) -> None:
        """Hands on what the engine says, until its process is gone."""
        assert self._reader is not None and self._writer is not None
        frames = Frames()
        try:
            while data := await self._reader.read(_PIECE):
                for message in frames.take(data):
                    hear(message)
        except OSError:
            pass  # the process is gone: the same as when it closes its end
        finally:
            self._writer.close()
            self._writer = None

    def say(self, command: Message) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(pack(command))

    async def stop(self) -> None:
        """Ends the process after its step, or at once when it still loads."""
        if self.connected:
            self.say({"do": "stop"})
        else:
            self._process.kill()
        try:
            await asyncio.to_thread(self._process.wait, _PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def abandon(self) -> None:
        """Ends the process, if it still runs: it ends when nobody holds the line."""
        self._sock.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
