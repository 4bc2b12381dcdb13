"""Tokens to text as they come: whole characters, stop texts, reasoning, tool calls.

Text that may be the beginning of something that is not to be shown is held back until more of it
has come.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from phikit.chat.templates import THINK
from phikit.chat.tools import ToolCall, parse_tool_calls
from phikit.engine.stops import StopTexts, beginning
from phikit.errors import PhikitError
from phikit.serve.calls import CallStream, Delta

_CALLS = ("<|tool_call|>", "functools")

#: what part of an answer it belongs to ("content", "reasoning_content"), and the text
Part = tuple[str, str]


class Characters:
    """Tokens to text, never half a character; what a stop text begins is cut off.

    Args:
        table: the bytes of every token.
    """

    def __init__(self, table: Sequence[bytes], stop: Sequence[str] = ()) -> None:
        self.table, self._stops = table, StopTexts(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, tokens: Sequence[int]) -> str:
        new = b"".join([self.table[token] for token in tokens])
        return self._decoder.decode(self._stops.push(new))

    def finish(self) -> str:
        """The rest: bytes that never became a character come out as U+FFFD."""
        return self._decoder.decode(self._stops.rest(), final=True)


class Parts:
    """Tells the reasoning (`<think>` at the beginning of an answer) and tool calls from the answer.

    Attributes:
        calls: the tool calls, when the answer is at its end.
        deltas: of calls that are being written; whoever shows them takes them out.
    """

    def __init__(self, tools: bool) -> None:
        self.tools, self.calls = tools, list[ToolCall]()
        self.deltas: list[Delta] = []
        self._state = "start"
        self._held = ""
        self._calling: CallStream | None = None

    def push(self, text: str) -> list[Part]:
        self._held += text
        if self._calling is not None:
            self.deltas += self._calling.push(text)
            return []
        out: list[Part] = []
        if self._state == "start":
            begun = self._held.lstrip()
            if begun.startswith(THINK[0]):
                self._state, self._held = "think", begun[len(THINK[0]) :]
            elif not THINK[0].startswith(begun):
                self._state = "answer"
        if self._state == "think":
            thought, end, rest = self._held.partition(THINK[1])
            if end:
                self._state, self._held = "after", rest
            else:
                at = len(thought) - beginning(thought, THINK[1:])
                thought, self._held = thought[:at], thought[at:]
            out.append(("reasoning_content", thought))
        if self._state == "after":  # white space between the two belongs to neither
            self._held = self._held.lstrip()
            self._state = "answer" if self._held else "after"
        if self._state == "answer":
            out.append(("content", self._answer()))
        return [part for part in out if part[1]]

    def _answer(self) -> str:
        at = len(self._held)
        if self.tools:
            found = [i for word in _CALLS if (i := self._held.find(word)) >= 0]
            at = min(found) if found else at - beginning(self._held, _CALLS)
            if found:
                self._calling = CallStream()
                self.deltas += self._calling.push(self._held[at:])
        text, self._held = self._held[:at], self._held[at:]
        return text

    def finish(self) -> list[Part]:
        """The rest. A call that cannot be read is shown as it was written."""
        rest, self._held = self._held, ""
        if self._state == "think":
            return [("reasoning_content", rest)] if rest else []
        if self.tools and rest:
            try:
                self.calls = parse_tool_calls(rest)
            except PhikitError:
                self.calls = []
            if self.calls:
                return []
        return [("content", rest)] if rest else []

    @property
    def calling(self) -> bool:
        """Whether a call has been told of in `deltas`."""
        return self._calling is not None and self._calling.count > 0
