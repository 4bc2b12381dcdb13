"""Tool calls in an answer: what the model asks to be called."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from phikit.errors import PhikitError

# phi-4-mini has tokens for the first form, and in practice often writes the second
_OPENING = re.compile(r"<\|tool_call\|>|functools(?=\s*\[)")


@dataclass(frozen=True)
class ToolCall:
    """One call: the tool's name and its arguments by name."""

    name: str
    arguments: dict[str, Any]


def parse_tool_calls(text: str) -> list[ToolCall]:
    """The calls in an answer, in order; none when it only talks.

    Both forms are read: `<|tool_call|>[{...}]<|/tool_call|>` and `functools[{...}]`, each call
    with `name` and `arguments` or `parameters`. A single call may stand without the list around
    it, arguments may be JSON text, and the closing token may be missing, as it is when it ended
    the completion.

    Raises:
        PhikitError: a call was begun but is not valid; says where and how.
    """
    calls: list[ToolCall] = []
    position = 0
    while opening := _OPENING.search(text, position):
        start = opening.end()
        start += len(text[start:]) - len(text[start:].lstrip())
        try:
            value, position = json.JSONDecoder().raw_decode(text, start)
        except json.JSONDecodeError as e:
            raise PhikitError(
                f"the tool call at character {opening.start()} is not valid JSON: {e.msg} at "
                f"character {e.pos}: {text[e.pos : e.pos + 40]!r}",
                "the answer may have been cut off; allow more tokens, or ask again",
            ) from e
        calls += [
            _call(v, opening.start()) for v in (value if isinstance(value, list) else [value])
        ]
    return calls


def _call(value: Any, where: int) -> ToolCall:
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(name, str):
        raise PhikitError(f"the tool call at character {where} has no name: {value!r:.80}")
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except json.JSONDecodeError as e:
            raise PhikitError(
                f"the arguments of {name!r} are not valid JSON: {e.msg}: {arguments!r:.80}"
            ) from e
    if not isinstance(arguments, dict):
        raise PhikitError(f"the arguments of {name!r} are no JSON object: {arguments!r:.80}")
    return ToolCall(name, arguments)
