"""What HTTP costs: the same requests over the server, and to the engine without it.

32 clients ask one after the other, each its next request when the last is answered; the requests
share a prompt's beginning, as those of one application do. The engine without HTTP gets the same
requests in the same way: 32 in the making, and the next one enters when one has finished. Both
run in one process of their own with the same threads, in turns; medians over the turns.

    python benchmarks/server.py MODEL [--clients 32] [--each 10] [--tokens 32] [--turns 5]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from phikit.chat.load import load_tokenizer
from phikit.engine.base import Request, Sampling
from phikit.engine.runners import rows_to_pack, runner_of
from phikit.engine.scheduler import Scheduler
from phikit.fetch import resolve
from phikit.memory import keep_freed_memory
from phikit.models.load import load

GOAL = 0.9
CACHE_GIB = 0.5


def requests_of(model: Path, count: int, tokens: int) -> list[Request]:
    tokenizer = load_tokenizer(model)
    text = "You answer questions about towns, shortly and correctly, in one sentence each. "
    # of unlike lengths, as answers are: of one length, all clients of an engine would go in step
    lengths = [tokens // 2 + i * 7 % (tokens + 1) for i in range(count)]
    return [
        Request(
            tuple(tokenizer.encode(f"{text}Question {i}: where is it?")),
            Sampling(max_tokens=length), 1, i,
        )
        for i, length in enumerate(lengths)
    ]  # fmt: skip


def alone(scheduler: Scheduler, requests: list[Request], clients: int) -> float:
    """Tokens per second of the engine by itself, `clients` requests in the making."""
    todo, done, start = list(requests), 0, time.perf_counter()
    for request in todo[:clients]:
        scheduler.submit(request)
    del todo[:clients]
    while scheduler.busy:
        for finished in scheduler.step().finished:
            done += len(finished.rollout.completion_ids)
            if todo:
                scheduler.submit(todo.pop(0))
    return done / (time.perf_counter() - start)


class Connection:
    """A client's connection: no more of HTTP than this server speaks, since the client computes on
    the cores that the engine computes on."""

    def __init__(self, url: str) -> None:
        self.host, port = re.findall(r"//(.*):(\d+)", url)[0]
        self.port = int(port)

    async def __aenter__(self) -> Connection:
        self.reader, self.writer = await asyncio.open_connection(self.host, self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def post(self, path: str, body: dict[str, Any]) -> bytes:
        """The body of the answer, its chunks as they came."""
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        self.writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        answer = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        assert answer.startswith(b"http/1.1 200"), answer
        if b"transfer-encoding: chunked" in answer:
            return await self.reader.readuntil(b"\r\n0\r\n\r\n")
        size = int(re.findall(rb"content-length: (\d+)", answer)[0])
        return await self.reader.readexactly(size)


async def over_http(url: str, requests: list[Request], clients: int, stream: bool) -> float:
    """Tokens per second that the clients receive."""
    todo, received = iter(requests), 0

    async def client() -> None:
        nonlocal received
        async with Connection(url) as http:
            for request in todo:
                body = {
                    "model": "model", "prompt": list(request.prompt_ids), "seed": request.seed,
                    "max_tokens": request.sampling.max_tokens, "ignore_eos": True, "stream": stream,
                }  # fmt: skip
                answer = await http.post("/v1/completions", body)
                if stream:
                    assert b"data: [DONE]" in answer
                    received += request.sampling.max_tokens
                else:
                    received += json.loads(answer)["usage"]["completion_tokens"]

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return received / (time.perf_counter() - start)


def seconds_of(pid: int) -> float:
    """Processor seconds that a process has taken, in all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    return [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--each", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=32, help="of an answer, in the mean")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    keep_freed_memory()  # as the server's engine does
    model, clients = resolve(options.model), options.clients
    requests = requests_of(model, clients * options.each, options.tokens)
    weights = load(model)
    runner = runner_of(weights, rows_to_pack(weights, clients))  # as the server has it
    scheduler = Scheduler(runner, max_rows=clients, cache_bytes=int(CACHE_GIB * 2**30))
    command = [
        sys.executable, "-m", "phikit", "serve", f"model={model}", "--port", "0",
        "--rows", str(clients), "--cache", str(CACHE_GIB),
    ]  # fmt: skip
    speeds: dict[str, list[float]] = {"alone": [], "whole": [], "stream": []}
    took: dict[str, list[float]] = {}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        url = ""
        while not url:
            found = re.search(r"listening on (\S+)", line := process.stderr.readline())
            url = found[1] if found else ""
            assert line, "the server did not start"
        pids = [*children(process.pid), process.pid, os.getpid()]
        alone(scheduler, requests[:clients], clients)  # warm up
        asyncio.run(over_http(url, requests[:clients], clients, False))
        for turn in range(options.turns):
            # both have a prefix cache, and both keep it from turn to turn
            before = [time.process_time()]
            speeds["alone"].append(alone(scheduler, requests, clients))
            took["alone"] = [time.process_time() - before[0], 0.0, 0.0]
            for name in ("whole", "stream"):
                before = [seconds_of(pid) for pid in pids]
                rate = asyncio.run(over_http(url, requests, clients, name == "stream"))
                speeds[name].append(rate)
                took[name] = [seconds_of(p) - b for p, b in zip(pids, before, strict=True)]
            print(f"turn {turn + 1}: " + ", ".join(f"{k} {v[-1]:.1f}" for k, v in speeds.items()),
                  flush=True)  # fmt: skip
    finally:
        process.terminate()
        process.wait(timeout=60)
    print(f"\n{clients} clients × {options.each} requests × {options.tokens} tokens, {model.name}")
    print(f"{'tokens/s':>32} {'over HTTP':>10} {'alone':>8} {'ratio':>6}")
    rows = []
    peer = statistics.median(speeds["alone"])
    for name, label in (("whole", "answers in one piece"), ("stream", "streams")):
        ours = statistics.median(speeds[name])
        ratio = statistics.median(a / b for a, b in zip(speeds[name], speeds["alone"], strict=True))
        print(f"{label:>32} {ours:>10.1f} {peer:>8.1f} {ratio:>6.2f}")
        rows.append(
            {"name": label, "ours": round(ours, 1), "peer": round(peer, 1),
             "ratio": round(ratio, 3), "goal": GOAL, "met": ratio >= GOAL}
        )  # fmt: skip
    drawn = sum(request.sampling.max_tokens for request in requests) / 1000
    for name, parts in took.items():
        engine, server, client = (part / drawn for part in parts)
        print(
            f"processor seconds per 1,000 tokens, {name}: engine {engine:.2f}, "
            f"server {server:.3f}, clients {client:.3f}"
        )
    print("The limit is the engine by itself: the peer.")
    print(json.dumps({"bench": "server", "rows": rows}))


if __name__ == "__main__":
    main()
