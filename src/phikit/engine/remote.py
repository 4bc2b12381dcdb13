"""A generator over any OpenAI-compatible endpoint.

Against a server that takes and returns token ids (phikit's own does) a rollout is what the local
engine would give: exact ids and both log-probabilities. Any other server gets the prompt as text,
and its answer's text is tokenized here: the ids may not be those that were sampled and there are
no log-probabilities, so such rollouts are marked by `meta["ids"] = "retokenized"`.
"""

from __future__ import annotations

import json
import random
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import httpx

from phikit.chat.tokenizer import Tokenizer
from phikit.engine.base import Constraint, Finished, Request
from phikit.errors import PhikitError
from phikit.records import Rollout

_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)  # statuses that may pass
_LONGEST = 60.0  # seconds to wait between two attempts
_COMMON = ("repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias")


class RemoteGenerator:
    """A `Generator` whose tokens come from an endpoint's `/v1/completions`.

    Args:
        url: of the server, up to and including `/v1`.
        model: its name there.
        api_key: sent as a bearer token, when there is one.
        tokenizer: the model's own; needed for servers without token ids, and then their answers
            are marked. When left out such a server is refused.
        in_flight: requests at once.
        attempts: how often a request is tried, when the server is busy or away. The waits between
            grow from half a second to a minute, or are what `Retry-After` says.
        timeout: seconds for one attempt.

    Attributes:
        exact: whether the server speaks token ids; None until it has been asked.
    """

    def __init__(
        self,
        url: str,
        model: str,
        api_key: str = "",
        tokenizer: Tokenizer | None = None,
        in_flight: int = 32,
        attempts: int = 6,
        timeout: float = 600.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        if in_flight < 1 or attempts < 1:
            raise PhikitError(f"in_flight is {in_flight} and attempts {attempts}; give 1 or more")
        self.url, self.model, self.tokenizer = url.rstrip("/"), model, tokenizer
        self.in_flight, self.attempts = in_flight, attempts
        self.exact: bool | None = None
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else None,
            timeout=timeout,
            limits=httpx.Limits(max_connections=in_flight),
            transport=transport,
        )

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def __enter__(self) -> RemoteGenerator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def generate(self, requests: Sequence[Request]) -> Iterator[Finished]:
        """Yields every sample of every request exactly once, in order of finishing.

        Raises:
            PhikitError: the server refuses a request, or is not there after all attempts.
        """
        requests = list(requests)
        for index, request in enumerate(requests):
            if not request.prompt_ids or request.n < 1:
                raise PhikitError(f"request {index}: the prompt is empty, or n is below 1")
        if self.exact is None and requests:
            self._ask_for_ids()
        todo = iter(enumerate(requests))
        running: dict[Future[list[Rollout]], int] = {}
        pool = ThreadPoolExecutor(self.in_flight, thread_name_prefix="remote")
        try:
            while True:
                while len(running) < self.in_flight and (item := next(todo, None)) is not None:
                    running[pool.submit(self._one, *item)] = item[0]
                if not running:
                    return
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    index = running.pop(done)
                    for sample, rollout in enumerate(done.result()):
                        yield Finished(index, sample, rollout)
        finally:  # also when the caller stops early: what has not begun is not begun
            pool.shutdown(wait=True, cancel_futures=True)

    # --- one request -----------------------------------------------------------------------------

    def _ask_for_ids(self) -> None:
        """Finds out whether the server takes and returns token ids."""
        body = {"model": self.model, "prompt": [0], "max_tokens": 1, "return_token_ids": True}
        answer = self._post(body, fatal=False)
        choices = answer.get("choices") or [{}]
        self.exact = isinstance(choices[0].get("token_ids"), list)
        if not self.exact:
            if self.tokenizer is None:
                raise PhikitError(
                    f"{self.url} does not return token ids for {self.model}",
                    "give a tokenizer to have its texts tokenized here, or use a server that does",
                )
            warnings.warn(
                f"{self.url} does not return token ids: its rollouts are texts, tokenized here "
                "(marked 'retokenized'), without log-probabilities",
                stacklevel=3,
            )

    def _one(self, index: int, request: Request) -> list[Rollout]:
        try:
            answer = self._post(self._body(request))
        except PhikitError as error:
            raise PhikitError(f"request {index}: {error.message}", error.hint) from None
        choices = sorted(answer.get("choices", ()), key=lambda c: c["index"])
        if len(choices) != request.n:
            raise PhikitError(f"request {index}: {len(choices)} of {request.n} samples came back")
        return [self._rollout(request, choice) for choice in choices]

    def _body(self, request: Request) -> dict[str, Any]:
        """What is asked; settings at rest are left out, since not all servers know them."""
        s = request.sampling
        if s.top_logprobs:
            raise PhikitError("top_logprobs cannot be asked of a remote endpoint")
        body: dict[str, Any] = {
            "model": request.adapter or self.model,  # servers offer an adapter as a model
            "temperature": s.temperature, "top_p": s.top_p, "n": request.n,
            "max_tokens": s.max_tokens,
        }  # fmt: skip
        if s.stop:
            body["stop"] = list(s.stop)
        if s.constraint is not None:
            body["response_format"] = _form(s.constraint, bool(self.exact))
        for name, rest in (("top_k", 0), ("min_p", 0.0)):
            if getattr(s, name) != rest:
                body[name] = getattr(s, name)
        for name, none in zip(_COMMON, (1.0, 0.0, 0.0, ()), strict=True):
            value = getattr(s, name)
            if value != none:
                body[name] = {str(i): b for i, b in value} if name == "logit_bias" else value
        if self.exact:
            return body | {
                "prompt": list(request.prompt_ids), "stop_token_ids": list(s.stop_ids),
                "ignore_eos": True, "return_token_ids": True, "seed": request.seed,
                "first_sample": request.first_sample,
            }  # fmt: skip
        assert self.tokenizer is not None
        # another server's samples depend on the seed alone: later ones need another one
        seed = (request.seed * 1_000_003 + request.first_sample) % 2**31
        return body | {"prompt": self.tokenizer.decode(request.prompt_ids), "seed": seed}

    def _rollout(self, request: Request, choice: dict[str, Any]) -> Rollout:
        finish = "length" if choice.get("finish_reason") == "length" else "stop"
        if self.exact:
            return Rollout(
                prompt_ids=request.prompt_ids,
                completion_ids=tuple(choice["token_ids"]),
                logprobs=tuple(choice.get("sampling_logprobs", ())),
                raw_logprobs=tuple(choice.get("raw_logprobs", ())),
                finish=finish,
            )
        assert self.tokenizer is not None
        ids = self.tokenizer.encode(choice.get("text", ""))
        return Rollout(
            prompt_ids=request.prompt_ids, completion_ids=tuple(ids), logprobs=(), finish=finish,
            meta={"ids": "retokenized"},
        )  # fmt: skip

    def _post(self, body: dict[str, Any], fatal: bool = True) -> dict[str, Any]:
        """An answer; {} instead of the refusal of a request unless `fatal`."""
        last = ""
        for attempt in range(self.attempts):
            pause = min(_LONGEST, 0.5 * 2**attempt) * random.uniform(0.75, 1.25)
            try:
                answer = self._client.post(f"{self.url}/completions", json=body)
            except httpx.TransportError as error:
                last = f"{type(error).__name__}: {error}"
            else:
                if answer.status_code == 200:
                    return _json(answer)
                last = f"status {answer.status_code}: {_message(answer)}"
                if answer.status_code not in _AGAIN:
                    if not fatal and answer.status_code in (400, 422):
                        return {}
                    raise PhikitError(f"{self.url} refuses: {last}")
                told = answer.headers.get("Retry-After", "")
                pause = min(_LONGEST, float(told)) if told.isdigit() else pause
            if attempt + 1 < self.attempts:
                time.sleep(pause)
        raise PhikitError(
            f"{self.url} gave no answer in {self.attempts} attempts; the last: {last}",
            "is the server running, and the address right?",
        )


def _form(constraint: Constraint, ours: bool) -> dict[str, Any]:
    """A constraint as `response_format`; servers that are not phikit's know schemas alone."""
    if constraint.kind == "json_schema":
        try:
            schema = json.loads(constraint.source)
        except ValueError as e:
            raise PhikitError(f"the json_schema is not valid JSON: {e}") from e
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    if not ours:
        raise PhikitError(
            f"a constraint of the kind {constraint.kind} cannot be asked of this endpoint",
            "give a JSON schema",
        )
    return {"type": constraint.kind, constraint.kind: constraint.source}


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise PhikitError(f"{answer.url} answered with something else than a JSON object")
    return found


def _message(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:200]
