"""The form that an answer must keep to: asked for by `response_format` or by a forced tool."""

from __future__ import annotations

import json
from typing import Any

from phikit.engine.base import Constraint
from phikit.serve.schema import ChatBody, CompletionBody, ResponseFormat, ToolChoice
from phikit.serve.served import Refused, Served

_MOST_CALLS = 8
_OPEN, _CLOSE = "<|tool_call|>", "<|/tool_call|>"


def constraint(model: Served, body: ChatBody | CompletionBody) -> Constraint | None:
    """What the body asks for, if anything.

    Raises:
        Refused: it asks for two things, or for a thing that the model has no words for.
    """
    form = _response(body.response_format) if body.response_format else None
    if not isinstance(body, ChatBody) or body.tool_choice in ("auto", "none"):
        return form
    if form is not None:
        raise Refused(
            "response_format", "an answer cannot be a forced tool call and of another form as well"
        )
    return _forced(model, body)


def _response(asked: ResponseFormat) -> Constraint | None:
    if asked.type == "text":
        return None
    if asked.type == "json_object":
        return Constraint("json_schema", '{"type": "object"}')
    if asked.type == "json_schema":
        if asked.json_schema is None:
            raise Refused("response_format", "response_format.json_schema is missing")
        return Constraint("json_schema", json.dumps(asked.json_schema.schema_))
    source = asked.regex if asked.type == "regex" else asked.grammar
    if source is None:
        raise Refused("response_format", f"response_format.{asked.type} is missing")
    return Constraint(asked.type, source)


def _forced(model: Served, body: ChatBody) -> Constraint:
    tools = body.tools
    if isinstance(body.tool_choice, ToolChoice):
        name = body.tool_choice.function.name
        tools = [tool for tool in tools if tool.function.name == name]
        if not tools:
            raise Refused("tool_choice", f"there is no tool {name!r}", _known(body))
    if not tools:
        raise Refused("tool_choice", "a tool is required, but there are no tools")
    if not {_OPEN, _CLOSE} <= model.tokenizer.special.keys():
        raise Refused("tool_choice", f"{model.name} has no tokens for tool calls", 'use "auto"')
    calls: dict[str, Any] = {
        "type": "array", "minItems": 1, "maxItems": _MOST_CALLS if body.parallel_tool_calls else 1,
        "items": {"anyOf": [_call(t.function.name, t.function.parameters) for t in tools]},
    }  # fmt: skip
    return Constraint("grammar", f"start: {_OPEN} calls {_CLOSE}\ncalls: %json {json.dumps(calls)}")


def _call(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    inside = {k: v for k, v in parameters.items() if k not in ("$schema", "$id")}
    return {
        "type": "object",
        "properties": {"name": {"const": name}, "arguments": {"type": "object", **inside}},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _known(body: ChatBody) -> str:
    return "there are " + ", ".join(repr(t.function.name) for t in body.tools)
