"""Tool calls by the real client: forced and free, one and several, strict and not."""

import json
import re

import openai
import pytest
from test_openai_client import ASK, SCHEMA, TOOL

from phikit.chat.tokenizer import Tokenizer

TOWNS = {
    "type": "object", "properties": {"town": {"enum": ["Ulm", "Bonn"]}}, "required": ["town"],
    "additionalProperties": False,
}  # fmt: skip
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": TOWNS}}
TOOL_CHOICE = {"type": "function", "function": {"name": "weather"}}


@pytest.mark.parametrize("choice", ["required", TOOL_CHOICE])
def test_a_forced_call_comes_whole_and_as_a_stream(client, choice):
    other = {"type": "function", "function": {"name": "other"}}
    ask = {
        "model": "tiny", "messages": ASK, "tools": [other, WEATHER],
        "tool_choice": choice, "max_tokens": 300, "parallel_tool_calls": False,
    }  # fmt: skip
    seeds = 0
    for seed in range(4):
        whole = client.chat.completions.create(**ask, seed=seed).choices[0]
        if whole.finish_reason != "tool_calls":
            continue
        [call] = whole.message.tool_calls
        if call.function.name == "weather":
            seeds += 1
            assert json.loads(call.function.arguments)["town"] in ("Ulm", "Bonn")
        name, arguments, finish = "", "", None
        for chunk in client.chat.completions.create(**ask, seed=seed, stream=True):
            finish = chunk.choices[0].finish_reason or finish
            for delta in chunk.choices[0].delta.tool_calls or ():
                assert delta.index == 0
                name += delta.function.name or ""
                arguments += delta.function.arguments or ""
        assert (name, finish) == (call.function.name, "tool_calls")
        assert json.loads(arguments) == json.loads(call.function.arguments)
    assert seeds


def calls_of(client, ask, **settings):
    """The calls of an answer as (name, arguments), the same whole and as a stream; or None, when
    it was cut off."""
    whole = client.chat.completions.create(**ask, **settings).choices[0]
    found, finish, text = {}, None, ""
    for chunk in client.chat.completions.create(**ask, **settings, stream=True):
        [choice] = chunk.choices
        finish = choice.finish_reason or finish
        text += choice.delta.content or ""
        for delta in choice.delta.tool_calls or ():
            call = found.setdefault(delta.index, ["", ""])
            call[0] += delta.function.name or ""
            call[1] += delta.function.arguments or ""
    assert finish == whole.finish_reason
    calls = [(c.function.name, c.function.arguments) for c in whole.message.tool_calls or ()]
    if finish == "length":  # whole calls, and the beginning of one
        assert calls == [tuple(call) for call in found.values()]
        assert text == (whole.message.content or "")
        return None
    assert [(name, json.loads(a)) for name, a in calls] == [
        (name, json.loads(a)) for name, a in found.values()
    ]
    assert text == (whole.message.content or "")
    return [(name, json.loads(arguments)) for name, arguments in calls]


def begun(tiny, **settings):
    """A request whose answer begins a call by itself."""
    token = Tokenizer.load(tiny).id_of("<|tool_call|>")
    return {
        "model": "tiny", "messages": ASK, "max_tokens": 300, "logit_bias": {str(token): 100},
        "temperature": 0.3, **settings,
    }  # fmt: skip


@pytest.mark.parametrize("parallel", [True, False])
def test_strict_arguments_keep_to_their_schema_also_when_calls_are_free(client, tiny, parallel):
    nested = TOWNS | {
        "properties": {"town": {"$ref": "#/$defs/Town"}}, "$defs": {"Town": {"enum": ["Ulm"]}},
    }  # fmt: skip
    tools = [
        {"type": "function", "function": {"name": name, "strict": True, "parameters": schema}}
        for name, schema in (("weather", TOWNS), ("nested", nested))
    ]
    counts = []
    ask = begun(tiny, tools=tools, parallel_tool_calls=parallel)
    for seed in range(6):
        calls = calls_of(client, ask, seed=seed)
        if calls is not None:
            counts.append(len(calls))
            for name, arguments in calls:
                towns = {"weather": ("Ulm", "Bonn"), "nested": ("Ulm",)}[name]
                assert arguments in [{"town": town} for town in towns]
    assert counts and (max(counts) > 1) == parallel
    plain = client.chat.completions.create(
        model="tiny", messages=ASK, tools=tools, max_tokens=20, seed=4
    )
    assert plain.choices[0].message.content and not plain.choices[0].message.tool_calls


@pytest.mark.parametrize("choice", ["auto", "required", TOOL_CHOICE])
def test_no_parallel_calls_are_at_most_one(client, tiny, choice):
    counts = set()
    for seed in range(3):
        ask = begun(tiny, tools=[WEATHER, TOOL], tool_choice=choice, parallel_tool_calls=False)
        calls = calls_of(client, ask, seed=seed)
        counts.add(None if calls is None else len(calls))
    assert 1 in counts and counts <= {1, None}


def test_a_call_that_is_cut_off_is_told_as_far_as_it_goes(client, tiny):
    ask = begun(tiny, tools=[WEATHER], tool_choice="required")
    whole = client.chat.completions.create(**ask, seed=1).choices[0].message.tool_calls
    written = "".join(whole[0].function.arguments.split())
    for tokens in (3, 42, 47):
        assert calls_of(client, ask | {"max_tokens": tokens}, seed=1) is None
        answer = client.chat.completions.create(**ask | {"max_tokens": tokens}, seed=1)
        cut = answer.choices[0].message.tool_calls
        assert (cut is None) == (tokens == 3)
        if cut is not None:
            begun_with = "".join(cut[0].function.arguments.split())
            assert cut[0].function.name == "weather" and written.startswith(begun_with)


def test_an_answer_of_a_schema_may_be_a_call_instead(client, tiny):
    form = {"type": "json_schema", "json_schema": {"name": "cats", "schema": SCHEMA}}
    ask = begun(tiny, tools=[WEATHER], response_format=form, parallel_tool_calls=False)
    found = [calls_of(client, ask, seed=seed) for seed in range(4)]
    assert [("weather", {"town": "Ulm"})] in found or [("weather", {"town": "Bonn"})] in found
    del ask["logit_bias"]
    said = client.chat.completions.create(**ask, seed=1).choices[0].message
    assert said.tool_calls or said.content.startswith("{")


def test_what_a_strict_tool_cannot_keep_to_is_refused(client):
    def ask(strict):
        schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
        function = {"name": "f", "strict": strict, "parameters": schema}
        return client.chat.completions.create(
            model="tiny", messages=ASK, tools=[{"type": "function", "function": function}],
            tool_choice="required", max_tokens=5,
        )  # fmt: skip

    with pytest.raises(openai.BadRequestError, match="uniqueItems") as caught:
        ask(strict=True)
    assert caught.value.param == "tools"
    assert ask(strict=False).choices


def test_a_call_in_the_other_way_of_writing(client):
    """What a model may say by itself, not forced: text, and then `functools[...]`."""
    call = '[{"name": "weather", "arguments": {"town": "Ulm"}}]'
    form = {"type": "regex", "regex": f"I ask\\. functools{re.escape(call)}"}
    ask = {
        "model": "tiny", "messages": ASK, "max_tokens": 200, "tools": [WEATHER],
        "extra_body": {"response_format": form},
    }  # fmt: skip
    whole = client.chat.completions.create(**ask).choices[0]
    assert whole.message.content == "I ask. " and whole.finish_reason == "tool_calls"
    assert json.loads(whole.message.tool_calls[0].function.arguments) == {"town": "Ulm"}
    text, name, arguments = "", "", ""
    for chunk in client.chat.completions.create(**ask, stream=True):
        delta = chunk.choices[0].delta
        text += delta.content or ""
        for part in delta.tool_calls or ():
            name += part.function.name or ""
            arguments += part.function.arguments or ""
    assert (text, name, json.loads(arguments)) == ("I ask. ", "weather", {"town": "Ulm"})
