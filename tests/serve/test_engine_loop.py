"""What the engine's process tells of its steps: everything, at once where that matters."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from serve_fixtures import make_directory

from phikit.engine.base import Request, Sampling, collect
from phikit.engine.local import LocalEngine
from phikit.engine.runners import runner_of
from phikit.engine.scheduler import Scheduler
from phikit.models.load import load
from phikit.serve import process
from phikit.serve.process import EngineLoop
from phikit.serve.wire import pack_requests


class Told:
    """A line whose other end says a few things and then stops listening."""

    closed = False

    def __init__(self, commands: list[Any]) -> None:
        self.commands, self.messages = commands, list[Any]()

    def send(self, message: Any) -> None:
        self.messages.append(message)

    def receive(self, seconds: float | None = 0) -> list[Any]:
        if seconds is None and not self.commands:
            return [{"do": "stop"}]
        commands, self.commands = self.commands, []
        return commands


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_directory(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes 10 ms, however busy the machine: more than one stream's pause."""
    ticks = itertools.count(step=0.01)
    monkeypatch.setattr(process, "time", SimpleNamespace(monotonic=lambda: next(ticks)))


def reports(directory: Path, asked: list[Request], every: bool) -> tuple[list[Any], list[Any]]:
    """Of each sample the columns that it was told in, one by one; and all messages."""
    model = load(directory)
    line = Told([{"do": "submit", "job": 1, "every": every, "born": 0.0} | pack_requests(asked)])
    EngineLoop(line, Scheduler(runner_of(model), max_rows=len(asked))).run()  # type: ignore[arg-type]
    found: list[list[Any]] = [[] for _ in asked]
    for message in line.messages:
        for _, index, *columns in message.get("tokens", ()):
            found[index].append(columns)
        for _, index, _, _, _, *columns in message.get("finished", ()):
            found[index].append(columns)
    return found, line.messages


def asked(count: int) -> list[Request]:
    sampling = Sampling(max_tokens=24, top_logprobs=2)
    return [Request((5, i % 60, 7), sampling, seed=i) for i in range(count)]


def whole(parts: list[Any], column: int) -> list[Any]:
    return [value for part in parts for value in part[column]]


def test_tokens_of_many_streams_come_a_few_at_a_time_and_all_of_them(directory: Path) -> None:
    requests = asked(40)
    expected = collect(LocalEngine(load(directory)), requests)
    found, _ = reports(directory, requests, every=True)
    for parts, [rollout] in zip(found, expected, strict=True):
        assert tuple(whole(parts, 0)) == rollout.completion_ids
        assert len(parts[0][0]) == 1  # the first goes out at once
        assert all(len({len(column) for column in part}) == 1 for part in parts)
        assert all(len(top) == 2 for top in whole(parts, 3))
    assert all(5 <= len(parts) <= 7 for parts in found)  # 50 ms of tokens in each but the first


def test_one_stream_has_every_token_as_it_is_drawn(directory: Path) -> None:
    [parts], _ = reports(directory, asked(1), every=True)
    # what ends a sample is told with its last token
    assert [len(part[0]) for part in parts] == [1] * 24


def test_a_stream_does_not_wait_for_answers_in_one_piece(directory: Path) -> None:
    requests = asked(31)
    jobs = [
        {"do": "submit", "job": 1, "every": True, "born": 0.0} | pack_requests(requests[:1]),
        {"do": "submit", "job": 2, "every": False, "born": 0.0} | pack_requests(requests[1:]),
    ]
    line = Told(jobs)
    EngineLoop(line, Scheduler(runner_of(load(directory)), max_rows=31)).run()  # type: ignore[arg-type]
    told = [token for message in line.messages for token in message.get("tokens", ())]
    assert [(job, len(ids)) for job, _, ids, *_ in told] == [(1, 1)] * 23


def test_answers_in_one_piece_are_told_at_their_end(directory: Path) -> None:
    found, messages = reports(directory, asked(3), every=False)
    assert [[len(part[0]) for part in parts] for parts in found] == [[24]] * 3
    assert sum(len(m.get("first", ())) for m in messages) == 3
    assert sum(len(m.get("further", ())) for m in messages) == 3 * 23
