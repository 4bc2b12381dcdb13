"""Every parameter is honoured, or refused by name, or known to make no difference."""

import json

import httpx
import pytest
from test_openai_client import ASK, TOOL
from test_tool_calls import WEATHER

REFUSED = {
    "n": [("2", "invalid_type"), (True, "invalid_type"), (2.0, "invalid_type"),
          (0, "invalid_value")],
    "stream": [("yes", "invalid_type")],
    "logprobs": [(1, "invalid_type")],
    "parallel_tool_calls": [("no", "invalid_type")],
    "service_tier": [("flex", "invalid_value")],
    "store": [(True, "unsupported_parameter")],
    "reasoning_effort": [("low", "unsupported_parameter")],
    "prediction": [({"type": "content", "content": "x"}, "unsupported_parameter")],
    "audio": [({"voice": "alloy", "format": "wav"}, "unsupported_parameter")],
    "functions": [([], "unsupported_parameter")],
    "min_tokens": [(3, "unknown_parameter")],
    "stream_options": [({"include_usage": True}, "invalid_value")],
    "response_format": [({"type": "json_object", "regex": "a"}, "invalid_value")],
    "modalities.1": [(["text", "audio"], "invalid_value")],
    "tools.0.function": [([TOOL | {"function": {"name": "f", "parameters": {"type": "string"}}}],
                          "invalid_value")],
    "tools.0.function.name": [([TOOL | {"function": {"name": ""}}], "invalid_value")],
    "model": [(None, "missing_required_parameter"), ("", "model_not_found")],
    "messages": [([{"role": "user", "content": "cat " * 999}], "context_length_exceeded")],
    "messages.0": [([{"role": "assistant", "tool_calls": []}], "invalid_value")],
}  # fmt: skip


@pytest.mark.parametrize(
    ("param", "value", "code"), [(p, v, c) for p, told in REFUSED.items() for v, c in told]
)
def test_what_has_no_effect_is_refused_by_name(server, param, value, code):
    body = {"model": "tiny", "messages": ASK, "max_tokens": 3, param.split(".")[0]: value}
    error = httpx.post(f"{server}/v1/chat/completions", json=body).json()["error"]
    assert (error["param"], error["code"]) == (param, code)
    assert error["type"] == "invalid_request_error"
    assert param.split(".")[0] in error["message"] or code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("param", "value"),
    [("best_of", 2), ("echo", True), ("suffix", "x"), ("logprobs", True), ("messages", ASK)],
)
def test_completions_refuse_by_name_as_well(server, param, value):
    body = {"model": "tiny", "prompt": "the cat", "max_tokens": 3, param: value}
    error = httpx.post(f"{server}/v1/completions", json=body).json()["error"]
    assert error["param"] == param and error["code"] and param in error["message"]


def test_what_makes_no_difference_is_taken(client):
    ask = {"model": "tiny", "messages": ASK, "max_tokens": 9, "seed": 1}
    plain = client.chat.completions.create(**ask)
    idle = client.chat.completions.create(
        **ask, user="me", metadata={"a": "b"}, store=False, service_tier="auto",
        modalities=["text"], safety_identifier="me", prompt_cache_key="k", stop=None, n=None,
        max_completion_tokens=9, parallel_tool_calls=False, tool_choice="none",
    )  # fmt: skip
    assert idle.choices == plain.choices
    chunks = client.chat.completions.create(
        **ask, stream=True, stream_options={"include_usage": False, "include_obfuscation": False}
    )
    parts = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(parts) == plain.choices[0].message.content


def test_messages_in_every_way_of_writing(server):
    def prompt(*messages):
        answer = httpx.post(f"{server}/tokenize", json={"model": "tiny", "messages": messages})
        assert answer.status_code == 200, answer.text
        return answer.json()["tokens"]

    parts = [{"type": "text", "text": "the "}, {"type": "text", "text": "cat"}]
    assert prompt({"role": "user", "content": parts}) == prompt(*ASK)
    said = {"role": "developer", "content": "sat"}, {"role": "system", "content": "sat"}
    assert prompt(said[0], *ASK) == prompt(said[1], *ASK)
    whole = {"role": "assistant", "content": "no", "annotations": [], "audio": None}
    bare = {"role": "assistant", "content": "no"}
    refused = {"role": "assistant", "content": None, "refusal": "no"}
    in_parts = {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}
    assert prompt(whole) == prompt(bare) == prompt(refused) == prompt(in_parts)

    def call(arguments):
        function = {"name": "f", "arguments": arguments}
        return {"role": "assistant", "tool_calls": [{"id": "1", "function": function}]}

    result = {"role": "tool", "tool_call_id": "1", "content": "9"}
    assert prompt(call(""), result) == prompt(call("{}"), result)
    body = {"model": "tiny", "messages": [call("[1]")]}
    error = httpx.post(f"{server}/tokenize", json=body).json()["error"]
    assert error["param"] == "messages" and "'f' are no JSON object" in error["message"]


def test_an_answer_goes_back_in_as_it_came_out(client):
    """What agents do with calls, and with thoughts."""
    form = {"type": "regex", "regex": "<think>[ab]{3}</think>yes"}
    thought = client.chat.completions.create(
        model="tiny", messages=ASK, max_tokens=60, extra_body={"response_format": form}
    )
    call = client.chat.completions.create(
        model="tiny", messages=ASK, max_tokens=300, tools=[WEATHER], tool_choice="required", seed=1
    )
    asked = thought.usage.prompt_tokens
    for answer in (thought, call):
        said = answer.choices[0].message.model_dump()
        again = client.chat.completions.create(
            model="tiny", messages=[*ASK, said, *ASK], max_tokens=3
        )
        assert again.usage.prompt_tokens > 2 * asked


def test_plain_mistakes_are_told_plainly(server):
    chat = f"{server}/v1/chat/completions"
    body = json.dumps({"model": "tiny", "messages": ASK})
    form = {"Content-Type": "application/x-www-form-urlencoded"}  # what curl -d says
    for answer, status, words in (
        (httpx.post(chat, content=body, headers=form), 400, "Content-Type: application/json"),
        (httpx.get(chat), 405, "'/v1/chat/completions' does not take GET"),
        (httpx.post(f"{server}/v1/embeddings", json={}), 404, "no path '/v1/embeddings'"),
        (httpx.post(f"{server}/tokenize", json={"model": "tiny", "prompt": "a", "tools": [TOOL]}),
         400, "tools are written into messages"),
    ):  # fmt: skip
        assert answer.status_code == status and words in answer.json()["error"]["message"]
