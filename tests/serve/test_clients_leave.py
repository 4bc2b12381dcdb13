"""Clients that leave at any moment leave nothing behind: no block of the cache, no sample."""

import json
import random
import socket
import struct
import threading
import time

import httpx
import pytest
from serve_fixtures import make_directory, running
from test_server_limits import figure, wait_for_quiet

SCHEMA = {"type": "array", "items": {"enum": ["cat", "mat"]}, "minItems": 150}
FUNCTION = {"name": "sit", "strict": True, "parameters": {"properties": {"on": SCHEMA}}}
TOOLS = {
    "tools": [{"type": "function", "function": FUNCTION}], "parallel_tool_calls": False,
    "tool_choice": "required",
}  # fmt: skip
FORM = {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}
ASK = {"messages": [{"role": "user", "content": "the cat"}]}
GREEDY = {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 30, "temperature": 0}


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    """A server whose cache holds few of its rows, so that samples give their blocks up as well."""
    directory = make_directory(tmp_path_factory.mktemp("long"), context=4096)
    with running(f"tiny={directory}", "--rows", "16", "--cache", "0.004") as (url, _):
        yield url


def leave(url, path, body, seconds, abruptly):
    """Sends a request, reads for some time, and is gone: in good order, or not."""
    host, port = url.removeprefix("http://").split(":")
    data = json.dumps({"model": "tiny", **body}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(data)}\r\n\r\n"
    got, end = b"", time.monotonic() + seconds
    with socket.create_connection((host, int(port)), timeout=30) as line:
        line.sendall(head.encode() + data)
        while (left := end - time.monotonic()) > 0:
            line.settimeout(left)
            try:
                got += line.recv(65536)
            except TimeoutError:
                break
        if abruptly:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return got


def asked(what, draw):
    """A request that takes long, of one of the ways: its path and body."""
    tokens = {"max_tokens": 1500, "stream": draw.random() < 0.5, "seed": draw.randrange(99)}
    if what == "prefill":
        prompt = [draw.randrange(200) for _ in range(draw.randrange(1500, 3500))]
        return "/v1/completions", {"prompt": [prompt, prompt[:1400]], "n": 2, **tokens,
                                   "max_tokens": 300, "ignore_eos": True}  # fmt: skip
    if what == "forms":
        return "/v1/chat/completions", {**ASK, **draw.choice([FORM, TOOLS]), **tokens}
    return "/v1/completions", {"prompt": "the cat", "n": 8, "ignore_eos": True, **tokens}


@pytest.mark.parametrize("what", ["prefill", "forms", "several"])
def test_nothing_is_left_of_clients_that_leave(crowded, what):
    before = httpx.post(f"{crowded}/v1/completions", json=GREEDY).json()["choices"]
    drawn = figure(crowded, "phikit_tokens_generated_total")
    cut = []

    def client(number):
        draw = random.Random(f"{what}{number}")
        for _ in range(4):
            seconds = draw.choice([0, 0.01, 0.05, 0.2])
            path, body = asked(what, draw)
            got = leave(crowded, path, body, seconds, draw.random() < 0.5)
            cut.append(b"[DONE]" not in got and b'"usage":{' not in got)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(cut) == 32 and sum(cut) > 16
    wait_for_quiet(crowded)
    drawn = figure(crowded, "phikit_tokens_generated_total") - drawn
    assert drawn < 32 * 1500 / 2, "samples went on without their clients"
    after = httpx.post(f"{crowded}/v1/completions", json=GREEDY).json()["choices"]
    assert after == before


def test_who_leaves_while_the_prompt_is_computed_frees_it(crowded):
    """Before the first token there is nothing to send, so no sending can fail."""
    for stream in (True, False):
        prompt = [n % 199 + stream for n in range(4000)]
        body = {"prompt": prompt, "max_tokens": 90, "stream": stream, "ignore_eos": True}
        done = figure(crowded, "phikit_tokens_prefilled_total")
        leave(crowded, "/v1/completions", body, 0.01, abruptly=False)
        wait_for_quiet(crowded)
        assert figure(crowded, "phikit_tokens_prefilled_total") - done < 4000
