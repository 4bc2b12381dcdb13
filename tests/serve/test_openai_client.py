"""A session with the real client against a real server process."""

import json
import re

import httpx
import openai
import pytest

from phikit.chat.format import chat_format
from phikit.chat.tokenizer import Tokenizer
from phikit.engine.base import Constraint, Request, Sampling, collect
from phikit.engine.local import LocalEngine
from phikit.models.load import load
from phikit.train import adapters

ASK = [{"role": "user", "content": "the cat"}]
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "of a town", "parameters": {"type": "object"}},
}


@pytest.fixture(scope="module")
def offline(tiny):
    return LocalEngine(load(tiny)), chat_format(Tokenizer.load(tiny))


def expected(offline, messages, n=1, seed=0, **settings):
    engine, form = offline
    ids = tuple(form.render(messages, generation_prompt=True).ids)
    sampling = Sampling(stop_ids=form.stop_ids, **settings)
    return collect(engine, [Request(ids, sampling, n, seed)])[0]


def test_an_answer_is_the_offline_engines(client, offline):
    for seed in range(5):
        answer = client.chat.completions.create(
            model="tiny", messages=ASK, max_tokens=20, seed=seed, n=3, temperature=0.8, top_p=0.9,
            logprobs=True, extra_body={"return_token_ids": True, "top_k": 50, "min_p": 0.01},
        )  # fmt: skip
        rollouts = expected(
            offline, ASK, 3, seed, max_tokens=20, temperature=0.8, top_p=0.9, top_k=50, min_p=0.01
        )
        for choice, rollout in zip(answer.choices, rollouts, strict=True):
            assert tuple(choice.token_ids) == rollout.completion_ids
            assert tuple(choice.prompt_token_ids) == rollout.prompt_ids
            assert choice.sampling_logprobs == pytest.approx(rollout.logprobs, abs=1e-4)
            assert choice.message.content == offline[1].text(rollout.completion_ids)
            assert choice.finish_reason == rollout.finish
            raw = [entry.logprob for entry in choice.logprobs.content]
            assert raw == pytest.approx(rollout.raw_logprobs, abs=1e-4)
        total = sum(len(r.completion_ids) for r in rollouts)
        assert answer.usage.completion_tokens == total
        assert answer.usage.prompt_tokens == len(rollouts[0].prompt_ids)


def test_a_stream_is_the_same_answer(client):
    ask = {"model": "tiny", "messages": ASK, "max_tokens": 40, "seed": 3, "n": 2, "logprobs": True}
    whole = client.chat.completions.create(**ask)
    text, finish, count, usage = ["", ""], [None, None], [0, 0], None
    stream = client.chat.completions.create(
        **ask, stream=True, stream_options={"include_usage": True}
    )
    chunks = 0
    for chunk in stream:
        chunks += 1
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text[choice.index] += choice.delta.content or ""
            finish[choice.index] = choice.finish_reason or finish[choice.index]
            count[choice.index] += len(choice.logprobs.content) if choice.logprobs else 0
    assert text == [c.message.content for c in whole.choices]
    assert finish == [c.finish_reason for c in whole.choices]
    assert count == [len(c.logprobs.content) for c in whole.choices]
    assert usage == whole.usage and chunks > 5  # tokens ready together travel together


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_answer_before_it(client, stream):
    ask = {"model": "tiny", "prompt": "the cat", "max_tokens": 60, "seed": 5}
    whole = client.completions.create(**ask, extra_body={"ignore_eos": True}).choices[0].text
    for start in range(4, len(whole) - 3, 7):
        stop = whole[start : start + 3]
        if "\N{REPLACEMENT CHARACTER}" in stop:
            continue  # bytes that are no character; a stop text cannot spell them
        answer = client.completions.create(
            **ask, stop=[stop, "never to be seen"], stream=stream, extra_body={"ignore_eos": True}
        )
        if stream:
            chunks = [c.choices[0] for c in answer]
            text, finish = "".join(c.text for c in chunks), chunks[-1].finish_reason
        else:
            text, finish = answer.choices[0].text, answer.choices[0].finish_reason
            assert answer.usage.completion_tokens < 60 or start > len(whole) - 12
        assert text == whole[: whole.index(stop)]
        assert finish == "stop"


def test_penalties_and_biases_reach_the_engine(client):
    ask = {"model": "tiny", "prompt": "the cat", "max_tokens": 12, "seed": 5}
    extra = {"ignore_eos": True, "return_token_ids": True}
    forced = client.completions.create(**ask, logit_bias={"70": 100}, extra_body=extra)
    assert forced.choices[0].token_ids == [70] * 12
    greedy = {**ask, "temperature": 0}
    plain = client.completions.create(**greedy, extra_body=extra).choices[0].token_ids
    varied = client.completions.create(
        **greedy, frequency_penalty=2, extra_body={**extra, "repetition_penalty": 10}
    )
    assert len(set(varied.choices[0].token_ids)) > len(set(plain))


def test_hardly_any_temperature_is_none(client):
    """Its inverse is no float32, which once ended the engine, and with it everyone's answers."""
    ask = {"model": "tiny", "prompt": "the cat", "max_tokens": 12, "seed": 5}
    greedy = client.completions.create(**ask, temperature=0).choices[0].text
    for filters in ({}, {"top_k": 5}, {"min_p": 0.1}, {"top_p": 0.5}, {"presence_penalty": 1e-9}):
        for temperature in (1e-300, 1e-45, 1e-38, 1e-9):
            cold = client.completions.create(**ask, temperature=temperature, extra_body=filters)
            assert cold.choices[0].text == greedy, (filters, temperature)


def test_ids_go_in_and_come_out(client, tiny, offline):
    ids = Tokenizer.load(tiny).encode("on the mat")
    answer = client.completions.create(
        model="other", prompt=[ids, ids[:2]], max_tokens=7, seed=1, n=2, logprobs=0,
        extra_body={"return_token_ids": True, "ignore_eos": True, "first_sample": 4},
    )  # fmt: skip
    requests = [
        Request(tuple(p), Sampling(max_tokens=7), 2, 1, first_sample=4) for p in (ids, ids[:2])
    ]
    rollouts = [r for group in collect(offline[0], requests) for r in group]
    assert [c.index for c in answer.choices] == [0, 1, 2, 3]
    assert [tuple(c.token_ids) for c in answer.choices] == [r.completion_ids for r in rollouts]
    assert answer.usage.prompt_tokens == len(ids) + 2 and answer.usage.completion_tokens == 28


def test_completions_name_every_token_differently(client):
    """Also those that are parts of characters, of which a byte-level vocabulary has many."""
    answer = client.completions.create(model="tiny", prompt="the cat", max_tokens=9, logprobs=20)
    column = answer.choices[0].logprobs
    assert [len(likeliest) for likeliest in column.top_logprobs] == [20] * len(column.tokens)
    assert any(re.fullmatch(r"bytes:(\\x[0-9a-f]{2})+", t) for t in column.top_logprobs[0])


def test_an_adapter_is_a_model_beside_its_own(client, tiny, adapter):
    weights = load(tiny)
    adapters.load(weights, adapter, "fine")
    ask = {"prompt": [5, 6, 7], "max_tokens": 12, "seed": 2}
    extra = {"return_token_ids": True, "ignore_eos": True}
    drawn = {}
    for model, name in (("fine", "fine"), ("other", ""), ("fine", "fine")):
        answer = client.completions.create(model=model, **ask, extra_body=extra)
        alone = Request((5, 6, 7), Sampling(max_tokens=12), 1, 2, adapter=name)
        rollout = collect(LocalEngine(weights), [alone])[0][0]
        drawn[model] = tuple(answer.choices[0].token_ids)
        assert drawn[model] == rollout.completion_ids
    assert drawn["fine"] != drawn["other"]


def test_tools_are_put_into_the_prompt(server, client, tiny):
    tokenizer = Tokenizer.load(tiny)
    ask = {"model": "tiny", "messages": ASK, "tools": [TOOL]}
    found = httpx.post(f"{server}/tokenize", json=ask).json()
    text = tokenizer.decode(found["tokens"])
    assert '<|tool|>[{"name": "weather"' in text and found["count"] == len(found["tokens"])
    said = client.chat.completions.create(**ask, max_tokens=3)
    assert said.usage.prompt_tokens == found["count"]
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    messages = [*ASK, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "9"}]
    found = httpx.post(f"{server}/tokenize", json={"model": "tiny", "messages": messages}).json()
    assert tokenizer.id_of("<|tool_call|>") in found["tokens"]


def test_tokenize_and_back(server):
    text = "the cat 🙂 <|end|>"
    ids = httpx.post(f"{server}/tokenize", json={"model": "tiny", "prompt": text}).json()["tokens"]
    back = httpx.post(f"{server}/detokenize", json={"model": "tiny", "tokens": ids}).json()
    assert back == {"prompt": text}
    answer = httpx.post(f"{server}/detokenize", json={"model": "tiny", "tokens": [5, 99999]})
    assert answer.status_code == 400 and "99999" in answer.json()["error"]["message"]


def test_models_health_and_figures(server, client):
    assert [m.id for m in client.models.list()] == ["tiny", "other", "fine"]
    assert client.models.retrieve("fine").parent == "other"
    assert httpx.get(f"{server}/healthz").json() == {"status": "ok"}
    client.completions.create(model="other", prompt="the", max_tokens=5)
    text = httpx.get(f"{server}/metrics").text
    assert 'phikit_time_to_first_token_seconds_count{model="other"}' in text
    assert 'phikit_answers_total{path="/v1/completions",status="200"}' in text
    assert 'phikit_cache_blocks_used{model="tiny"} 0.0' in text


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"model": "tinny"}, 404, "model"),
        ({"colour": "red"}, 400, "colour"),
        ({"top_logprobs": 3}, 400, "top_logprobs"),
        ({"response_format": {"type": "json_schema"}}, 400, "response_format"),
        ({"response_format": {"type": "regex", "regex": "(a"}}, 400, "response_format"),
        ({"presence_penalty": 3}, 400, "presence_penalty"),
        ({"logit_bias": {"cat": 1}}, 400, "logit_bias"),
        ({"logit_bias": {"--5": 1}}, 400, "logit_bias"),
        ({"logit_bias": {"²": 1}}, 400, "logit_bias"),
        ({"logit_bias": {"9" * 5000: 1}}, 400, "logit_bias"),
        ({"logit_bias": {"99999": 1}}, 400, "logit_bias"),
        ({"stop": ["a"] * 17}, 400, "stop"),
        ({"stop": ["a", ""]}, 400, "stop.1"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, 400, "messages.0.content.0.type"),
        ({"tool_choice": "required"}, 400, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "no"}}}, 400, "tool_choice"),
        ({"temperature": -1}, 400, "temperature"),
        ({"n": 1000}, 400, "n"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "user"}]}, 400, "messages.0"),
        ({"messages": [{"role": "user", "content": "cat " * 999}]}, 400, "messages"),
    ],
)
def test_errors_are_openais(client, change, status, param):
    ask = {"model": "tiny", "messages": ASK, "max_tokens": 3} | change
    with pytest.raises(openai.APIStatusError) as caught:
        client.post("/chat/completions", body=ask, cast_to=object)
    assert caught.value.status_code == status
    assert caught.value.body["param"] == param and caught.value.body["message"]


# --- forms ---------------------------------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "properties": {"cat": {"enum": ["sat", "ate"]}, "times": {"type": "integer", "maximum": 99}},
    "required": ["cat", "times"],
    "additionalProperties": False,
}


def test_an_answer_keeps_to_a_schema(client, offline):
    form = {"type": "json_schema", "json_schema": {"name": "cats", "schema": SCHEMA}}
    ask = {"model": "tiny", "messages": ASK, "seed": 1, "n": 4, "response_format": form}
    whole = client.chat.completions.create(**ask, max_tokens=200)
    told = Constraint("json_schema", json.dumps(SCHEMA))
    model, chat = offline
    rollouts = expected((LocalEngine(model.model, tokenizer=chat.tokenizer), chat), ASK, 4, 1,
                        max_tokens=200, constraint=told)  # fmt: skip
    for choice, rollout in zip(whole.choices, rollouts, strict=True):
        assert choice.message.content == chat.text(rollout.completion_ids)
        assert choice.finish_reason == rollout.finish
        if choice.finish_reason == "stop":
            said = json.loads(choice.message.content)
            assert said["cat"] in ("sat", "ate") and said["times"] <= 99
    assert "stop" in [c.finish_reason for c in whole.choices]
    stream = client.chat.completions.create(**ask, max_tokens=200, stream=True)
    text = [""] * 4
    for chunk in stream:
        text[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert text == [c.message.content for c in whole.choices]


def test_other_forms(client):
    json_object = client.chat.completions.create(
        model="tiny", messages=ASK, max_tokens=9, response_format={"type": "json_object"}
    )
    assert json_object.choices[0].message.content.lstrip().startswith("{")
    for form in (
        {"type": "regex", "regex": "(cat|mat) (sat|ate)"},
        {"type": "grammar", "grammar": 'start: ("cat" | "mat") " " ("sat" | "ate")'},
    ):
        answer = client.completions.create(
            model="tiny", prompt="the", max_tokens=30, extra_body={"response_format": form}
        )
        assert re.fullmatch("(cat|mat) (sat|ate)", answer.choices[0].text)


def test_the_likeliest_tokens(client):
    ask = {"model": "tiny", "max_tokens": 6, "temperature": 0, "seed": 1}
    chat = client.chat.completions.create(**ask, messages=ASK, logprobs=True, top_logprobs=3)
    for entry in chat.choices[0].logprobs.content:
        assert [t.logprob for t in entry.top_logprobs] == sorted(
            (t.logprob for t in entry.top_logprobs), reverse=True
        )
        best = entry.top_logprobs[0]  # greedy takes it
        assert len(entry.top_logprobs) == 3 and (best.token, best.bytes) == (
            entry.token, entry.bytes
        )  # fmt: skip
        assert best.logprob == pytest.approx(entry.logprob, abs=1e-5)
    plain = client.completions.create(**ask, prompt="the cat", logprobs=2).choices[0]
    assert all(len(top) <= 2 for top in plain.logprobs.top_logprobs)
    assert plain.logprobs.text_offset[0] == 0
    chunks = client.completions.create(**ask, prompt="the cat", logprobs=2, stream=True)
    parts = [c.choices[0].logprobs for c in chunks if c.choices[0].logprobs]
    assert [t for p in parts for t in p.tokens] == plain.logprobs.tokens
    assert [o for p in parts for o in p.text_offset] == plain.logprobs.text_offset
    assert [t for p in parts for t in p.top_logprobs] == plain.logprobs.top_logprobs


def test_usage_tells_what_the_cache_had(client):
    ids = [int(i) for i in range(5, 105)]
    ask = {"model": "tiny", "prompt": ids, "max_tokens": 2, "n": 2}
    first = client.completions.create(**ask).usage
    again = client.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    last = [chunk.usage for chunk in again][-1]
    assert first.prompt_tokens == last.prompt_tokens == 100
    assert last.prompt_tokens_details.cached_tokens > 90 > first.prompt_tokens_details.cached_tokens


def test_a_thought_is_kept_apart_also_while_streaming(client):
    form = {"type": "regex", "regex": "<think>[a-c ]{3,9}</think>\n\n(yes|no)"}
    ask = {"model": "tiny", "messages": ASK, "max_tokens": 60, "seed": 3}
    whole = client.chat.completions.create(**ask, extra_body={"response_format": form})
    said = whole.choices[0].message
    assert re.fullmatch("[a-c ]{3,9}", said.reasoning_content) and said.content in ("yes", "no")
    parts = {"reasoning_content": "", "content": ""}
    for chunk in client.chat.completions.create(
        **ask, stream=True, extra_body={"response_format": form}
    ):
        for name in parts:
            parts[name] += getattr(chunk.choices[0].delta, name, None) or ""
    assert parts == {"reasoning_content": said.reasoning_content, "content": said.content}
