import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phikit.chat.tools import ToolCall, parse_tool_calls
from phikit.errors import PhikitError

WEATHER = ToolCall("weather", {"city": "Oslo", "days": 2})
ONE = '{"name": "weather", "arguments": {"city": "Oslo", "days": 2}}'


@pytest.mark.parametrize(
    "text",
    [
        f"<|tool_call|>[{ONE}]<|/tool_call|>",
        f"I shall look.\n<|tool_call|>[{ONE}]<|/tool_call|> Wait.",
        f"<|tool_call|>[{ONE}]",
        f"<|tool_call|> {ONE} <|/tool_call|>",
        f"functools[{ONE}]",
        f"functools [{ONE}]",
        'functools[{"name": "weather", "parameters": {"city": "Oslo", "days": 2}}]',
        'functools[{"name": "weather", "arguments": "{\\"city\\": \\"Oslo\\", \\"days\\": 2}"}]',
    ],
)
def test_each_form_gives_the_call(text: str) -> None:
    assert parse_tool_calls(text) == [WEATHER]


def test_several_calls_keep_their_order() -> None:
    other = '{"name": "time"}'
    expected = [WEATHER, ToolCall("time", {}), WEATHER]
    assert parse_tool_calls(f"functools[{ONE}, {other}] functools[{ONE}]") == expected
    assert parse_tool_calls(f"<|tool_call|>[{ONE}, {other}, {ONE}]<|/tool_call|>") == expected


def test_talk_holds_no_calls() -> None:
    assert parse_tool_calls("import functools; weather[0] is what I'd call") == []


@given(st.dictionaries(st.text(), st.recursive(st.integers() | st.text(), st.lists)))
def test_arguments_come_back_whatever_they_hold(arguments: dict[str, object]) -> None:
    """Also brackets, quotes, and text that looks like another call."""
    text = json.dumps([{"name": "f", "arguments": arguments}])
    assert parse_tool_calls(f"functools{text}") == [ToolCall("f", arguments)]
    assert parse_tool_calls(f"<|tool_call|>{text}<|/tool_call|>") == [ToolCall("f", arguments)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('a functools[{"name": "f", "arguments": {"x": 1', "character 2 is not valid JSON"),
        ('functools[{"arguments": {}}]', "has no name"),
        ("functools[7]", "has no name"),
        ('functools[{"name": "f", "arguments": [1]}]', "no JSON object"),
        ('functools[{"name": "f", "arguments": "x"}]', "'f' are not valid JSON"),
    ],
)
def test_a_broken_call_says_what_is_wrong(text: str, said: str) -> None:
    with pytest.raises(PhikitError, match=said):
        parse_tool_calls(text)
