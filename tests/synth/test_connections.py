"""Kept connections beside servers that answer in their own ways, or not."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from phikit.synth.connections import Broken, Connections, HttpAnswer

WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def call(
    scripts: Sequence[Sequence[bytes]], calls: int = 1, wait: float = 0.0
) -> tuple[list[HttpAnswer], int]:
    """The answers, and how many connections were made.

    Args:
        scripts: of each connection, what it is sent after each request; b"" ends it. The last
            script is that of all connections that follow.
    """
    made = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal made
        script = scripts[min(made, len(scripts) - 1)]
        made += 1
        for said in script:
            if not said:
                writer.close()
                return
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0]))
            for i in range(0, len(said), 7):  # in drips
                writer.write(said[i : i + 7])
                await writer.drain()
                await asyncio.sleep(0)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    connections, answers = Connections(url, {}), []
    for _ in range(calls):
        answers.append(await asyncio.wait_for(connections.call("/x", b"{}"), 5))
        await asyncio.sleep(wait)
    await connections.close()
    server.close()
    return answers, made


def test_one_connection_serves_one_call_after_the_other() -> None:
    answers, made = asyncio.run(call([[WHOLE] * 5], calls=5))
    assert made == 1 and [(a.status, a.body) for a in answers] == [(200, b"ok")] * 5


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n",
        b"HTTP/1.1 102 Processing\r\n\r\n" + WHOLE,
    ],
    ids=["until the end of the connection", "chunked", "after another head"],
)
def test_an_answer_is_whole_however_its_length_is_told(said: bytes) -> None:
    (answer,), _ = asyncio.run(call([[said, b""]]))
    assert (answer.status, answer.body) == (200, b"ok")


@pytest.mark.parametrize("said", [b"", WHOLE[:20], WHOLE.replace(b": 2", b": 9")])
def test_a_connection_that_ends_early_is_broken_at_once(said: bytes) -> None:
    with pytest.raises(Broken):
        asyncio.run(call([[said, b""]]))


def test_what_comes_unasked_is_nobodys_answer() -> None:
    late = b"HTTP/1.1 408 Too late\r\nContent-Length: 0\r\n\r\n"
    answers, made = asyncio.run(call([[WHOLE + late, WHOLE], [WHOLE]], calls=2, wait=0.1))
    assert made == 2 and [a.status for a in answers] == [200, 200]
