"""What every language-model teacher does: pays once, stores before use, checks, and stops in time.

    ask ──▶ stored already? ──▶ budget ──▶ the model answers ──▶ store ──▶ check against the schema
               └───────────────────────────────────────────────────────────▶┘

Where the model is, and how it is asked, is a subclass's one method, `_generate`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from pydantic import Field

from phikit.errors import PhikitError
from phikit.stage import Config
from phikit.synth.replies import Outcome, Reply, ReplyStore, Request, Status
from phikit.synth.schema import read_reply

Call = Callable[[], Awaitable[asyncio.Future[Reply]]]
CHARACTERS_PER_TOKEN = (
    3.0  # bytes in UTF-8: an estimate on the high side, for what is not answered yet
)


class Budget(Config):
    """What may be spent on answers, and on what is wrong with them.

    Attributes:
        rewrites: answers asked for in place of one that does not hold to its schema.
        max_total_tokens, max_cost: of the whole store, earlier runs included; 0: none.
        prompt_price, completion_price: money per million tokens.
        say_schema: describe the form that is wanted at the prompt's end, for models whose server
            does not hold them to it.
    """

    rewrites: int = Field(default=2, ge=0)
    max_total_tokens: int = Field(default=0, ge=0)
    max_cost: float = Field(default=0, ge=0)
    prompt_price: float = Field(default=0, ge=0)
    completion_price: float = Field(default=0, ge=0)
    say_schema: bool = True


class Answer(NamedTuple):
    """A model's answer and what it used; `cut` where it was not at its end yet."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    cut: bool = False


class NoAnswer(Exception):
    """The model gave none; the text says why. The next run asks again."""


class _BudgetSpent(Exception):
    """The next call could exceed the budget."""


class StoredTeacher(ABC):
    """Use as `async with`. One instance serves any number of concurrent `ask`s.

    Leaving the block, also by an error or a cancellation, is an orderly stop: no call is begun any
    more, who still waits for an answer is cancelled, and what the model is about to answer is
    stored.

    Args:
        at_once: requests that are prepared, answered or on their way to the disk at the same time,
            in the order in which they were asked; the others cost nothing yet. 0: all of them.

    Attributes:
        name: the model's, part of what a request is known by.
        calls: how many times this instance asked its model.
    """

    def __init__(self, name: str, budget: Budget, store: ReplyStore, at_once: int = 0) -> None:
        if budget.max_cost and not (budget.prompt_price or budget.completion_price):
            raise PhikitError("max_cost needs prompt_price and completion_price to be counted in")
        self.name = name
        self.budget = budget
        self.store = store
        self.calls = 0
        self._reserved = [0, 0]  # prompt and completion tokens of calls in flight
        self._running: dict[str, asyncio.Task[Outcome]] = {}
        self._places = asyncio.Semaphore(at_once or sys.maxsize)
        self._stopped = False

    async def __aenter__(self) -> StoredTeacher:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopped = True
        for task in self._running.values():
            task.cancel()

    @property
    def cost(self) -> float:
        """Money spent by the store's replies."""
        return self._cost(self.store.prompt_tokens, self.store.completion_tokens)

    def _cost(self, prompt: int, completion: int) -> float:
        b = self.budget
        return (prompt * b.prompt_price + completion * b.completion_price) / 1e6

    async def ask(self, request: Request) -> Outcome:
        """The outcome of a request; equal requests that run at the same time are one call."""
        await self._places.acquire()
        key = request.key(self.name)
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(self._ask(request, key))
            task.add_done_callback(lambda _: self._finished(key))
        else:
            self._places.release()  # it waits for another's answer, and may be one of many
        return await asyncio.shield(task)

    def _finished(self, key: str) -> None:
        self._running.pop(key, None)
        self._places.release()

    async def _ask(self, request: Request, key: str) -> Outcome:
        reason = ""
        for attempt in range(self.budget.rewrites + 1):
            stored = self.store.replies.get(key, [])
            if attempt >= len(stored):
                try:
                    reply = await self._answer(request, key, attempt)
                except _BudgetSpent:
                    return self._end(key, "unsent", reason="the budget is spent")
                except NoAnswer as e:
                    return self._end(key, "failed", reason=str(e))
            else:
                reply = stored[attempt]
            value, reason = read_reply(reply.text, request.schema)
            if not reason:
                return self._end(key, "accepted", value=value, cut=reply.cut)
        return self._end(key, "rejected", reason=reason)

    def _end(
        self, key: str, status: Status, value: Any = None, reason: str = "", cut: bool = False
    ) -> Outcome:
        ids = tuple(reply.id for reply in self.store.replies.get(key, []))
        return Outcome(key, status, value, reason, ids, cut)

    async def _answer(self, request: Request, key: str, attempt: int) -> Reply:
        """An answer within the budget, stored."""
        if self._stopped:
            raise asyncio.CancelledError("the teacher has stopped")
        stored = await self._in_turn(lambda: self._paid(request, key, attempt))
        # out of its turn: another call is made while this answer goes to the disk
        return await stored

    async def _paid(self, request: Request, key: str, attempt: int) -> asyncio.Future[Reply]:
        """Makes the call, and writes its answer before the next one can be made."""
        prompt = self.estimate(request)
        self._reserve(prompt, request.max_tokens)
        try:
            answer = await self._generate(request, attempt)
        finally:
            self._reserved[0] -= prompt
            self._reserved[1] -= request.max_tokens
        return self.store.add(Reply(key, attempt, *answer))

    async def _in_turn(self, call: Call) -> asyncio.Future[Reply]:
        """Makes a call; a subclass may bound how many are made at the same time."""
        return await call()

    @abstractmethod
    async def _generate(self, request: Request, attempt: int) -> Answer:
        """Asks the model.

        Raises:
            NoAnswer: there is none to be had.
        """

    def estimate(self, request: Request) -> int:
        """About how many tokens the prompt has; writing of other scripts needs more of them."""
        length = sum(len(m["content"].encode("utf-8", "replace")) for m in self.messages(request))
        return int(length / CHARACTERS_PER_TOKEN) + 8 * len(request.messages)

    def messages(self, request: Request) -> list[Mapping[str, str]]:
        """What is sent: the request's messages, with the form that is wanted said in the last."""
        messages = list(request.messages)
        if self.budget.say_schema and request.schema is not None:
            last = messages[-1]
            messages[-1] = {**last, "content": f"{last['content']}\n\n{wanted(request.schema)}"}
        return messages

    def _reserve(self, prompt: int, completion: int) -> None:
        """
        Raises:
            _BudgetSpent: with all that is in flight at its longest, this call could exceed it.
        """
        b = self.budget
        prompts = self.store.prompt_tokens + self._reserved[0] + prompt
        completions = self.store.completion_tokens + self._reserved[1] + completion
        if b.max_total_tokens and prompts + completions > b.max_total_tokens:
            raise _BudgetSpent
        if b.max_cost and self._cost(prompts, completions) > b.max_cost:
            raise _BudgetSpent
        self._reserved[0] += prompt
        self._reserved[1] += completion


def wanted(schema: Mapping[str, Any]) -> str:
    """A schema in a sentence and a pattern to follow."""
    shown = json.dumps(_pattern(schema), ensure_ascii=False)
    return f"Reply with JSON alone, of this form: {shown}"


def _pattern(schema: Mapping[str, Any]) -> Any:
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    match schema.get("type"):
        case "object":
            return {name: _pattern(inner) for name, inner in schema.get("properties", {}).items()}
        case "array":
            return [_pattern(schema.get("items", {})), "..."]
        case "integer" | "number" as kind:
            low, high = schema.get("minimum"), schema.get("maximum")
            return f"{kind}" if low is None or high is None else f"{kind} from {low} to {high}"
        case "boolean":
            return "true or false"
    return "text"
