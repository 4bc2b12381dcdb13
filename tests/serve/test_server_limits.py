"""Keys, sizes, queues, time; many clients, clients that leave, and the end of the server."""

import asyncio
import json
import random
import re
import signal
import socket
import threading
import time

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serve_fixtures import running

from phikit.chat.tokenizer import Tokenizer
from phikit.engine.base import Request, Sampling, collect
from phikit.engine.local import LocalEngine
from phikit.models.load import load

LONG = {"model": "tiny", "prompt": [5, 6, 7], "ignore_eos": True}


def cut_short(url, stop):
    """The answers, whole and as a stream's text, to long requests that `stop` is called during."""
    answers = {}

    def ask(stream):
        body = LONG | {"max_tokens": 500, "n": 64, "stream": stream}
        answers[stream] = httpx.post(f"{url}/v1/completions", json=body, timeout=60)

    threads = [threading.Thread(target=ask, args=(stream,)) for stream in (False, True)]
    for thread in threads:
        thread.start()
    while figure(url, "phikit_samples_running") < 64:
        time.sleep(0.02)
    stop()
    for thread in threads:
        thread.join()
    return answers[False], answers[True].text


def figure(url, name, model="tiny"):
    text = httpx.get(f"{url}/metrics").text
    found = re.search(rf'^{name}{{model="{model}"}} (\S+)$', text, re.M)
    assert found, name
    return float(found[1])


def wait_for_quiet(url):
    """Blocks are back to zero, nothing runs and nothing waits."""
    names = ("phikit_cache_blocks_used", "phikit_samples_running", "phikit_samples_waiting")
    for _ in range(100):
        if not any(figure(url, name) for name in names):
            return
        time.sleep(0.1)
    raise AssertionError([(name, figure(url, name)) for name in names])


@pytest.fixture(scope="module")
def strict(tiny, tmp_path_factory):
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text("# ours\nfirst\n\nsecond\n")
    with running(
        f"tiny={tiny}", "--api-key-file", str(keys), "--max-body", "0.01", "--max-tokens", "400",
        "--invariant", "--max-queue", "4", "--rows", "2", "--timeout", "1", "--cache", "0.02",
    ) as (url, _):  # fmt: skip
        yield url


def test_keys(strict):
    def status(**headers):
        return httpx.get(f"{strict}/v1/models", headers=headers).status_code

    assert status() == status(Authorization="Bearer third") == 401
    assert status(Authorization="first") == status(Authorization="Bearer") == 401
    assert status(Authorization="Bearer first") == status(Authorization="bearer second") == 200
    assert httpx.get(f"{strict}/healthz").status_code == 200


def test_sizes_and_lengths(strict):
    with httpx.Client(base_url=strict, headers={"Authorization": "Bearer first"}) as client:
        assert client.post("/v1/completions", content=b"x" * 20_000).status_code == 413
        chunks = (b"x" * 1000 for _ in range(20))
        assert client.post("/v1/completions", content=chunks).status_code == 413
        answer = client.post("/v1/completions", json=LONG | {"max_tokens": 401})
        assert answer.status_code == 400 and "allows 400" in answer.json()["error"]["message"]


def test_a_full_queue_says_when_to_come_back(strict):
    with httpx.Client(base_url=strict, headers={"Authorization": "Bearer first"}) as client:
        answer = client.post("/v1/completions", json=LONG | {"n": 5})
        assert answer.status_code == 429 and answer.headers["Retry-After"] == "1"
        assert answer.json()["error"]["code"] == "queue_full"


def test_time_is_limited_and_what_was_running_is_cancelled(tiny):
    with running(f"tiny={tiny}", "--timeout", "0.1", "--cache", "0.02") as (url, _):
        answer = httpx.post(f"{url}/v1/completions", json=LONG | {"max_tokens": 500, "n": 64})
        assert answer.status_code == 408
        wait_for_quiet(url)
        body = LONG | {"max_tokens": 500, "n": 64, "stream": True}
        text = httpx.post(f"{url}/v1/completions", json=body, timeout=30).text
        assert '"code":"timeout"' in text and "[DONE]" not in text
        wait_for_quiet(url)


@pytest.mark.slow
def test_many_clients_get_what_the_offline_engine_gives(server, tiny):
    """240 requests of 24 clients; a third of the clients leave at a random moment."""
    draw, offline = random.Random(0), LocalEngine(load(tiny))
    words = [Tokenizer.load(tiny).encode(t) for t in ("the cat sat on", "the cat ate", "mat")]
    asks = [
        {
            "model": "tiny", "prompt": draw.choice(words) + draw.choices(range(200), k=3),
            "max_tokens": draw.randint(1, 60), "n": draw.randint(1, 3), "seed": draw.randint(0, 9),
            "temperature": draw.choice([0, 0.7, 1]), "ignore_eos": True, "return_token_ids": True,
            "stream": draw.random() < 0.5,
        }
        for _ in range(240)
    ]  # fmt: skip
    leave = [draw.random() * 0.3 if draw.random() < 1 / 3 else None for _ in asks]
    found: dict[int, list[list[int]]] = {}

    async def ask(client, index):
        got: list[list[int]] = [[] for _ in range(asks[index]["n"])]
        async with client.stream("POST", "/v1/completions", json=asks[index]) as response:
            assert response.status_code == 200
            if not asks[index]["stream"]:
                choices = json.loads(await response.aread())["choices"]
                found[index] = [c["token_ids"] for c in choices]
                return
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    found[index] = got
                elif line:
                    for choice in json.loads(line.removeprefix("data: "))["choices"]:
                        got[choice["index"]] += choice.get("token_ids", [])

    async def client(number):
        async with httpx.AsyncClient(base_url=server, timeout=120) as http:
            for index in range(number, len(asks), 24):
                try:
                    await asyncio.wait_for(ask(http, index), leave[index])
                except TimeoutError:
                    assert leave[index] is not None

    async def everyone():
        await asyncio.gather(*map(client, range(24)))

    asyncio.run(everyone())
    assert {i for i, at in enumerate(leave) if at is None} <= set(found)
    requests = [
        Request(
            tuple(asks[i]["prompt"]),
            Sampling(temperature=asks[i]["temperature"], max_tokens=asks[i]["max_tokens"]),
            asks[i]["n"], asks[i]["seed"],
        )
        for i in sorted(found)
    ]  # fmt: skip
    for index, rollouts in zip(sorted(found), collect(offline, requests), strict=True):
        assert found[index] == [list(r.completion_ids) for r in rollouts], asks[index]
    wait_for_quiet(server)


def test_sigterm_lets_requests_finish(tiny):
    with running(f"tiny={tiny}", "--cache", "0.02") as (url, process):
        answers = []

        def ask():
            body = LONG | {"max_tokens": 500, "n": 32}
            answers.append(httpx.post(f"{url}/v1/completions", json=body, timeout=60))

        thread = threading.Thread(target=ask)
        thread.start()
        while not figure(url, "phikit_samples_running"):
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert process.poll() is None and not answers, "it was done too soon to see"
        thread.join()
        assert process.wait(timeout=30) in (0, -signal.SIGTERM)
        assert answers[0].json()["usage"]["completion_tokens"] == 500 * 32
        host, port = url.removeprefix("http://").split(":")
        with pytest.raises(OSError):
            socket.create_connection((host, int(port)), timeout=1)


def test_what_is_not_finished_in_time_is_told_why(tiny):
    with running(f"tiny={tiny}", "--cache", "0.02", "--drain", "0.5") as (url, process):
        whole, streamed = cut_short(url, lambda: process.send_signal(signal.SIGTERM))
        assert process.wait(timeout=30) in (0, -signal.SIGTERM)
    assert whole.status_code == 503 and whole.headers["Retry-After"] == "1"
    assert whole.json()["error"]["code"] == "shutting_down"
    assert '"code":"shutting_down"' in streamed and "[DONE]" not in streamed


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def document(server):
    return httpx.get(f"{server}/openapi.json").json()


def right_value(schema, document):
    """Values as a schema of the OpenAPI document wants them, small ones."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema and "properties" not in schema:
        return st.one_of([right_value(s, document) for s in schema["anyOf"]])
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    kind = schema.get("type")
    if kind == "object" and "properties" in schema:
        needed = {*schema.get("required", ()), *schema.get("anyOf", [{}])[0].get("required", ())}
        fields = {k: right_value(v, document) for k, v in schema["properties"].items()}
        return st.fixed_dictionaries(
            {k: v for k, v in fields.items() if k in needed},
            optional={k: v for k, v in fields.items() if k not in needed},
        )
    if kind == "array":
        least = schema.get("minItems", 0)
        return st.lists(right_value(schema["items"], document), min_size=least, max_size=least + 2)
    simple = {
        "string": st.text(min_size=schema.get("minLength", 0), max_size=12),
        "integer": st.integers(schema.get("minimum", 0), 20),
        "number": st.floats(0, 1), "boolean": st.booleans(), "null": st.none(),
    }  # fmt: skip
    return simple.get(kind, JSON)


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"]
)
def test_no_body_makes_the_server_fail(server, document, path):
    content = document["paths"][path]["post"]["requestBody"]["content"]
    whole = right_value(content["application/json"]["schema"], document)
    statuses = set()

    @settings(max_examples=60)
    @given(data=st.data())
    def fuzz(data):
        body = data.draw(whole)
        for name in sorted(body):  # some are made wrong, and most that is right is left out
            fate = data.draw(st.integers(0, 39))
            if fate == 0:
                body[name] = data.draw(JSON)
            elif fate < 36 and name not in ("prompt", "messages", "tokens"):
                del body[name]
        if data.draw(st.integers(0, 9)):
            body["model"] = "tiny"
        raw = json.dumps(body).encode()
        if data.draw(st.integers(0, 9)) == 0:
            raw = raw[: data.draw(st.integers(0, len(raw)))]
        headers = {"Content-Type": "application/json"}
        answer = httpx.post(f"{server}{path}", content=raw, headers=headers, timeout=20)
        statuses.add(answer.status_code)
        assert answer.status_code < 500, raw
        if answer.status_code != 200:
            assert answer.json()["error"]["message"]

    fuzz()
    assert {200, 400} <= statuses
    assert httpx.get(f"{server}/healthz").status_code == 200


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"[]", b"{", b"null", b"\xff\xfe", b"[" * 100_000, b"1" * 10_000,
        b'{"model": "tiny", "prompt": [1' + b"0" * 6000 + b"]}",
        b'{"model": "\\ud800", "prompt": "a"}', b'{"model": "tiny", "\\ud800": 1, "prompt": "a"}',
        b'{"model": "tiny", "prompt": "\\ud800"}', b'{"model": "tiny", "prompt": "a", "n": NaN}',
        b'{"model": "tiny", "prompt": ""}', b'{"model": "tiny", "prompt": []}',
        b'{"model": "tiny", "prompt": [999999]}', b'{"model": "tiny", "prompt": [[]]}',
    ],
)  # fmt: skip
def test_bodies_that_are_no_requests(server, raw):
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{server}/v1/completions", content=raw, headers=headers, timeout=20)
    assert answer.status_code in (400, 404) and answer.json()["error"]["message"]
