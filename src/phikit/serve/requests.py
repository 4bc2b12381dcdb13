"""From a request's body to what the engine is asked, or to the reason why not."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phikit.chat.format import ChatFormat, chat_format
from phikit.chat.load import load_tokenizer
from phikit.chat.tokenizer import Tokenizer
from phikit.engine.base import Request, Sampling, check
from phikit.engine.runners import Model, runner_of
from phikit.engine.scheduler import Scheduler
from phikit.errors import PhikitError
from phikit.models.load import load
from phikit.serve.schema import ChatBody, ChatMessage, CompletionBody, Tool
from phikit.serve.worker import Worker


class Refused(PhikitError):
    """A parameter is wrong, or is not supported; `param` names it."""

    def __init__(self, param: str, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.param = param


@dataclass(frozen=True)
class Limits:
    """What one client may ask for, and all of them together.

    Attributes:
        body: bytes of a request's body.
        tokens: new tokens of one sample; no limit but the model's context when None.
        samples: of one request (n × prompts).
        open: samples running or waiting, per model.
        requests: in flight at once.
        timeout: seconds until a request is ended.
        drain: seconds that requests in flight have, to finish after SIGTERM.
    """

    body: int = 4 * 2**20
    tokens: int | None = None
    samples: int = 128
    open: int = 1024
    requests: int = 256
    timeout: float = 600.0
    drain: float = 30.0


class Served:
    """A model that is served: its tokenizer, its chat format if it has one, and its engine."""

    def __init__(self, name: str, model: Model, tokenizer: Tokenizer, worker: Worker) -> None:
        self.name, self.tokenizer, self.worker = name, tokenizer, worker
        self.vocab_size = model.config.vocab_size
        self.context = model.config.max_positions
        blocks = worker.scheduler.blocks  # its size never changes
        self.room = min(self.context, (blocks.count - 1) * blocks.size)
        self.form: ChatFormat | None = None
        self.no_form = ""
        try:
            self.form = chat_format(tokenizer)
        except PhikitError as error:
            self.no_form = error.message
        ends = self.form.stop_ids if self.form else ()
        self.ends = tuple(dict.fromkeys((*ends, *model.config.eos_ids)))

    @classmethod
    def load(
        cls, name: str, directory: Path, rows: int, cache_bytes: int | None, share: float, most: int
    ) -> Served:
        """Loads a model directory or GGUF file and gives it an engine.

        Args:
            rows: samples generated at once.
            cache_bytes: of its KV cache; share: else, of the memory that is free.
            most: samples open at once.

        Raises:
            PhikitError: it cannot be loaded, or is no decoder that the engine runs.
        """
        model, tokenizer = load(directory), load_tokenizer(directory)
        scheduler = Scheduler(
            runner_of(model), max_rows=rows, cache_bytes=cache_bytes, cache_share=share
        )
        return cls(name, model, tokenizer, Worker(name, scheduler, most))

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
                arguments = json.loads(call.function.arguments)
            except ValueError:
                raise Refused(
                    "messages", f"the arguments of {call.function.name!r} are not valid JSON"
                ) from None
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


def refuse_unsupported(body: ChatBody | CompletionBody) -> None:
    """Refuses what OpenAI's interface has and this server has not, rather than ignoring it."""

    def never(name: str, asked: bool, instead: str = "leave it out") -> None:
        if asked:
            raise Refused(name, f"{name} is not supported by this server", instead)

    if body.stream_options and not body.stream:
        raise Refused("stream_options", "stream_options is for stream: true")
    if isinstance(body, ChatBody):
        never("top_logprobs", body.top_logprobs > 0, "logprobs gives the sampled token's own")
        kind = body.response_format.type if body.response_format else "text"
        never("response_format", kind != "text", "ask for JSON in the prompt")
        never("tool_choice", body.tool_choice not in ("auto", "none"), 'use "auto" or "none"')
        never("store", body.store)
    else:
        never("logprobs", bool(body.logprobs), "logprobs: 0 gives the sampled token's own")
        never("echo", body.echo)
        never("suffix", bool(body.suffix))
        never("best_of", body.best_of not in (None, body.n), "it may only be n")


def prompts(model: Served, body: CompletionBody) -> list[list[int]]:
    """The token ids of every prompt."""
    given = body.prompt
    if isinstance(given, str):
        return [model.tokenizer.encode(given)]
    if given and isinstance(given[0], int):
        return [list(given)]
    return [model.tokenizer.encode(p) if isinstance(p, str) else list(p) for p in given]  # type: ignore[arg-type]


def engine_requests(
    model: Served, body: ChatBody | CompletionBody, ids: Sequence[Sequence[int]], limits: Limits
) -> list[Request]:
    """One request per sample, prompt by prompt.

    Raises:
        Refused: the request is beyond a limit, or wrong for the model.
    """
    if not ids:
        raise Refused("prompt", "there is no prompt")
    if len(ids) * body.n > limits.samples:
        raise Refused(
            "n", f"{len(ids)} prompts × n = {body.n} are more than {limits.samples} samples"
        )
    seed = secrets.randbits(62) if body.seed is None else body.seed
    stop_ids = tuple(
        dict.fromkeys((*(() if body.ignore_eos else model.ends), *body.stop_token_ids))
    )
    bias = _bias(body)
    found = []
    for prompt in ids:
        sampling = Sampling(
            temperature=body.temperature,
            top_k=max(0, body.top_k),
            top_p=body.top_p,
            min_p=body.min_p,
            max_tokens=_max_tokens(model, body, len(prompt), limits),
            stop_ids=stop_ids,
            repetition_penalty=body.repetition_penalty,
            presence_penalty=body.presence_penalty,
            frequency_penalty=body.frequency_penalty,
            logit_bias=bias,
        )
        request = Request(tuple(prompt), sampling, seed=seed)
        try:
            check(request, model.vocab_size, model.context)
        except PhikitError as error:
            name = "messages" if isinstance(body, ChatBody) else "prompt"
            raise Refused(name, error.message, error.hint) from None
        found += [
            Request(request.prompt_ids, sampling, 1, seed, body.first_sample + i)
            for i in range(body.n)
        ]
    return found


def _bias(body: ChatBody | CompletionBody) -> tuple[tuple[int, float], ...]:
    """What is added to single tokens' logits; OpenAI's interface names tokens by text."""
    try:
        return tuple((int(token), value) for token, value in sorted(body.logit_bias.items()))
    except ValueError:
        wrong = next(token for token in body.logit_bias if not token.lstrip("-").isdigit())
        raise Refused(
            "logit_bias", f"logit_bias names {wrong!r}", "name tokens by their ids"
        ) from None


def _max_tokens(model: Served, body: ChatBody | CompletionBody, prompt: int, limits: Limits) -> int:
    name, asked = "max_tokens", body.max_tokens
    if isinstance(body, ChatBody) and body.max_completion_tokens is not None:
        if asked is not None and asked != body.max_completion_tokens:
            raise Refused(name, "max_tokens and max_completion_tokens differ", "give one")
        name, asked = "max_completion_tokens", body.max_completion_tokens
    if asked is None:
        if isinstance(body, CompletionBody):
            asked = 16  # OpenAI's
        else:
            asked = max(1, model.room - prompt)
            asked = asked if limits.tokens is None else min(asked, limits.tokens)
    if limits.tokens is not None and asked > limits.tokens:
        raise Refused(name, f"{name} is {asked}; this server allows {limits.tokens}")
    return asked
