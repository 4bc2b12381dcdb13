"""From a request's body to what the engine is asked, or to the reason why not."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from phikit.engine.base import Request, Sampling, check
from phikit.errors import PhikitError
from phikit.serve.forms import constraint
from phikit.serve.schema import ChatBody, CompletionBody
from phikit.serve.served import Refused, Served


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


def refuse_unsupported(body: ChatBody | CompletionBody) -> None:
    """Refuses what OpenAI's interface has and this server has not, rather than ignoring it."""

    def never(name: str, asked: bool, instead: str = "leave it out") -> None:
        if asked:
            text = f"{name} is not supported by this server"
            raise Refused(name, text, instead, "unsupported_parameter")

    if body.stream_options and not body.stream:
        raise Refused("stream_options", "stream_options is for stream: true")
    if isinstance(body, ChatBody):
        never("store", body.store)
        if body.top_logprobs and not body.logprobs:
            raise Refused("top_logprobs", "top_logprobs needs logprobs: true")
    else:
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
    whole = Sampling(
        temperature=body.temperature,
        top_k=max(0, body.top_k),
        top_p=body.top_p,
        min_p=body.min_p,
        stop_ids=stop_ids,
        stop=body.stops,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=_bias(model, body),
        constraint=constraint(model, body),
        top_logprobs=body.top_logprobs if isinstance(body, ChatBody) else body.logprobs or 0,
    )
    found = []
    for prompt in ids:
        sampling = replace(whole, max_tokens=_max_tokens(model, body, len(prompt), limits))
        request = Request(tuple(prompt), sampling, seed=seed)
        try:
            check(request, model.vocab_size, model.context)
        except PhikitError as error:
            name = "messages" if isinstance(body, ChatBody) else "prompt"
            long = len(prompt) >= model.context
            code = "context_length_exceeded" if long else "invalid_value"
            raise Refused(name, error.message, error.hint, code) from None
        found += [
            Request(request.prompt_ids, sampling, 1, seed, body.first_sample + i, model.adapter)
            for i in range(body.n)
        ]
    return found


def _bias(model: Served, body: ChatBody | CompletionBody) -> tuple[tuple[int, float], ...]:
    """What is added to single tokens' logits; OpenAI's interface names tokens by text."""
    for token in body.logit_bias:
        number = token.isascii() and token.isdecimal() and len(token) < 10
        if not number or int(token) >= model.vocab_size:
            raise Refused(
                "logit_bias", f"logit_bias names {token[:40]!r}; the ids of {model.name}'s tokens "
                f"are 0 to {model.vocab_size - 1}", "name tokens by their ids"
            )  # fmt: skip
    return tuple((int(token), value) for token, value in sorted(body.logit_bias.items()))


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
