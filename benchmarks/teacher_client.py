"""How near the teacher's client comes to ideal: 500 calls in flight, a server that takes 1 s.

The server runs in a process of its own. Ideal is in_flight / delay calls a second; a client's
processor time is its own process's. The peer is the openai client, asked by plain asyncio in the
same run, turn by turn; it stores nothing. "Bare" is a client that sends the same bytes again as
soon as an answer is there: what of ideal this server and this machine leave to anyone.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

import httpx

from phikit.synth.remote_teacher import Endpoint, RemoteTeacher
from phikit.synth.replies import ReplyStore, Request

_ANSWER = json.dumps(
    {
        "choices": [{"message": {"content": "word " * 100}}],
        "usage": {"prompt_tokens": 20, "completion_tokens": 100},
    }
).encode()
_RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(_ANSWER), _ANSWER)


def serve(delay: float, port: multiprocessing.Queue[int]) -> None:
    """Answers every call after `delay` seconds."""

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                await asyncio.sleep(delay)
                writer.write(_RESPONSE)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def run() -> None:
        server = await asyncio.start_server(one, "127.0.0.1", 0, backlog=2048)
        port.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


async def measure(url: str, calls: int, in_flight: int, store: Path) -> tuple[float, float]:
    """(seconds, processor seconds) for `calls`."""
    kept = ReplyStore(store)
    asked = [Request(({"role": "user", "content": f"write {i}"},)) for i in range(calls)]
    endpoint = Endpoint(url=url, model="m", in_flight=in_flight, timeout=30)
    async with RemoteTeacher(endpoint, kept) as teacher:
        start, used = time.perf_counter(), time.process_time()
        outcomes = await asyncio.gather(*(teacher.ask(r) for r in asked))
        seconds, used = time.perf_counter() - start, time.process_time() - used
    await kept.close()
    if any(o.status != "accepted" for o in outcomes):
        raise SystemExit("a call was lost")
    return seconds, used


async def measure_peer(url: str, calls: int, in_flight: int) -> tuple[float, float]:
    """(seconds, processor seconds) for `calls` by the openai client."""
    import openai

    slots = asyncio.Semaphore(in_flight)
    limits = httpx.Limits(max_connections=in_flight, max_keepalive_connections=in_flight)
    http = httpx.AsyncClient(limits=limits, timeout=60)
    async with openai.AsyncOpenAI(base_url=url, api_key="-", http_client=http) as client:

        async def one(number: int) -> str | None:
            async with slots:
                answer = await client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": f"write {number}"}]
                )
                return answer.choices[0].message.content

        start, used = time.perf_counter(), time.process_time()
        answers = await asyncio.gather(*map(one, range(calls)))
        seconds, used = time.perf_counter() - start, time.process_time() - used
    if not all(answers):
        raise SystemExit("a call was lost")
    return seconds, used


class _Bare(asyncio.Protocol):
    """Sends `request` as long as `left` holds a call."""

    def __init__(self, request: bytes, left: list[None], over: asyncio.Future[None]) -> None:
        self.request, self.left, self.over, self.got = request, left, over, 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.send()

    def send(self) -> None:
        if self.left:
            self.left.pop()
            self.transport.write(self.request)
        else:
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        self.got += len(data)
        if self.got == len(_RESPONSE):
            self.got = 0
            self.send()

    def connection_lost(self, error: Exception | None) -> None:
        self.over.set_result(None)


async def measure_bare(url: str, calls: int, in_flight: int) -> tuple[float, float]:
    """(seconds, processor seconds) for `calls` by a client that does nothing else."""
    loop, left = asyncio.get_running_loop(), [None] * calls
    body = b"x" * 150
    request = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    place = urlsplit(url)
    ends: list[asyncio.Future[None]] = [loop.create_future() for _ in range(in_flight)]
    start, used = time.perf_counter(), time.process_time()
    for end in ends:
        made = functools.partial(_Bare, request, left, end)
        await loop.create_connection(made, place.hostname, place.port)
    await asyncio.gather(*ends)
    return time.perf_counter() - start, time.process_time() - used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--in-flight", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=40, help="calls are this × in flight")
    parser.add_argument("--peer-rounds", type=int, default=4, help="the same of the slower peer")
    parser.add_argument("--delay", type=float, default=1.0)
    parser.add_argument("--turns", type=int, default=3, help="of each client; the median counts")
    args = parser.parse_args()
    port: multiprocessing.Queue[int] = multiprocessing.Queue()
    server = multiprocessing.Process(target=serve, args=(args.delay, port), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{port.get()}/v1"
    calls, fewer = args.in_flight * args.rounds, args.in_flight * args.peer_rounds
    ideal, their_ideal = args.rounds * args.delay, args.peer_rounds * args.delay
    ours, peer, bare = [], [], []
    for _ in range(args.turns):
        with tempfile.TemporaryDirectory() as folder:
            ours.append(asyncio.run(measure(url, calls, args.in_flight, Path(folder, "r"))))
        bare.append(asyncio.run(measure_bare(url, calls, args.in_flight)))
        peer.append(asyncio.run(measure_peer(url, fewer, args.in_flight)))
    server.terminate()
    rows = []
    print(
        f"{calls} calls (openai {fewer}), {args.in_flight} in flight, {args.delay} s each; "
        f"medians of {args.turns}"
    )
    print(f"{'':<18}{'ours':>8}{'bare':>8}{'openai':>8}{'goal':>9}")
    for name, goal, of in (
        ("share of ideal", 0.95, lambda seconds, used, least: least / seconds),
        ("share of a core", 0.5, lambda seconds, used, least: used / seconds),
    ):
        mine, most, theirs = (
            median(of(*turn, least) for turn in turns)
            for turns, least in ((ours, ideal), (bare, ideal), (peer, their_ideal))
        )
        met = mine >= goal if name == "share of ideal" else mine <= goal
        sign = "≥" if name == "share of ideal" else "≤"
        print(f"{name:<18}{mine:>8.1%}{most:>8.1%}{theirs:>8.1%}{sign + f' {goal:.0%}':>9}")
        rows.append({"name": name, "ours": mine, "bare": most, "peer": theirs,
                     "ratio": mine / theirs, "goal": goal, "met": met})  # fmt: skip
    print(json.dumps({"bench": "teacher-client", "rows": rows}))


if __name__ == "__main__":
    main()
