"""Stop texts: found in the bytes of a completion while it grows.

UTF-8 keeps characters apart, so a text is in the completion exactly where its bytes are, however
the tokens cut them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import AnyStr


def beginning(text: AnyStr, words: Sequence[AnyStr]) -> int:
    """How many of the last bytes (or characters) may begin one of the words, but are not all of
    it."""
    longest = max(map(len, words), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(word.startswith(text[-size:]) for word in words):
            return size
    return 0


class StopTexts:
    """Looks for the first of several texts in what is pushed, and holds back what may begin one.

    Attributes:
        stopped: a stop text is complete; nothing more comes out.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.words = [text.encode() for text in texts]
        self.stopped = False
        self._held = b""

    def push(self, new: bytes) -> bytes:
        """Takes more of the completion; returns what certainly stands before a stop text."""
        if self.stopped:
            return b""
        if not self.words:
            return new
        text = self._held + new
        if (at := _first(text, self.words)) is not None:
            self.stopped, self._held = True, b""
            return text[:at]
        size = beginning(text, self.words)
        self._held = text[len(text) - size :]
        return text[: len(text) - size]

    def rest(self) -> bytes:
        """What was held back, when nothing more will come."""
        held, self._held = self._held, b""
        return held


def before_stop(text: str, texts: Sequence[str]) -> str:
    """A finished text up to the first stop text in it."""
    return text[: _first(text, texts)]


def _first(text: AnyStr, words: Sequence[AnyStr]) -> int | None:
    """Where the word begins that is complete first, and of those that end there, the longest: the
    same however the text comes in pieces."""
    found = [(at + len(word), at) for word in words if (at := text.find(word)) >= 0]
    return min(found)[1] if found else None
