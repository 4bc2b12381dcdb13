"""Messages between the server and its engines: JSON, each with its length before it.

An engine is a process of its own, so that neither waits for the other's interpreter, and so that a
step's arithmetic runs in a main thread. There is one message per step, not one per token.
"""

from __future__ import annotations

import dataclasses
import json
import select
import socket
import struct
from collections.abc import Sequence
from typing import Any

from phikit.engine.base import Constraint, Request, Sampling

_LENGTH = struct.Struct("<I")
_PIECE = 2**20

Message = dict[str, Any]


def pack(message: Message) -> bytes:
    data = json.dumps(message, separators=(",", ":")).encode()
    return _LENGTH.pack(len(data)) + data


class Frames:
    """Puts messages together from the bytes that come."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def take(self, data: bytes) -> list[Message]:
        self._bytes += data
        found, at = [], 0
        while len(self._bytes) - at >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._bytes, at)
            end = at + _LENGTH.size + size
            if len(self._bytes) < end:
                break
            found.append(json.loads(self._bytes[at + _LENGTH.size : end]))
            at = end
        del self._bytes[:at]
        return found


class Line:
    """A blocking end of a socket.

    Attributes:
        closed: the other end is gone.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.closed, self._frames = sock, False, Frames()

    def send(self, message: Message) -> None:
        try:
            self.sock.sendall(pack(message))
        except OSError:
            self.closed = True

    def receive(self, seconds: float | None = 0) -> list[Message]:
        """What has come; waits so long for the first bytes (None: for ever)."""
        found: list[Message] = []
        while not self.closed:
            ready, _, _ = select.select([self.sock], [], [], 0 if found else seconds)
            if not ready:
                return found
            try:
                data = self.sock.recv(_PIECE)
            except OSError:
                data = b""
            if not data:
                self.closed = True
            found += self._frames.take(data)
        return found


def pack_requests(requests: Sequence[Request]) -> Message:
    """Requests as a message says them; prompts and settings that several share are said once."""
    prompts: dict[tuple[int, ...], int] = {}
    settings: dict[Sampling, int] = {}
    rows = []
    for r in requests:
        prompt = prompts.setdefault(r.prompt_ids, len(prompts))
        sampling = settings.setdefault(r.sampling, len(settings))
        rows.append([prompt, sampling, r.n, r.seed, r.first_sample, r.adapter])
    return {
        "prompts": list(prompts),
        "settings": [dataclasses.asdict(s) for s in settings],
        "rows": rows,
    }


def unpack_requests(message: Message) -> list[Request]:
    prompts = [tuple(ids) for ids in message["prompts"]]
    settings = [_sampling(told) for told in message["settings"]]
    return [
        Request(prompts[prompt], settings[sampling], *rest)
        for prompt, sampling, *rest in message["rows"]
    ]


def _sampling(told: Message) -> Sampling:
    constraint = told.pop("constraint")
    return Sampling(
        **{**told, "stop_ids": tuple(told["stop_ids"]), "stop": tuple(told["stop"]),
           "logit_bias": tuple((token, value) for token, value in told["logit_bias"])},
        constraint=Constraint(**constraint) if constraint else None,
    )  # fmt: skip
