"""The teacher behind an endpoint that goes wrong in every way: nothing lost, nothing twice."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from phikit.synth.connections import Connections, HttpAnswer
from phikit.synth.remote_teacher import Endpoint, RemoteTeacher, completion
from phikit.synth.replies import Outcome, ReplyStore, Request

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
FAULTS = ("429", "500", "half", "envelope", "malformed", "schema", "hang", "drop")


class Server:
    """A chat endpoint that goes wrong: a share `faulty` of its calls, in random order."""

    def __init__(self, faulty: float = 0.0, delay: float = 0.0) -> None:
        self.faulty, self.delay = faulty, delay
        self.random = random.Random(5)
        self.paid: Counter[str] = Counter()  # well-formed answers by prompt
        self.seen: Counter[str] = Counter()  # what was done
        self.most = self.now = 0
        self.ready = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True).start()
        self.ready.wait()

    async def _run(self) -> None:
        self.stop = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=2048)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        self.ready.set()
        await self.stop.wait()

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.stop.set)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                body = json.loads(await reader.readexactly(length))
                self.now += 1
                self.most = max(self.most, self.now)
                try:
                    if not await self._one(body, writer):
                        return
                finally:
                    self.now -= 1
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    async def _one(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        prompt = body["messages"][-1]["content"]
        await asyncio.sleep(self.delay)
        do = self.random.choice(FAULTS) if self.random.random() < self.faulty else "good"
        self.seen[do] += 1
        digest = int(hashlib.sha256(prompt.encode()).hexdigest()[:6], 16)
        text = {"malformed": "{n:", "schema": '{"n": "one"}'}.get(do, json.dumps({"n": digest}))
        usage = {"prompt_tokens": 10, "completion_tokens": 5}
        answer = json.dumps({"choices": [{"message": {"content": text}}], "usage": usage})
        if do == "drop":
            return False
        if do == "hang":
            await asyncio.sleep(3)
            return False
        status, extra = "200 OK", ""
        if do in ("429", "500"):
            status, answer = f"{do} Bad", "{}"
            extra = "Retry-After: 0.01\r\n" if do == "429" else ""
        if do == "envelope":
            answer = '{"choices": []}'
        data = f"HTTP/1.1 {status}\r\n{extra}Content-Length: {len(answer)}\r\n\r\n{answer}".encode()
        if do in ("good", "malformed", "schema"):
            self.paid[prompt] += 1
        writer.write(data[: len(data) - len(answer) // 2] if do == "half" else data)
        await writer.drain()
        return do != "half"


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def requests(count: int) -> list[Request]:
    return [Request(({"role": "user", "content": f"item {i}"},), SCHEMA) for i in range(count)]


def run(
    server: Server, store: Path, asked: list[Request], **settings: Any
) -> tuple[list[Outcome], RemoteTeacher]:
    async def work() -> tuple[list[Outcome], RemoteTeacher]:
        kept = ReplyStore(store)
        given = {"pause": 0.005, "timeout": 1.5, "say_schema": False, **settings}
        endpoint = Endpoint(url=server.url, model="m", **given)
        async with RemoteTeacher(endpoint, kept) as teacher:
            outcomes = await asyncio.gather(*(teacher.ask(r) for r in asked))
        await kept.close()
        return outcomes, teacher

    return asyncio.run(work())


@pytest.mark.parametrize("count", [1000, pytest.param(5000, marks=pytest.mark.slow)])
def test_every_request_is_accounted_for_once_whatever_the_server_does(
    server: Server, tmp_path: Path, count: int
) -> None:
    server.faulty = 0.4
    asked = requests(count)
    outcomes, _ = run(server, tmp_path / "r", asked, in_flight=100, tries=4)
    assert set(server.seen) == {*FAULTS, "good"}
    assert [o.request for o in outcomes] == [r.key("m") for r in asked]
    tally = Counter(o.status for o in outcomes)
    assert set(tally) <= {"accepted", "rejected", "failed"}
    assert tally["accepted"] > 0.9 * count
    assert all(o.reason for o in outcomes if o.status != "accepted")
    for request, outcome in zip(asked, outcomes, strict=True):
        if outcome.status == "accepted":
            digest = hashlib.sha256(request.messages[0]["content"].encode()).hexdigest()
            assert outcome.value == {"n": int(digest[:6], 16)}
    rows = [json.loads(line) for line in (tmp_path / "r").read_text().splitlines()]
    ids = [(row["request"], row["attempt"]) for row in rows]
    assert len(ids) == len(set(ids))

    # nothing hangs now, and a busy machine that is slow for a second must not cause a second call
    server.faulty = 0.0
    again, teacher = run(server, tmp_path / "r", asked, in_flight=100, timeout=60.0)
    assert teacher.calls == tally["failed"]  # all that was answered is never asked again
    assert Counter(o.status for o in again)["failed"] == 0


def test_a_wrong_reply_is_asked_again_and_then_rejected(server: Server, tmp_path: Path) -> None:
    server.faulty, server.random = 1.0, _Always("schema")
    (outcome,), teacher = run(server, tmp_path / "r", requests(1), rewrites=2)
    assert outcome.status == "rejected"
    assert outcome.reason == "wrong schema: reply.n should be of type integer"
    assert teacher.calls == 3 and len(outcome.replies) == 3


class _Always(random.Random):
    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def choice(self, seq: Any) -> Any:
        return self.what


def test_a_server_that_fails_always_gives_a_failure_with_its_reason(
    server: Server, tmp_path: Path
) -> None:
    server.faulty, server.random = 1.0, _Always("500")
    (outcome,), teacher = run(server, tmp_path / "r", requests(1), tries=3)
    assert (outcome.status, outcome.reason) == ("failed", "status 500 (3 tries)")
    assert teacher.calls == 3


def test_a_stop_waits_for_an_answer_no_longer_than_its_time_out(
    server: Server, tmp_path: Path
) -> None:
    server.delay = 60

    async def work() -> float:
        store = ReplyStore(tmp_path / "r")
        endpoint = Endpoint(url=server.url, model="m", timeout=0.5, pause=0.01, in_flight=2)
        async with RemoteTeacher(endpoint, store) as teacher:
            asked = [asyncio.create_task(teacher.ask(r)) for r in requests(9)]
            while server.now < 2:
                await asyncio.sleep(0.01)
            begun = time.monotonic()
        assert teacher.calls == 2
        ended = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(one) for one in ended} == {asyncio.CancelledError}
        await store.close()
        return time.monotonic() - begun

    assert asyncio.run(work()) < 10


def test_the_budget_is_never_exceeded_and_the_rest_is_unsent(
    server: Server, tmp_path: Path
) -> None:
    asked = requests(200)
    outcomes, teacher = run(server, tmp_path / "r", asked, max_total_tokens=3000, in_flight=2)
    spent = teacher.store.prompt_tokens + teacher.store.completion_tokens
    tally = Counter(o.status for o in outcomes)
    assert spent <= 3000 and tally["accepted"] == spent / 15 and tally["accepted"] > 50
    assert tally["accepted"] + tally["unsent"] == 200


def test_what_a_prompt_takes_is_estimated_with_the_form_it_asks_for(tmp_path: Path) -> None:
    plain = Request(({"role": "user", "content": "x"},))
    formed = Request(plain.messages, {**SCHEMA, "properties": {"n" * 3000: {"type": "integer"}}})
    kana = Request(({"role": "user", "content": "かな" * 1000},))
    teacher = RemoteTeacher(
        Endpoint(url="http://127.0.0.1:1/v1", model="m"), ReplyStore(tmp_path / "r")
    )
    assert teacher.estimate(formed) > teacher.estimate(plain) + 900
    assert teacher.estimate(kana) >= 2000


@pytest.mark.parametrize(
    ("usage", "tokens"), [(None, (9, 1)), ({"completion_tokens": None, "prompt_tokens": 4}, (4, 1))]
)
def test_a_completion_without_counts_is_an_answer(usage: Any, tokens: tuple[int, int]) -> None:
    choice = {"message": {"content": "yes"}, "finish_reason": "length"}
    answer = completion({"choices": [choice], "usage": usage}, 9)
    assert answer == ("yes", *tokens, True)
    with pytest.raises(ValueError, match="no text"):
        completion({"choices": [{"message": {"content": [{"type": "text"}]}}]}, 9)


def test_equal_requests_at_the_same_time_are_one_call(server: Server, tmp_path: Path) -> None:
    outcomes, teacher = run(server, tmp_path / "r", requests(1) * 20)
    assert teacher.calls == 1 and len({o.request for o in outcomes}) == 1


def test_a_request_is_prepared_only_shortly_before_its_turn(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.delay, prepared, key = 0.02, [], Request.key

    def counted(request: Request, model: str) -> str:
        prepared.append(sum(server.seen.values()))
        return key(request, model)

    monkeypatch.setattr(Request, "key", counted)
    outcomes, _ = run(server, tmp_path / "r", requests(60), in_flight=5)
    assert [o.request for o in outcomes] == [key(r, "m") for r in requests(60)]
    assert all(number - answered <= 10 for number, answered in enumerate(prepared, 1))
    assert server.most == 5


def test_an_answer_is_in_the_file_before_the_next_call_and_of_use_once_it_is_on_the_disk(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush, disk, calls = os.fsync, threading.Event(), Connections.call
    monkeypatch.setattr(os, "fsync", lambda file: (disk.wait(), flush(file)))
    written = []

    async def call(*args: Any) -> HttpAnswer:
        written.append((tmp_path / "r").read_bytes().count(b"\n"))
        return await calls(*args)

    monkeypatch.setattr(Connections, "call", call)

    async def work() -> None:
        store = ReplyStore(tmp_path / "r")
        async with RemoteTeacher(Endpoint(url=server.url, model="m", in_flight=4), store) as one:
            asked = [asyncio.create_task(one.ask(r)) for r in requests(20)]
            while len(written) < 8:  # as many as have a place
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            assert not store.replies and not any(task.done() for task in asked)
            disk.set()
            assert {o.status for o in await asyncio.gather(*asked)} == {"accepted"}
        await store.close()

    asyncio.run(work())
    assert all(number - lines <= 4 for number, lines in enumerate(written, 1))


def test_equal_requests_take_no_place_from_others(server: Server, tmp_path: Path) -> None:
    server.delay = 0.05
    run(server, tmp_path / "r", requests(1) * 20 + requests(4), in_flight=4)
    assert server.most == 4


def test_the_request_rate_is_kept(server: Server, tmp_path: Path) -> None:
    start = time.monotonic()
    run(server, tmp_path / "r", requests(60), requests_per_minute=1800)
    assert time.monotonic() - start > 0.9  # 60 calls at 30 a second, of which one second's at once


_JOB = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_remote_teacher import requests
from phikit.synth.remote_teacher import Endpoint, RemoteTeacher, completion
from phikit.synth.replies import ReplyStore
async def work():
    store = ReplyStore(Path({store!r}))
    endpoint = Endpoint(url={url!r}, model="m", in_flight=20, say_schema=False)
    async with RemoteTeacher(endpoint, store) as teacher:
        out = await asyncio.gather(*(teacher.ask(r) for r in requests(400)))
    await store.close()
    Path({done!r}).write_text(repr([o.value for o in out]))
asyncio.run(work())
"""


@pytest.mark.slow
def test_killed_at_any_instant_it_ends_with_the_same_corpus(server: Server, tmp_path: Path) -> None:
    server.delay = 0.03
    store, done = tmp_path / "r", tmp_path / "done"
    job = _JOB.format(
        tests=str(Path(__file__).parent), store=str(store), url=server.url, done=str(done)
    )
    kills = 0
    for lines in (1, 60, 133, 250, 391):  # kill as soon as so many replies are on the disk
        process = subprocess.Popen([sys.executable, "-c", job])
        while process.poll() is None:
            if store.exists() and store.read_bytes().count(b"\n") >= lines:
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.002)
        process.wait()
    subprocess.run([sys.executable, "-c", job], check=True)
    assert kills == 5
    outcomes, _ = run(server, tmp_path / "whole", requests(400), in_flight=100)
    assert done.read_text() == repr([o.value for o in outcomes])
    keys = [json.loads(line)["request"] for line in store.read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 400  # nothing that was stored was asked again
    twice = sum(n - 2 for n in server.paid.values())  # one each for this job and for `whole`
    assert twice <= kills * 20  # only what was on the wire at a kill
