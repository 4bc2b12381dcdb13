"""The form that an answer must keep to: asked for by `response_format` or by tools.

Calls are written as phi-4-mini was taught to: `<|tool_call|>[{"name": ..., "arguments": ...}]` and
the closing token; of itself it also writes `functools[...]`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from phikit.chat.templates import THINK
from phikit.engine.base import Constraint
from phikit.engine.texts import WHITE_SPACE
from phikit.serve.schema import ChatBody, CompletionBody, Function, ResponseFormat, ToolChoice
from phikit.serve.served import Refused, Served

_MOST_CALLS = 8
_OPEN, _CLOSE = "<|tool_call|>", "<|/tool_call|>"

# Text runs until a call begins, which a list after `functools` does too, but not inside a thought
# (which an answer may also end in). A model may have tokens for thoughts, or write them as text.
_FREE = r"""start: thought? TEXT (calls | OPEN calls CLOSE)? | cut
thought: THOUGHT SPECIAL
cut: CUT TOKEN
CUT: /\s*<think>(?s:.*)/ & ~/(?s:.*)<\/think>(?s:.*)/
THOUGHT: /\s*<think>(?s:.*)<\/think>/ & ~/(?s:.*)<\/think>(?s:.+)/
TEXT: /(?s:.*)/ & ~/(?s:.*)(functools\s*\[|<\|tool_call\|>)(?s:.*)/
"""


def constraint(model: Served, body: ChatBody | CompletionBody) -> Constraint | None:
    """What the body asks for, if anything.

    Raises:
        Refused: it asks for two things, or for a thing that the model has no words for.
    """
    form = _response(body.response_format) if body.response_format else None
    if not isinstance(body, ChatBody) or body.tool_choice == "none":
        return form
    if body.tool_choice == "auto":
        return _allowed(model, body, form) if body.tools else form
    if form is not None:
        raise Refused(
            "response_format", "an answer cannot be a forced tool call and of another form as well"
        )
    return _forced(model, body)


def source(body: ChatBody | CompletionBody) -> str:
    """The parameter that a constraint comes from."""
    form = body.response_format is not None and body.response_format.type != "text"
    return "response_format" if form or not isinstance(body, ChatBody) else "tools"


def _response(asked: ResponseFormat) -> Constraint | None:
    for name in ("json_schema", "regex", "grammar"):
        if name != asked.type and getattr(asked, name) is not None:
            raise Refused(
                "response_format", f"response_format.{name} is for the type {name}; "
                f"the type is {asked.type}"
            )  # fmt: skip
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
    tools = [tool.function for tool in body.tools]
    if isinstance(body.tool_choice, ToolChoice):
        name = body.tool_choice.function.name
        tools = [tool for tool in tools if tool.name == name]
        if not tools:
            raise Refused("tool_choice", f"there is no tool {name!r}", _known(body))
    if not tools:
        raise Refused("tool_choice", "a tool is required, but there are no tools")
    if not {_OPEN, _CLOSE} <= model.tokenizer.special.keys():
        raise Refused("tool_choice", f"{model.name} has no tokens for tool calls", 'use "auto"')
    calls = _calls(tools, body.parallel_tool_calls)
    return Constraint("grammar", f"start: {_OPEN} calls {_CLOSE}\n{calls}")


def _allowed(model: Served, body: ChatBody, form: Constraint | None) -> Constraint | None:
    """An answer that may be a call, or end in one; nothing where calls are free as well."""
    tools = [tool.function for tool in body.tools]
    held = not body.parallel_tool_calls or any(tool.strict for tool in tools)
    special = model.tokenizer.special
    if form is None:
        if not held:
            return None
        grammar = _FREE.replace("OPEN", _word(model, _OPEN)).replace("CLOSE", _word(model, _CLOSE))
        begun = f"| /\\s*/ {THINK[0]} /(?s:.*)/" if special.keys() >= {*THINK} else ""
        grammar = grammar.replace("SPECIAL", f"{begun} {THINK[1]}" if begun else "")
        grammar = grammar.replace("TOKEN", begun)
    elif form.kind != "json_schema":
        if held:
            name = "strict" if body.parallel_tool_calls else "parallel_tool_calls: false"
            raise Refused(
                "response_format",
                f"an answer of the type {form.kind} says itself which calls it may hold; "
                f"{name} cannot be kept to as well", "leave one of the two out",
            )  # fmt: skip
        return form
    elif not {_OPEN, _CLOSE} <= special.keys():
        return form
    else:
        grammar = f"start: answer | {_OPEN} calls {_CLOSE}\nanswer: {_json(form.source)}\n"
    return Constraint("grammar", grammar + _calls(tools, body.parallel_tool_calls))


def _word(model: Served, word: str) -> str:
    """How a grammar names it: as a token, or as text where it is none."""
    return word if word in model.tokenizer.special else json.dumps(word)


def _calls(tools: Sequence[Function], several: bool) -> str:
    """The rules of a list of calls. Each tool's schema is one for itself, so that references in it
    mean what they say."""
    more = f" (/, ?/ call){{0,{_MOST_CALLS - 1}}}" if several else ""
    names = " | ".join(f"call_{i}" for i in range(len(tools)))
    rules = [f'calls: "[" call{more} "]"', f"call: {names}"]
    for i, tool in enumerate(tools):
        head = json.dumps(f'{{"name": {json.dumps(tool.name)}, "arguments": ')
        schema = {"type": "object", **tool.parameters}
        rules.append(f'call_{i}: {head} arguments_{i} "}}"')
        rules.append(f"arguments_{i}: {_json(json.dumps(schema), lenient=not tool.strict)}")
    return "\n".join(rules)


def _json(schema: str, lenient: bool = False) -> str:
    """A schema inside a grammar.

    Args:
        lenient: keywords that cannot be enforced are passed over, not refused.
    """
    told = json.loads(schema)
    told = told if isinstance(told, dict) else {} if told else {"not": {}}
    options = {"whitespace_pattern": WHITE_SPACE, "lenient": lenient}
    return f"%json {json.dumps(told | {'x-guidance': options})}"


def _known(body: ChatBody) -> str:
    return "there are " + ", ".join(repr(t.function.name) for t in body.tools)
