"""Tokens to text as they come: whole characters, stop strings, reasoning, tool calls.

Text that may be the beginning of something that is not to be shown is held back until more of it
has come.
"""

from __future__ import annotations

from collections.abc import Sequence

from phikit.chat.templates import THINK
from phikit.chat.tokenizer import Tokenizer
from phikit.chat.tools import ToolCall, parse_tool_calls
from phikit.errors import PhikitError

_BROKEN = "\N{REPLACEMENT CHARACTER}"
_CALLS = ("<|tool_call|>", "functools")

#: what part of an answer it belongs to ("content", "reasoning_content"), and the text
Part = tuple[str, str]


def beginning(text: str, words: Sequence[str]) -> int:
    """How many of the last characters may be the beginning of one of the words, but not all."""
    longest = max(map(len, words), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(word.startswith(text[-size:]) for word in words):
            return size
    return 0


class Characters:
    """Tokens to text, never half a character; what a stop string begins is cut off.

    Attributes:
        stopped: a stop string is complete; no more tokens are wanted.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop, self.stopped = tokenizer, stop, False
        self._tokens: list[int] = []
        self._shown = 0  # characters of those tokens' text that are out already
        self._held = ""

    def push(self, token: int) -> str:
        self._tokens.append(token)
        text = self.tokenizer.decode(self._tokens)
        whole = text.rstrip(_BROKEN)
        new = whole[self._shown :]
        self._shown = max(self._shown, len(whole))
        if whole == text:
            self._tokens, self._shown = [], 0
        return self._look(new)

    def finish(self) -> str:
        """The rest: bytes that never became a character come out as U+FFFD."""
        if self.stopped:
            return ""
        rest = self.tokenizer.decode(self._tokens)[self._shown :]
        self._tokens, self._shown = [], 0
        text = self._look(rest)
        return text if self.stopped else text + self._held

    def _look(self, new: str) -> str:
        if not self.stop:
            return new
        text = self._held + new
        found = [at for word in self.stop if (at := text.find(word)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        size = beginning(text, self.stop)
        self._held = text[len(text) - size :]
        return text[: len(text) - size]


class Parts:
    """Tells the reasoning (`<think>` at the beginning of an answer) and tool calls from the answer.

    Attributes:
        calls: the tool calls, when the answer is at its end.
    """

    def __init__(self, tools: bool) -> None:
        self.tools, self.calls = tools, list[ToolCall]()
        self._state = "start"
        self._held = ""

    def push(self, text: str) -> list[Part]:
        self._held += text
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
                size = beginning(thought, THINK[1:])
                thought, self._held = thought[: len(thought) - size], thought[len(thought) - size :]
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
