"""A model that is served, and how its prompts are written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from phikit.chat.format import ChatFormat, chat_format
from phikit.chat.token_bytes import token_bytes
from phikit.chat.tokenizer import Tokenizer
from phikit.errors import PhikitError
from phikit.serve.schema import ChatMessage, Tool
from phikit.serve.worker import Worker


class Refused(PhikitError):
    """A parameter is wrong, or is not supported; `param` names it, `code` is OpenAI's word."""

    def __init__(
        self, param: str, message: str, hint: str = "", code: str = "invalid_value"
    ) -> None:
        super().__init__(message, hint)
        self.param, self.code = param, code


class Served:
    """A model that is served: its tokenizer, its chat format if it has one, and its engine, which
    has loaded it.

    Attributes:
        bytes: of every token.
        ends: tokens that end an answer.
        adapter: the LoRA adapter that makes it another model than the worker's own.
    """

    def __init__(self, name: str, tokenizer: Tokenizer, worker: Worker, adapter: str = "") -> None:
        self.name, self.tokenizer, self.worker, self.adapter = name, tokenizer, worker, adapter
        self.vocab_size: int = worker.about["vocab_size"]
        self.context: int = worker.about["context"]
        self.bytes = token_bytes(tokenizer, self.vocab_size)
        self.form: ChatFormat | None = None
        self.no_form = ""
        try:
            self.form = chat_format(tokenizer)
        except PhikitError as error:
            self.no_form = error.message
        ends = self.form.stop_ids if self.form else ()
        self.ends = tuple(dict.fromkeys((*ends, *worker.about["eos_ids"])))

    @property
    def room(self) -> int:
        """Positions that one sample may have; an engine that was started again may have others."""
        stats = self.worker.stats
        return min(self.context, stats["blocks"] * stats["block_size"])

    def conversation(self, messages: Sequence[ChatMessage], tools: Sequence[Tool]) -> list[int]:
        """The prompt of a conversation.

        Raises:
            Refused: the model has no chat format, or the format no place for what is asked.
        """
        if self.form is None:
            raise Refused(
                "messages", f"{self.name} cannot chat: {self.no_form}", "use /v1/completions"
            )
        plain = [_plain(m) for m in messages]
        if tools:
            if plain[0]["role"] != "system":
                plain.insert(0, {"role": "system", "content": ""})
            listed = [_described(tool) for tool in tools]
            plain[0]["tools"] = json.dumps(listed, ensure_ascii=False)
        try:
            return self.form.render(plain, generation_prompt=True).ids
        except PhikitError as error:
            raise Refused("tools" if tools else "messages", error.message, error.hint) from None


def _plain(message: ChatMessage) -> dict[str, str]:
    role = "system" if message.role == "developer" else message.role
    content = message.text
    if message.tool_calls:
        if role != "assistant":
            raise Refused("messages", f"a message of the role {role} has tool_calls")
        calls = []
        for call in message.tool_calls:
            try:
                arguments = json.loads(call.function.arguments or "{}")
            except ValueError:
                raise Refused(
                    "messages", f"the arguments of {call.function.name!r} are not valid JSON"
                ) from None
            if not isinstance(arguments, dict):
                raise Refused(
                    "messages", f"the arguments of {call.function.name!r} are no JSON object"
                )
            calls.append({"name": call.function.name, "arguments": arguments})
        content += f"<|tool_call|>{json.dumps(calls, ensure_ascii=False)}<|/tool_call|>"
    return {"role": role, "content": content}


def _described(tool: Tool) -> dict[str, Any]:
    function = tool.function
    return {
        "name": function.name,
        "description": function.description,
        "parameters": function.parameters,
    }
