"""Messages between the server and its engines."""

import json
import socket

from hypothesis import given
from hypothesis import strategies as st

from phikit.engine.base import Constraint, Request, Sampling
from phikit.serve.wire import Frames, Line, pack, pack_requests, unpack_requests

IDS = st.lists(st.integers(0, 2**31), min_size=1, max_size=5).map(tuple)
SAMPLING = st.builds(
    Sampling,
    temperature=st.floats(0, 5), top_k=st.integers(0, 99), max_tokens=st.integers(1, 2**31),
    stop_ids=IDS, stop=st.lists(st.text(min_size=1), max_size=2).map(tuple),
    logit_bias=st.lists(st.tuples(st.integers(0, 9), st.floats(-100, 100)), max_size=2).map(tuple),
    constraint=st.none() | st.builds(Constraint, st.just("regex"), st.text()),
    top_logprobs=st.integers(0, 20),
)  # fmt: skip
REQUEST = st.builds(
    Request, IDS, SAMPLING, st.integers(1, 9), st.integers(-(2**63), 2**63), st.integers(0, 9),
    adapter=st.text(max_size=3),
)  # fmt: skip


@given(st.lists(REQUEST, max_size=4))
def test_requests_arrive_as_they_were(requests):
    told = json.loads(json.dumps(pack_requests(requests + requests)))
    assert len(told["prompts"]) == len({r.prompt_ids for r in requests})  # each is said once
    assert unpack_requests(told) == requests + requests


@given(st.lists(st.dictionaries(st.text(), st.text()), max_size=4), st.integers(1, 9))
def test_messages_in_whatever_pieces(messages, size):
    data, frames, found = b"".join(map(pack, messages)), Frames(), []
    for at in range(0, len(data), size):
        found += frames.take(data[at : at + size])
    assert found == messages


def test_a_line_tells_when_the_other_end_is_gone():
    ours, theirs = map(Line, socket.socketpair())
    assert ours.receive() == [] and not ours.closed
    theirs.send({"a": 1})
    theirs.send({"b": "ü"})
    assert ours.receive(None) == [{"a": 1}, {"b": "ü"}]
    theirs.sock.close()
    assert ours.receive(None) == [] and ours.closed
    ours.send({"to": "nobody"})  # no error: its owner looks at `closed`
    ours.sock.close()
