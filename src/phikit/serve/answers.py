"""From the engine's tokens to OpenAI's choices, whole or in chunks."""

from __future__ import annotations

import json
import secrets
import time
from typing import Any

from phikit.serve.requests import Served
from phikit.serve.text import Characters, Part, Parts
from phikit.serve.worker import Update

_FRAGMENT = "\N{REPLACEMENT CHARACTER}"


class Sample:
    """One choice in the making.

    Attributes:
        finish: OpenAI's finish_reason, when it is at its end.
        token_ids, logprobs, raw_logprobs: everything drawn, the end token included.
    """

    def __init__(
        self, model: Served, stops: tuple[str, ...], chat: bool, tools: bool, ends: tuple[int, ...]
    ) -> None:
        self.model, self.ends = model, frozenset(ends)
        self.characters = Characters(model.tokenizer, stops)
        self.parts = Parts(tools) if chat else None
        self.text: dict[str, str] = {}
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.raw_logprobs: list[float] = []
        self.finish: str | None = None
        self.fresh = 0  # tokens whose chunk is out already

    def feed(self, update: Update) -> list[Part]:
        """Takes news in; returns the new text."""
        new = ""
        columns = zip(update.tokens, update.logprobs, update.raw_logprobs, strict=True)
        for token, logprob, raw in columns:
            self.token_ids.append(token)
            self.logprobs.append(logprob)
            self.raw_logprobs.append(raw)
            if token in self.ends:
                continue
            new += self.characters.push(token)
            if self.characters.stopped:
                self.finish = "stop"
                break
        if update.finish is not None and self.finish is None:
            new += self.characters.finish()
            self.finish = "stop" if self.characters.stopped else update.finish
        if self.parts is None:
            out = [("text", new)] if new else []
        else:
            out = self.parts.push(new)
            if self.finish is not None:
                out += self.parts.finish()
                if self.parts.calls:
                    self.finish = "tool_calls"
        for name, text in out:
            self.text[name] = self.text.get(name, "") + text
        return out

    def calls(self) -> list[dict[str, Any]]:
        return [
            {
                "index": i,
                "id": f"call_{secrets.token_hex(12)}",
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": json.dumps(call.arguments, ensure_ascii=False),
                },
            }
            for i, call in enumerate(self.parts.calls if self.parts else ())
        ]

    def message(self) -> dict[str, Any]:
        calls = self.calls()
        said: dict[str, Any] = {"role": "assistant", "content": self.text.get("content", "")}
        if "reasoning_content" in self.text:
            said["reasoning_content"] = self.text["reasoning_content"]
        if calls:
            said["content"] = said["content"] or None
            said["tool_calls"] = [{k: v for k, v in c.items() if k != "index"} for c in calls]
        return said

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

    def chat_logprobs(self, start: int = 0) -> dict[str, Any]:
        """The model's own log-probabilities of the tokens."""
        content = []
        for token, raw in zip(self.token_ids[start:], self.raw_logprobs[start:], strict=True):
            text = self.model.tokenizer.decode([token])
            known = None if _FRAGMENT in text else list(text.encode())
            content.append({"token": text, "logprob": raw, "bytes": known, "top_logprobs": []})
        return {"content": content, "refusal": None}

    def plain_logprobs(self, start: int = 0) -> dict[str, Any]:
        decode = self.model.tokenizer.decode
        tokens = [decode([token]) for token in self.token_ids[start:]]
        before = len("".join(decode([token]) for token in self.token_ids[:start]))
        offsets = []
        for token in tokens:
            offsets.append(before)
            before += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": self.raw_logprobs[start:],
            "top_logprobs": None,
            "text_offset": offsets,
        }


def head(kind: str, model: str) -> dict[str, Any]:
    """What every answer and chunk begins with."""
    prefix = "chatcmpl" if kind.startswith("chat") else "cmpl"
    return {
        "id": f"{prefix}-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
    }


def usage(prompt: int, completion: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def event(data: Any) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(data).encode() + b"\n\n"
