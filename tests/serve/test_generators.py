"""One suite for every generator: the local engine, the remote one against our own server, and
engines on a Ray cluster."""

import json

import httpx
import pytest

from phikit.chat.tokenizer import Tokenizer
from phikit.engine.base import Constraint, Request, Sampling, collect
from phikit.engine.local import LocalEngine
from phikit.engine.ray_pool import RayPool
from phikit.engine.remote import RemoteGenerator
from phikit.errors import PhikitError
from phikit.models.load import load


@pytest.fixture(scope="module")
def local(tiny):
    return LocalEngine(load(tiny), tokenizer=Tokenizer.load(tiny))


@pytest.fixture(
    scope="module", params=["local", "remote", pytest.param("ray", marks=pytest.mark.slow)]
)
def generator(request, local, tiny):
    if request.param == "local":
        yield local
    elif request.param == "ray":
        ray = pytest.importorskip("ray", reason="pip install -e '.[ray]'")
        with RayPool(tiny, engines=2, max_batch=4) as pool:
            yield pool
        ray.shutdown()
    else:
        url = request.getfixturevalue("server")
        with RemoteGenerator(f"{url}/v1", "tiny", in_flight=4) as remote:
            yield remote


REQUESTS = [
    Request((5, 6, 7), Sampling(max_tokens=20), n=3, seed=1),
    Request((5, 6, 8), Sampling(temperature=0, max_tokens=9)),
    Request((90,), Sampling(top_k=5, temperature=0.7, max_tokens=30, stop_ids=(3, 7)), n=4, seed=2),
    Request((5, 6, 7), Sampling(top_p=0.8, min_p=0.02, max_tokens=1), n=2, first_sample=3),
    Request((5, 6), Sampling(max_tokens=40, stop=("s", "€ ")), n=3, seed=4),
    Request((5, 6), Sampling(max_tokens=9, constraint=Constraint("regex", "(the|a) cat")), n=3),
    Request((5,), Sampling(max_tokens=30, constraint=Constraint("json_schema", "{}")), n=2),
    Request((8,), Sampling(constraint=Constraint("grammar", 'start: "mat" " cat"')), n=2),
    *[Request((i, 9), Sampling(max_tokens=5), n=2, seed=i) for i in range(8)],
]


def test_rollouts_are_the_local_engines(generator, local):
    for group, same in zip(collect(generator, REQUESTS), collect(local, REQUESTS), strict=True):
        for rollout, other in zip(group, same, strict=True):
            assert rollout.prompt_ids == other.prompt_ids
            assert rollout.completion_ids == other.completion_ids
            assert rollout.finish == other.finish
            assert rollout.logprobs == pytest.approx(other.logprobs, abs=1e-4)
            assert rollout.raw_logprobs == pytest.approx(other.raw_logprobs, abs=1e-4)


def test_every_sample_comes_once(generator):
    seen = [(done.request, done.sample) for done in generator.generate(REQUESTS)]
    assert sorted(seen) == [(i, j) for i, r in enumerate(REQUESTS) for j in range(r.n)]
    assert list(generator.generate([])) == []


def test_four_and_four_are_eight(generator):
    ask = Request((5, 6), Sampling(max_tokens=8), n=8, seed=3)
    parts = [Request((5, 6), Sampling(max_tokens=8), 4, 3, first) for first in (0, 4)]
    whole, [first, second] = collect(generator, [ask])[0], collect(generator, parts)
    assert [r.completion_ids for r in whole] == [r.completion_ids for r in first + second]


@pytest.mark.parametrize("ids", [(), (10**6,), tuple([5] * 600)])
def test_wrong_prompts_are_refused(generator, ids):
    with pytest.raises(PhikitError, match="request 0"):
        collect(generator, [Request(ids, Sampling(max_tokens=2))])


def test_one_may_stop_reading(generator):
    assert next(iter(generator.generate(REQUESTS))).rollout.completion_ids
    assert len(collect(generator, REQUESTS[:1])[0]) == 3


# --- the remote one alone, against servers that behave as others do ------------------------------


def transport(answers, seen):
    def handle(request):
        seen.append(json.loads(request.content))
        status, body, *headers = answers.pop(0) if len(answers) > 1 else answers[0]
        return httpx.Response(status, json=body, headers=dict(headers))

    return httpx.MockTransport(handle)


def test_a_server_without_ids_is_loudly_text(tiny):
    seen = []
    text = (200, {"choices": [{"index": 0, "text": "the mat", "finish_reason": "stop"}]})
    with pytest.raises(PhikitError, match="does not return token ids"):
        collect(
            RemoteGenerator("http://x/v1", "m", transport=transport([text], seen)), REQUESTS[1:2]
        )
    tokenizer = Tokenizer.load(tiny)
    remote = RemoteGenerator(
        "http://x/v1", "m", tokenizer=tokenizer, transport=transport([text], seen)
    )
    ask = Request(tuple(tokenizer.encode("the cat")), Sampling(max_tokens=4))
    with pytest.warns(UserWarning, match="does not return token ids"):
        rollout = collect(remote, [ask])[0][0]
    assert seen[-1]["prompt"] == "the cat" and "return_token_ids" not in seen[-1]
    assert tokenizer.decode(rollout.completion_ids) == "the mat"
    assert rollout.meta["ids"] == "retokenized" and rollout.logprobs == ()


def test_a_busy_server_is_asked_again(monkeypatch):
    pauses = []
    monkeypatch.setattr("phikit.engine.remote.time.sleep", pauses.append)
    choice = {"index": 0, "text": "", "token_ids": [4], "finish_reason": "length"}
    answers = [
        (429, {"error": {"message": "full"}}, ("Retry-After", "7")),
        (503, {}),
        (200, {"choices": [choice]}),
    ]
    remote = RemoteGenerator("http://x/v1", "m", transport=transport(answers, []))
    assert collect(remote, [Request((1,), Sampling(max_tokens=1))])[0][0].completion_ids == (4,)
    assert pauses[0] == 7 and 0.7 < pauses[1] < 1.3
    gone = transport([(503, {"error": {"message": "down"}})], seen := [])
    with pytest.raises(PhikitError, match="no answer in 3 attempts; the last: status 503: down"):
        collect(RemoteGenerator("http://x/v1", "m", attempts=3, transport=gone), REQUESTS[:1])
    assert len(seen) == 3
