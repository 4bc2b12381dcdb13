"""From the engine's tokens to OpenAI's choices, whole or in chunks."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

from phikit.serve.served import Served
from phikit.serve.text import Characters, Part, Parts
from phikit.serve.worker import Update

_ENCODE = json.JSONEncoder(separators=(",", ":")).encode


class Sample:
    """One choice in the making.

    Args:
        stream: its text is shown as it comes.
        chat: it has parts (reasoning, the answer, calls of `tools`).
        ends: tokens that end it and are not shown.

    Attributes:
        finish: OpenAI's finish_reason, when it is at its end.
        token_ids, logprobs, raw_logprobs: everything drawn, the end token included.
        tops: of every token the likeliest ones, when they were asked.
        reused: prompt tokens that were found in the cache.
    """

    def __init__(
        self, model: Served, stops: tuple[str, ...], stream: bool, chat: bool, tools: bool,
        ends: tuple[int, ...],
    ) -> None:  # fmt: skip
        self.model, self.ends, self.stream = model, frozenset(ends), stream
        self.characters = Characters(model.bytes, stops)
        self.parts = Parts(tools) if chat else None
        self.text: dict[str, str] = {}
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.raw_logprobs: list[float] = []
        self.tops: list[Sequence[tuple[int, float]]] = []
        self.finish: str | None = None
        self.reused = 0
        self.problem = ""
        self.fresh = 0  # tokens whose chunk is out already
        self._ids: list[str] = []  # of calls
        self._offset, self._counted = 0, 0

    def feed(self, updates: Sequence[Update]) -> list[Part]:
        """Takes news in; returns the new text."""
        tokens = [token for update in updates for token in update.tokens]
        for update in updates:
            self.logprobs += update.logprobs
            self.raw_logprobs += update.raw_logprobs
            self.tops += update.tops
            if update.finish is not None:
                self.finish, self.reused = update.finish, update.reused
                self.problem = update.problem
        self.token_ids += tokens
        new = self.characters.push([token for token in tokens if token not in self.ends])
        if self.finish is not None:
            new += self.characters.finish()
        out = [("text", new)] if new else []
        if self.parts is not None:
            out = self.parts.push(new)
            if self.finish is not None:
                out += self._end(self.parts)
        for name, text in out:
            self.text[name] = self.text.get(name, "") + text
        return out

    def _end(self, parts: Parts) -> list[Part]:
        out = parts.finish()
        if parts.calls:
            self.finish = "tool_calls"
        elif parts.calling and (self.stream or self.finish == "length"):
            out = []  # the call is told as far as it was written
        return out

    # --- tool calls ------------------------------------------------------------------------------

    def _id(self, index: int) -> str:
        while len(self._ids) <= index:
            self._ids.append(f"call_{secrets.token_hex(12)}")
        return self._ids[index]

    def call_deltas(self) -> list[dict[str, Any]]:
        """What is new of the calls, for a chunk."""
        if self.parts is None:
            return []
        deltas, self.parts.deltas = self.parts.deltas, []
        found: list[dict[str, Any]] = []
        for index, name, arguments in deltas:
            if name is not None:
                function = {"name": name, "arguments": arguments}
                found.append(
                    {"index": index, "id": self._id(index), "type": "function",
                     "function": function}
                )  # fmt: skip
            elif found and found[-1]["index"] == index:
                found[-1]["function"]["arguments"] += arguments
            else:
                found.append({"index": index, "function": {"arguments": arguments}})
        return found

    def message(self) -> dict[str, Any]:
        said: dict[str, Any] = {"role": "assistant", "content": self.text.get("content", "")}
        if "reasoning_content" in self.text:
            said["reasoning_content"] = self.text["reasoning_content"]
        if calls := self._calls():
            said["content"] = said["content"] or None
            said["tool_calls"] = [
                {
                    "id": self._id(i),
                    "type": "function",
                    "function": {"name": name, "arguments": arguments},
                }
                for i, (name, arguments) in enumerate(calls)
            ]
        return said

    def _calls(self) -> list[tuple[str, str]]:
        """Names and arguments; of an answer that was cut off, as far as they were written."""
        if self.parts is None:
            return []
        if self.parts.calls or self.finish != "length":
            return [
                (call.name, json.dumps(call.arguments, ensure_ascii=False))
                for call in self.parts.calls
            ]
        found: list[tuple[str, str]] = []
        for _, name, arguments in self.parts.deltas:
            if name is not None:
                found.append((name, arguments))
            else:
                found[-1] = (found[-1][0], found[-1][1] + arguments)
        return found

    # --- log-probabilities -----------------------------------------------------------------------

    def extras(self, start: int, prompt: tuple[int, ...] | None) -> dict[str, Any]:
        """Token ids and log-probabilities from token `start` on."""
        found: dict[str, Any] = {
            "token_ids": self.token_ids[start:],
            "sampling_logprobs": self.logprobs[start:],
            "raw_logprobs": self.raw_logprobs[start:],
        }
        if prompt is not None:
            found["prompt_token_ids"] = list(prompt)
        return found

    def _spelled(self, token: int, logprob: float) -> dict[str, Any]:
        data = self.model.bytes[token]
        return {"token": data.decode(errors="replace"), "logprob": logprob, "bytes": list(data)}

    def chat_logprobs(self, start: int = 0) -> dict[str, Any]:
        """The model's own log-probabilities of the tokens, and of the likeliest ones."""
        tops = self.tops[start:] or [()] * (len(self.token_ids) - start)
        columns = zip(self.token_ids[start:], self.raw_logprobs[start:], tops, strict=True)
        content = [
            self._spelled(token, raw) | {"top_logprobs": [self._spelled(*one) for one in top]}
            for token, raw, top in columns
        ]
        return {"content": content, "refusal": None}

    def plain_logprobs(self, start: int = 0) -> dict[str, Any]:
        """The same as `/v1/completions` has it; offsets are counted in characters."""
        table = self.model.bytes
        for token in self.token_ids[self._counted : start]:
            self._offset += _letters(table[token])
        self._counted, at, offsets = start, self._offset, []
        for token in self.token_ids[start:]:
            offsets.append(at)
            at += _letters(table[token])
        tops = [
            {_name(table[token]): raw for token, raw in reversed(top)} for top in self.tops[start:]
        ]
        return {
            "tokens": [_name(table[t]) for t in self.token_ids[start:]],
            "token_logprobs": self.raw_logprobs[start:],
            "top_logprobs": tops or None,
            "text_offset": offsets,
        }


def _name(data: bytes) -> str:
    """How `/v1/completions` names a token: by its text, or by bytes that are no whole characters,
    so that two tokens never have the same name."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _letters(data: bytes) -> int:
    """How many characters begin in some bytes of UTF-8."""
    return sum(byte & 0xC0 != 0x80 for byte in data)


def head(kind: str, model: str) -> dict[str, Any]:
    """What every answer and chunk begins with."""
    prefix = "chatcmpl" if kind.startswith("chat") else "cmpl"
    return {
        "id": f"{prefix}-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
    }


def usage(prompt: int, completion: int, cached: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def event(data: Any) -> bytes:
    """A server-sent event."""
    return b"data: " + _ENCODE(data).encode() + b"\n\n"


class Chunks:
    """The chunks of one stream as server-sent events: what all begin with is written once."""

    def __init__(self, start: dict[str, Any]) -> None:
        self._opening = b"data: " + _ENCODE(start)[:-1].encode() + b',"choices":['

    def of(self, choice: dict[str, Any]) -> bytes:
        return self._opening + _ENCODE(choice).encode() + b"]}\n\n"
