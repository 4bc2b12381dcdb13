"""An engine's process is killed: who waits is told, and another one takes its place."""

import os
import signal
import time
from pathlib import Path

import httpx
import pytest
from serve_fixtures import running
from test_server_limits import cut_short, figure, wait_for_quiet

GREEDY = {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 20, "temperature": 0,
          "ignore_eos": True, "return_token_ids": True}  # fmt: skip


def engine_of(server):
    """The process number of a server's only engine."""
    for task in Path(f"/proc/{server.pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            if b"phikit.serve.process" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
    raise AssertionError("the server has no engine")


def wait_for_health(url):
    for _ in range(300):
        if httpx.get(f"{url}/healthz").status_code == 200:
            return
        time.sleep(0.1)
    raise AssertionError("the engine did not come back")


@pytest.mark.slow
def test_a_killed_engine_is_started_again(tiny):
    with running(f"tiny={tiny}", "--cache", "0.02") as (url, server):

        def ids():
            answer = httpx.post(f"{url}/v1/completions", json=GREEDY, timeout=60)
            return answer.json()["choices"][0]["token_ids"]

        before = ids()
        whole, streamed = cut_short(url, lambda: os.kill(engine_of(server), signal.SIGKILL))
        assert whole.status_code == 503 and whole.json()["error"]["code"] == "engine_failed"
        assert "the engine of tiny died" in whole.json()["error"]["message"]
        assert '"code":"engine_failed"' in streamed and "[DONE]" not in streamed
        meanwhile = httpx.post(f"{url}/v1/completions", json=GREEDY)
        assert meanwhile.status_code == 503 and meanwhile.headers["Retry-After"] == "1"
        assert httpx.get(f"{url}/healthz").status_code == 503
        assert figure(url, "phikit_samples_running") == 0
        wait_for_health(url)
        assert ids() == before
        assert figure(url, "phikit_engine_restarts_total") == 1
        wait_for_quiet(url)
        # the end of a server whose engine is just being started again
        os.kill(engine_of(server), signal.SIGKILL)
        while httpx.get(f"{url}/healthz").status_code == 200:
            time.sleep(0.02)
