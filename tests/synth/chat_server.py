"""A real chat endpoint for tests: answers what the schema asks for, and goes wrong when told to.

An answer that is paid for is a function of its request. It serves in a process of its own as
`python chat_server.py PORTFILE FAULTY DELAY`;
`paid` in its /stats counts the answers by the hash of their request.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

FAULTS = ("429", "500", "half", "envelope", "hang", "drop")
_SAID = (
    "river hill mill sea spring stone bridge wheel grain flour bread oven winter valley road cart "
    "horse field barn roof window lamp table letter town market price basket apple pear plum"
)
WORDS = _SAID.split()


class ChatServer:
    """Serves in a thread until `close`. `faulty`: the share of calls that go wrong."""

    def __init__(self, faulty: float = 0.0, delay: float = 0.0) -> None:
        self.faulty, self.delay = faulty, delay
        self.random = random.Random(7)
        self.paid: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        self.begun = 0  # calls, answered or not
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self._ready = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True).start()
        self._ready.wait()

    async def _run(self) -> None:
        self._stop, self._loop = asyncio.Event(), asyncio.get_running_loop()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=2048)
        self.port = server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._ready.set()
        await self._stop.wait()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                method, path, _ = head.split("\r\n")[0].split(" ")
                length = int(head.lower().split("content-length:")[1].split("\r\n")[0])
                body = await reader.readexactly(length)
                if not await self._route(method, path, head, body, writer):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    async def _route(
        self, method: str, path: str, head: str, body: bytes, writer: asyncio.StreamWriter
    ) -> bool:
        if path.endswith("/chat/completions"):
            return await self._chat(json.loads(body), writer)
        if path.endswith("/stats"):
            return await _send(writer, json.dumps({"paid": self.paid, "seen": self.seen}).encode())
        return await _send(writer, self._batch(method, path, head, body))

    async def _chat(self, asked: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        self.begun += 1
        await asyncio.sleep(self.delay)
        wrong = self.random.random() < self.faulty
        do = self.random.choice(FAULTS) if wrong else "good"
        same = random.Random(f"wrong {key(asked)}")  # what is paid for is always the same
        if do == "good" and same.random() < self.faulty / 3:
            do = same.choice(("malformed", "schema"))
        self.seen[do] += 1
        if do == "drop":
            return False
        if do == "hang":
            await asyncio.sleep(3)
            return False
        if do == "429":
            return await _send(writer, b"{}", "429 Busy", "Retry-After: 0.01\r\n")
        if do == "500":
            return await _send(writer, b"{}", "500 Broken")
        if do == "envelope":
            return await _send(writer, b'{"choices": []}')
        answer = completion(asked, {"malformed": "{n:", "schema": '{"no": 1}'}.get(do))
        if do == "half":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n" + answer[:20])
            await writer.drain()
            return False
        self.paid[key(asked)] += 1
        return await _send(writer, answer)

    # --- files and batches -----------------------------------------------------------------------

    def _batch(self, method: str, path: str, head: str, body: bytes) -> bytes:
        """The part of the batch API that a client needs: files, batches, their content."""
        parts = path.split("/v1/")[1].split("/")
        if parts[0] == "files" and method == "POST":
            mark = body.split(b"\r\n")[0]
            file = next(p for p in body.split(mark) if b"filename=" in p)
            self.files[name := f"file-{len(self.files)}"] = file.split(b"\r\n\r\n", 1)[1][:-2]
            return json.dumps({"id": name, "object": "file"}).encode()
        if parts[0] == "files":
            return self.files[parts[1]]
        if method == "POST":
            asked = json.loads(body)
            name = f"batch-{len(self.batches)}"
            self.batches[name] = {
                "id": name, "status": "validating", "input_file_id": asked["input_file_id"],
                "metadata": asked.get("metadata"), "polls": 0,
            }  # fmt: skip
            return json.dumps(self.batches[name]).encode()
        if len(parts) == 1 or parts[1].startswith("?"):
            return json.dumps({"data": list(self.batches.values())[::-1]}).encode()
        batch = self.batches[parts[1]]
        batch["polls"] += 1
        if batch["polls"] >= 2 and batch["status"] != "completed":
            self._finish(batch)
        return json.dumps(batch).encode()

    def _finish(self, batch: dict[str, Any]) -> None:
        good, bad = [], []
        for line in self.files[batch["input_file_id"]].splitlines():
            row = json.loads(line)
            if self.random.random() < self.faulty:
                response = {"status_code": 500, "body": {"error": {"message": "no luck"}}}
                bad.append({"custom_id": row["custom_id"], "response": response, "error": None})
                continue
            self.paid[key(row["body"])] += 1
            response = {"status_code": 200, "body": json.loads(completion(row["body"], None))}
            good.append({"custom_id": row["custom_id"], "response": response, "error": None})
        batch["status"] = "completed"
        for name, rows in (("output_file_id", good), ("error_file_id", bad)):
            if rows:
                self.random.shuffle(rows)
                self.files[batch["id"] + name] = "".join(
                    json.dumps(r) + "\n" for r in rows
                ).encode()
                batch[name] = batch["id"] + name


def key(asked: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:24]


def completion(asked: dict[str, Any], text: str | None) -> bytes:
    """A chat completion: `text`, or what the request's schema asks for."""
    if text is None:
        form = asked.get("response_format", {}).get("json_schema", {}).get("schema")
        value = fill(form, random.Random(key({**asked, "model": ""})))
        text = value if isinstance(value, str) else json.dumps(value)
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": text},
    }
    usage = {"prompt_tokens": 20, "completion_tokens": 1 + len(text) // 4}
    return json.dumps({"choices": [choice], "usage": usage}).encode()


def fill(schema: dict[str, Any] | None, rng: random.Random, name: str = "") -> Any:
    """Some value that holds to a schema; without one, some text."""
    if schema is None:
        return words(rng, 120)
    if "enum" in schema:
        return rng.choice(schema["enum"])
    kind = schema.get("type")
    if kind == "object":
        return {k: fill(v, rng, k) for k, v in schema.get("properties", {}).items()}
    if kind == "array":
        count = max(2, schema.get("minItems", 2))
        return [fill(schema["items"], rng, name) for _ in range(count + count % 2)]
    if kind in ("integer", "number"):
        return rng.randint(int(schema.get("minimum", 1)), int(schema.get("maximum", 5)))
    if kind == "boolean":
        return rng.random() < 0.5
    if name in ("answer", "result", "final"):
        return str(rng.randint(6, 7))
    return words(rng, 3 if name == "subject" else 40)


def words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(count)) + "."


async def _send(
    writer: asyncio.StreamWriter, body: bytes, status: str = "200 OK", extra: str = ""
) -> bool:
    head = f"HTTP/1.1 {status}\r\n{extra}Content-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()
    return True


if __name__ == "__main__":
    server = ChatServer(float(sys.argv[2]), float(sys.argv[3]))
    Path(sys.argv[1]).write_text(server.url)
    threading.Event().wait()
