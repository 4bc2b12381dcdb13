"""Tool calls as they are being written: the name as soon as it is there, then the arguments."""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from phikit.chat.tools import parse_tool_calls
from phikit.errors import PhikitError

# how a call begins; one that is written in another way is told when it is whole
_HEAD = re.compile(
    r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)


class Delta(NamedTuple):
    """More of call number `call`: its name, when it begins, and text of its arguments."""

    call: int
    name: str | None
    arguments: str


class CallStream:
    """Reads the text of calls, from the first one's opening on."""

    def __init__(self) -> None:
        self.count = 0  # calls that have begun
        self._text = ""
        self._at = 0  # all before it is done with
        self._inside = False  # an object of arguments
        self._depth = 0
        self._quoted = self._escaped = False

    def push(self, text: str) -> list[Delta]:
        self._text += text
        out: list[Delta] = []
        while True:
            before = (self._at, self._inside)
            if self._inside:
                self._arguments(out)
            else:
                self._begin(out)
            if (self._at, self._inside) == before:
                return out

    def _begin(self, out: list[Delta]) -> None:
        start = self._text.find("{", self._at)
        if start < 0:
            return
        if head := _HEAD.match(self._text, start):
            try:
                name = json.loads(head[1])
            except ValueError:  # an escape that is none
                self._at = head.end()
                return
            out.append(Delta(self.count, name, ""))
            self.count += 1
            self._at, self._inside = head.end(), True
            return
        try:
            _, end = json.JSONDecoder().raw_decode(self._text, start)
        except ValueError:
            return  # not whole yet
        try:
            calls = parse_tool_calls(f"<|tool_call|>{self._text[start:end]}")
        except PhikitError:
            calls = []  # braces that are no call
        for call in calls:
            arguments = json.dumps(call.arguments, ensure_ascii=False)
            out.append(Delta(self.count, call.name, arguments))
            self.count += 1
        self._at = end

    def _arguments(self, out: list[Delta]) -> None:
        start = self._at
        while self._at < len(self._text):
            letter = self._text[self._at]
            self._at += 1
            if self._quoted:
                if self._escaped:
                    self._escaped = False
                elif letter == "\\":
                    self._escaped = True
                elif letter == '"':
                    self._quoted = False
            elif letter == '"':
                self._quoted = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self._inside = False
                    break
        if self._at > start:
            out.append(Delta(self.count - 1, None, self._text[start : self._at]))
