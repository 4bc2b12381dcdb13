"""Teachers beside the plain endpoint: the batch API, and a model in this process."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer

from phikit.engine.base import Finished
from phikit.engine.base import Request as Asked
from phikit.errors import PhikitError
from phikit.records import Rollout
from phikit.synth.batch_teacher import BatchTeacher
from phikit.synth.connections import Broken, Connections
from phikit.synth.local_teacher import LocalTeacher
from phikit.synth.remote_teacher import Endpoint, RemoteTeacher
from phikit.synth.replies import Outcome, ReplyStore, Request
from phikit.synth.stored_teacher import Budget, StoredTeacher, wanted

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.fixture
def server() -> Iterator[ChatServer]:
    made = ChatServer()
    yield made
    made.close()


def requests(count: int) -> list[Request]:
    return [Request(({"role": "user", "content": f"item {i}"},), SCHEMA) for i in range(count)]


async def ask(teacher: StoredTeacher, asked: Sequence[Request]) -> list[Outcome]:
    async with teacher:
        outcomes = await asyncio.gather(*map(teacher.ask, asked))
    await teacher.store.close()
    return list(outcomes)


def endpoint(server: ChatServer, **settings: object) -> Endpoint:
    given = {"pause": 0.01, "batch_poll": 0.02, "timeout": 5, **settings}
    return Endpoint(url=server.url, model="m", **given)  # type: ignore[arg-type]


# --- the batch API -------------------------------------------------------------------------------


def test_a_batch_answers_as_the_plain_endpoint_does(server: ChatServer, tmp_path: Path) -> None:
    batch = BatchTeacher(endpoint(server, batch_size=20), ReplyStore(tmp_path / "b" / "r"))
    plain = RemoteTeacher(endpoint(server), ReplyStore(tmp_path / "p" / "r"))
    one = asyncio.run(ask(batch, requests(50)))
    two = asyncio.run(ask(plain, requests(50)))
    assert [o.value for o in one] == [o.value for o in two]
    assert len(server.batches) >= 3 and set(server.paid.values()) == {2}
    again = BatchTeacher(endpoint(server), ReplyStore(tmp_path / "b" / "r"))
    assert asyncio.run(ask(again, requests(50))) == one
    assert set(server.paid.values()) == {2} and again.calls == 0


def test_what_a_batch_did_not_answer_is_asked_again(server: ChatServer, tmp_path: Path) -> None:
    server.faulty = 0.4
    teacher = BatchTeacher(endpoint(server), ReplyStore(tmp_path / "r"))
    outcomes = asyncio.run(ask(teacher, requests(40)))
    assert {o.status for o in outcomes} == {"accepted"}
    assert len(server.batches) > 1 and set(server.paid.values()) == {1}


@pytest.mark.parametrize("line", [b"null", b"5", b"[]", b"{", b'{"custom_id": {}}'])
def test_a_batch_with_answers_that_are_none_fails_and_hangs_nobody(
    line: bytes, server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = server._finish

    def spoil(batch: dict[str, Any]) -> None:
        finish(batch)
        name = batch["output_file_id"]
        server.files[name] = b"\n" + server.files[name].split(b"\n")[0] + b"\n" + line + b"\n"

    monkeypatch.setattr(server, "_finish", spoil)
    teacher = BatchTeacher(endpoint(server, tries=2), ReplyStore(tmp_path / "r"))
    outcomes = asyncio.run(asyncio.wait_for(ask(teacher, requests(3)), 20))
    assert sorted(o.status for o in outcomes) == ["accepted", "failed", "failed"]
    assert len(server.batches) == 1  # what was paid for is not asked again
    assert all("malformed" in o.reason for o in outcomes if o.status == "failed")


@pytest.mark.parametrize("lost", ["after the id was written", "before it was"])
def test_a_batch_that_was_begun_is_waited_for_and_not_created_again(
    server: ChatServer, tmp_path: Path, lost: str
) -> None:
    async def begin() -> None:
        store = ReplyStore(tmp_path / "r")
        teacher = BatchTeacher(endpoint(server, batch_poll=60), store)
        async with teacher:
            tasks = [asyncio.create_task(teacher.ask(r)) for r in requests(10)]
            while not server.batches or len((tmp_path / "batches.jsonl").read_text()) < 400:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            for task in tasks:
                task.cancel()
        await store.close()

    asyncio.run(begin())
    journal = tmp_path / "batches.jsonl"
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [sorted(row) for row in rows] == [["digest", "ids"], ["batch", "digest"]]
    if lost == "before it was":
        journal.write_text(json.dumps(rows[0]) + "\n")
    teacher = BatchTeacher(endpoint(server), ReplyStore(tmp_path / "r"))
    outcomes = asyncio.run(ask(teacher, requests(10)))
    assert {o.status for o in outcomes} == {"accepted"} and teacher.calls == 0
    assert len(server.batches) == 1 and set(server.paid.values()) == {1}


# --- a model in this process ---------------------------------------------------------------------


class Echo:
    """A generator that says its prompt backwards, the later prompts first."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def generate(self, asked: Sequence[Asked]) -> Iterator[Finished]:
        self.batches.append(len(asked))
        for i, request in reversed(list(enumerate(asked))):
            if 0 in request.prompt_ids:
                raise PhikitError("the prompt is too long")
            ids = (*request.prompt_ids[::-1], request.seed, request.first_sample)
            yield Finished(i, 0, Rollout(prompt_ids=request.prompt_ids, completion_ids=ids,
                                         logprobs=()))  # fmt: skip


def local(tmp_path: Path, generator: Echo, budget: Budget | None = None) -> LocalTeacher:
    return LocalTeacher(
        "echo", generator, lambda m: [int(w) for w in m[-1]["content"].split()],
        lambda ids: " ".join(map(str, ids)), (), ReplyStore(tmp_path / "r"), budget, batch=8,
    )  # fmt: skip


def numbers(*words: str) -> list[Request]:
    return [Request(({"role": "user", "content": w},), draw=5) for w in words]


def test_a_model_in_this_process_is_asked_in_batches_and_stored(tmp_path: Path) -> None:
    asked = numbers(*(f"{i} 1" for i in range(2, 22)))
    generator = Echo()
    outcomes = asyncio.run(ask(local(tmp_path, generator), asked))
    assert [o.value for o in outcomes] == [f"1 {i} 5 0" for i in range(2, 22)]
    assert generator.batches == [8, 8, 4]
    again = Echo()
    assert asyncio.run(ask(local(tmp_path, again), asked)) == outcomes and not again.batches


def test_one_prompt_that_cannot_be_run_fails_alone(tmp_path: Path) -> None:
    outcomes = asyncio.run(ask(local(tmp_path, Echo()), numbers("3 1", "0 1", "4 1")))
    assert [o.status for o in outcomes] == ["accepted", "failed", "accepted"]
    assert outcomes[1].reason == "the prompt is too long"


def test_a_local_model_that_is_stopped_keeps_what_its_batch_answers(tmp_path: Path) -> None:
    class Slow(Echo):
        def generate(self, asked: Sequence[Asked]) -> Iterator[Finished]:
            for done in super().generate(asked):
                time.sleep(0.02)
                yield done

    generator = Slow()
    teacher = local(tmp_path, generator)

    async def work() -> None:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(teacher.store.close)
            await stack.enter_async_context(teacher)
            asked = numbers(*(f"{i} 1" for i in range(2, 22)))
            waiting = asyncio.gather(*map(teacher.ask, asked))
            await asyncio.wait([waiting], timeout=0.08)
            raise PhikitError("something else")

    with pytest.raises(PhikitError, match="something else"):
        asyncio.run(work())
    assert generator.batches == [8]
    assert len((tmp_path / "r").read_text().splitlines()) == 8


def test_the_budget_holds_for_a_local_model_too(tmp_path: Path) -> None:
    asked = [Request(({"role": "user", "content": "3 1"},), max_tokens=50, draw=i + 1)
             for i in range(9)]  # fmt: skip
    teacher = local(tmp_path, Echo(), Budget(max_total_tokens=130))
    statuses = [o.status for o in asyncio.run(ask(teacher, asked))]
    assert statuses.count("accepted") == 2 and statuses.count("unsent") == 7


def test_one_job_at_a_time_keeps_its_replies_in_a_file(tmp_path: Path) -> None:
    first = ReplyStore(tmp_path / "r")
    with pytest.raises(PhikitError, match="another job keeps its replies here"):
        ReplyStore(tmp_path / "r")
    asyncio.run(first.close())
    asyncio.run(ReplyStore(tmp_path / "r").close())


# --- small parts ---------------------------------------------------------------------------------


def test_the_form_that_is_wanted_is_said() -> None:
    schema = {
        "type": "object",
        "properties": {
            "kind": {"type": "string", "enum": ["a", "b"]},
            "mark": {"type": "integer", "minimum": 1, "maximum": 5},
            "faults": {"type": "array", "items": {"type": "string"}},
        },
    }
    shown = json.loads(wanted(schema).partition(": ")[2])
    assert shown == {"kind": "a | b", "mark": "integer from 1 to 5", "faults": ["text", "..."]}


def test_wrong_addresses_and_absent_servers(tmp_path: Path) -> None:
    for url in ("localhost:8000/v1", "ftp://x/v1", "http://:8/v1", "http://x:99999999/v1"):
        with pytest.raises(PhikitError, match="no address"):
            Connections(url, {})
    with pytest.raises(Broken, match="no connection"):
        asyncio.run(Connections("http://127.0.0.1:9/v1", {}).call("/x"))
    teacher = RemoteTeacher(
        Endpoint(url="http://127.0.0.1:9/v1", model="m", tries=2, pause=0.01),
        ReplyStore(tmp_path / "r"),
    )
    (outcome,) = asyncio.run(ask(teacher, requests(1)))
    assert outcome.status == "failed" and "no connection" in outcome.reason
