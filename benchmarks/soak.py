"""A soak of the server: thousands of mixed requests, many of them bad, cancelled or too large.

A tiny random model is served; 24 clients send chats and completions, streamed and whole, with
forms, stop texts, forced tools, penalties and log-probabilities, and every few requests one that is
malformed, oversized, or that the client leaves. What must hold: no status of 500 or more, no answer
that does not come, all blocks of the cache back at the end, memory flat, and every finished answer
equal, token by token, to what the engine gives without a server.

    python benchmarks/soak.py [--requests 10000] [--clients 24] [--seed 0]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import torch

from phikit.chat.format import ChatFormat, chat_format
from phikit.chat.templates import PHI4_MINI
from phikit.chat.tokenizer import Tokenizer, train_bpe
from phikit.engine.base import Constraint, Request, Sampling, collect
from phikit.engine.local import LocalEngine
from phikit.models.checkpoint import save
from phikit.models.decoder import Decoder
from phikit.models.decoder_config import DecoderConfig
from phikit.models.load import load

PATIENCE = 60.0  # seconds for an answer; later counts as a hang
MOST_BYTES = 2**16  # of a body, on this server
GROWTH_MIB = 24.0  # of a process between a third of the requests and the end
SCHEMA = {
    "type": "object", "required": ["cat", "times"], "additionalProperties": False,
    "properties": {"cat": {"enum": ["sat", "ate"]}, "times": {"type": "integer", "maximum": 99}},
}  # fmt: skip
FORMS = (
    Constraint("json_schema", json.dumps(SCHEMA)),
    Constraint("regex", "(the|a) (cat|mat)[0-9]{1,3}"),
    Constraint("grammar", 'start: "[" (item ",")* item "]"\nitem: /[0-9]/'),
)


def make_model(directory: Path) -> None:
    """A tiny model with phi-4-mini's chat format, that talks at random."""
    text = ["the cat sat on the mat 🙂 € ü and said functools to them; then it ate all of it"] * 3
    special = tuple(dict.fromkeys((*PHI4_MINI.control(), *PHI4_MINI.inner)))
    tokenizer = train_bpe(text, 330, special)
    model = Decoder(
        DecoderConfig(
            vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=48, layers=2,
            heads=2, kv_heads=1, head_dim=16, max_positions=512,
        )
    )  # fmt: skip
    model.init_weights(torch.Generator().manual_seed(1))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    save(model, directory)
    tokenizer.save(directory)


@dataclass
class Ask:
    """One request: what is sent, and what the engine alone is asked (nothing, if it is bad)."""

    path: str
    body: bytes
    kind: str
    request: Request | None = None
    stream: bool = False
    leave: float | None = None  # seconds after which the client goes away
    n: int = 1


@dataclass
class Findings:
    statuses: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    finished: dict[int, list[list[int]]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    memory: list[tuple[int, ...]] = field(default_factory=list)


class Mix:
    """Draws requests; the same seed draws the same ones."""

    def __init__(self, seed: int, tokenizer: Tokenizer, form: ChatFormat) -> None:
        self.draw, self.tokenizer, self.form = random.Random(seed), tokenizer, form
        self.words = ("the cat sat on", "the cat ate", "mat 🙂", "then it said € to them")

    def ask(self) -> Ask:
        kind = self.draw.random()
        if kind < 0.10:
            return self._malformed()
        if kind < 0.12:
            return self._oversized()
        if kind < 0.15:
            body = {"model": "tiny", "prompt": self.draw.choice(self.words)}
            return Ask("/tokenize", json.dumps(body).encode(), "tokenize")
        return self._right()

    def _settings(self) -> tuple[dict[str, Any], Sampling]:
        draw = self.draw
        told: dict[str, Any] = {
            "temperature": draw.choice([0, 0.7, 1]), "top_p": draw.choice([1, 1, 0.9]),
            "top_k": draw.choice([0, 0, 20]), "max_tokens": draw.randint(1, 48),
        }  # fmt: skip
        if draw.random() < 0.2:
            told["frequency_penalty"] = 0.5
        if draw.random() < 0.2:
            told["stop"] = draw.sample(["a", "the", "€", "\n", "it s"], 2)
        sampling = Sampling(**{k: tuple(v) if k == "stop" else v for k, v in told.items()})
        return told, sampling

    def _right(self) -> Ask:
        draw = self.draw
        told, sampling = self._settings()
        n, seed, stream = draw.randint(1, 3), draw.randint(0, 99), draw.random() < 0.5
        told |= {"model": "tiny", "n": n, "seed": seed, "stream": stream, "return_token_ids": True}
        constraint = draw.choice(FORMS) if draw.random() < 0.15 else None
        if constraint is not None:
            value: Any = constraint.source
            if constraint.kind == "json_schema":
                value = {"name": "it", "schema": json.loads(constraint.source)}
            told["response_format"] = {"type": constraint.kind, constraint.kind: value}
        if draw.random() < 0.5:
            path, kind = "/v1/chat/completions", "chat"
            messages = [{"role": "user", "content": draw.choice(self.words)}]
            ids = self.form.render(messages, generation_prompt=True).ids
            told["messages"] = messages
            if draw.random() < 0.2:
                told |= {"logprobs": True, "top_logprobs": 2}
        else:
            path, kind = "/v1/completions", "completion"
            ids = self.tokenizer.encode(draw.choice(self.words)) + draw.choices(range(200), k=3)
            told["prompt"] = ids
        request = Request(tuple(ids), self._with(sampling, constraint), n, seed)
        leave = draw.random() * 0.4 if draw.random() < 0.2 else None
        kind += (" stream" if stream else "") + (", left" if leave is not None else "")
        return Ask(path, json.dumps(told).encode(), kind, request, stream, leave, n)

    def _with(self, sampling: Sampling, constraint: Constraint | None) -> Sampling:
        return replace(sampling, constraint=constraint, stop_ids=self.form.stop_ids)

    def _malformed(self) -> Ask:
        draw, right = self.draw, self._right()
        body = json.loads(right.body)
        way = draw.randrange(6)
        if way == 0:
            raw = right.body[: draw.randrange(len(right.body))]
        elif way == 1:
            raw = bytes(draw.randrange(256) for _ in range(draw.randrange(60)))
        elif way == 2:
            name = draw.choice(sorted(body))
            raw = json.dumps(body | {name: draw.choice([[], {}, "x", -1, 1e300, True])}).encode()
        elif way == 3:
            raw = json.dumps(body | {"colour": 1}).encode()
        elif way == 4:
            raw = json.dumps(body | {"response_format": {"type": "regex", "regex": "(a"}}).encode()
        else:
            raw = json.dumps(body | {"model": "tinny"}).encode()
        return Ask(right.path, raw, "malformed")

    def _oversized(self) -> Ask:
        body = {"model": "tiny", "prompt": "cat " * MOST_BYTES}
        return Ask("/v1/completions", json.dumps(body).encode(), "oversized")


# --- sending -------------------------------------------------------------------------------------


async def send(http: httpx.AsyncClient, number: int, ask: Ask, found: Findings) -> None:
    got: list[list[int]] = [[] for _ in range(ask.n)]
    headers = {"Content-Type": "application/json"}
    content = (ask.body[i : i + 999] for i in range(0, len(ask.body), 999))
    chunked = ask.kind == "oversized" and number % 2 == 0
    async with http.stream(
        "POST", ask.path, content=_async(content) if chunked else ask.body, headers=headers
    ) as answer:
        found.statuses[str(answer.status_code)] += 1
        if answer.status_code >= 500:
            found.wrong.append(f"{answer.status_code} to {ask.body[:200]!r}")
        if ask.kind == "oversized" and answer.status_code != 413:
            found.wrong.append(f"an oversized body got {answer.status_code}")
        if ask.request is None or answer.status_code != 200:
            await answer.aread()
            if ask.request is not None and answer.status_code != 429:
                found.wrong.append(f"{answer.status_code} to a right request: {answer.text[:200]}")
        elif not ask.stream:
            choices = json.loads(await answer.aread())["choices"]
            found.finished[number] = [c["token_ids"] for c in choices]
        else:
            async for line in answer.aiter_lines():
                if line == "data: [DONE]":
                    found.finished[number] = got
                elif line:
                    for choice in json.loads(line.removeprefix("data: "))["choices"]:
                        got[choice["index"]] += choice.get("token_ids", [])


async def _async(pieces: Iterator[bytes]) -> Any:
    for piece in pieces:
        yield piece


async def everything(
    url: str, asks: list[Ask], clients: int, found: Findings, pids: list[int]
) -> None:
    todo = iter(enumerate(asks))
    marks = {len(asks) * i // 12 for i in range(12)}

    async def client() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE) as http:
            for number, ask in todo:
                if number in marks:
                    found.memory.append(tuple(map(resident, pids)))
                found.kinds[ask.kind] += 1
                try:
                    async with asyncio.timeout(PATIENCE if ask.leave is None else ask.leave):
                        await send(http, number, ask, found)
                except TimeoutError:
                    if ask.leave is None:
                        found.wrong.append(f"no answer in {PATIENCE:.0f} s to {ask.body[:200]!r}")
                except httpx.TransportError as error:
                    if ask.kind != "oversized":  # the server hangs up on those
                        found.wrong.append(f"{type(error).__name__} at {ask.body[:200]!r}")

    await asyncio.gather(*(client() for _ in range(clients)))


def resident(pid: int) -> int:
    """MiB of memory that a process holds."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", text)
    return int(found[1]) // 1024 if found else 0


def children(pid: int) -> list[int]:
    return [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def blocks_in_use(url: str) -> dict[str, float]:
    """What is still held, after up to twenty seconds of quiet."""
    names = ("phikit_cache_blocks_used", "phikit_samples_running", "phikit_samples_waiting")
    held: dict[str, float] = {}
    for _ in range(100):
        text = httpx.get(f"{url}/metrics").text
        held = {}
        for name in names:
            value = re.search(rf'^{name}{{model="tiny"}} (\S+)$', text, re.M)
            if value is None or float(value[1]):
                held[name] = float(value[1]) if value else -1.0
        if not held:
            break
        time.sleep(0.2)
    return held


# --- what it should have been --------------------------------------------------------------------


def compare(model: Path, asks: list[Ask], found: Findings) -> int:
    """How many finished answers differ from the offline engine's."""
    engine = LocalEngine(load(model), max_batch=64, tokenizer=Tokenizer.load(model))
    numbers = sorted(found.finished)
    requests = [r for i in numbers if (r := asks[i].request) is not None]
    different = 0
    for number, rollouts in zip(numbers, collect(engine, requests), strict=True):
        if found.finished[number] != [list(r.completion_ids) for r in rollouts]:
            different += 1
            found.wrong.append(f"another answer than offline: {asks[number].body[:300]!r}")
    return different


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        model = Path(temporary) / "tiny"
        make_model(model)
        tokenizer = Tokenizer.load(model)
        mix = Mix(options.seed, tokenizer, chat_format(tokenizer))
        asks = [mix.ask() for _ in range(options.requests)]
        found = Findings()
        command = [
            sys.executable, "-m", "phikit", "serve", f"tiny={model}", "--port", "0", "--cache",
            "0.02", "--max-body", str(MOST_BYTES / 2**20), "--rows", "16",
        ]  # fmt: skip
        server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            assert server.stderr is not None
            url = ""
            while not url:
                line = server.stderr.readline()
                assert line, "the server did not start"
                at = re.search(r"listening on (\S+)", line)
                url = at[1] if at else ""
            pids = [server.pid, *children(server.pid)]
            start = time.perf_counter()
            asyncio.run(everything(url, asks, options.clients, found, pids))
            seconds = time.perf_counter() - start
            held = blocks_in_use(url)
            found.memory.append(tuple(map(resident, pids)))
        finally:
            server.terminate()
            server.wait(timeout=60)
        different = compare(model, asks, found)
    return report(options.requests, seconds, held, different, found)


def report(
    count: int, seconds: float, held: dict[str, float], different: int, found: Findings
) -> int:
    third = found.memory[len(found.memory) // 3]
    growth = max(b - a for a, b in zip(third, found.memory[-1], strict=True))
    errors = sum(n for status, n in found.statuses.items() if status >= "500")
    print(f"{count} requests in {seconds:.0f} s; statuses {dict(sorted(found.statuses.items()))}")
    for kind, number in sorted(found.kinds.items()):
        print(f"{number:>8}  {kind}")
    print(f"finished answers: {len(found.finished)}, of them unlike the offline ones: {different}")
    print(f"held at the end: {held or 'nothing'}")
    print("MiB of server and engine: " + ", ".join(f"{a}+{b}" for a, b in found.memory))
    for text in found.wrong[:10]:
        print("WRONG:", text)
    rows = [
        {"name": name, "ours": ours, "peer": 0, "ratio": None, "goal": goal, "met": ours <= goal}
        for name, ours, goal in (
            ("answers of 500 and more", errors, 0),
            ("answers that did not come, or broke off", len(found.wrong) - errors - different, 0),
            ("answers unlike the offline ones", different, 0),
            ("kinds of things held at the end", len(held), 0),
            ("growth in MiB after the first third", growth, GROWTH_MIB),
        )
    ]
    print(json.dumps({"bench": "soak", "rows": rows}))
    return 0 if all(row["met"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
