"""The one interface through which all of phikit gets tokens.

Synthesis, Pivotal Token Search, GRPO, judging and evaluation ask a `Generator`; which model runs,
and where, is the generator's business. Prompts go in as token ids and rollouts come out as ids.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from phikit.errors import PhikitError, did_you_mean
from phikit.records import Rollout

#: of the weights while a stage generates: as they are stored, or another one
Precision = Literal["stored", "bf16", "f32"]

CONSTRAINTS = ("json_schema", "regex", "grammar")
_PENALTY = 100.0  # the most that repetition_penalty divides by, or multiplies with


@dataclass(frozen=True, slots=True)
class Constraint:
    """A form that a completion must keep to, from its first token to its end.

    Attributes:
        kind: "json_schema", "regex" or "grammar" (Lark syntax).
        source: the schema as JSON text, the expression, or the grammar.
    """

    kind: str
    source: str

    def __post_init__(self) -> None:
        if self.kind not in CONSTRAINTS:
            raise PhikitError(
                f"the constraint's kind is {self.kind!r}; it must be one of "
                f"{', '.join(CONSTRAINTS)}"
            )


@dataclass(frozen=True, slots=True, repr=False)
class Sampling:
    """How to draw tokens.

    In order: constraint, logit bias, penalties, temperature, top-k, top-p, min-p.

    Attributes:
        temperature: 0 is greedy.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches this; 1 keeps all.
        min_p: drop tokens below this fraction of the most probable one's probability.
        max_tokens: the longest completion, the end token included.
        stop_ids: tokens that end a completion; the one that did is its last id.
        stop: texts that end a completion, also across tokens; the token that completed one is its
            last id. The local engine needs its tokenizer for it.
        repetition_penalty: the logits of tokens that the prompt or the completion holds are divided
            by this where positive and multiplied where negative (Keskar et al. 2019).
        presence_penalty: taken from the logits of tokens that the completion holds.
        frequency_penalty: taken from them once per occurrence.
        logit_bias: (token, what to add to its logit).
        constraint: the form that the completion keeps to. It ends at a stop id where the form may
            end, or with the token after which the form leaves nothing to add. Cut short, it is the
            beginning of such a form. The local engine needs its tokenizer for it.
        top_logprobs: how many of the most probable tokens to report in the events of every step.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    max_tokens: int = 256
    stop_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    constraint: Constraint | None = None
    top_logprobs: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise PhikitError(f"temperature is {self.temperature}; it must be a number from 0 on")
        if not 0 < self.top_p <= 1:
            raise PhikitError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise PhikitError(f"min_p is {self.min_p}; it must be between 0 and 1")
        if self.top_k < 0 or self.max_tokens < 1:
            raise PhikitError(
                f"top_k is {self.top_k} and max_tokens {self.max_tokens}; "
                "they must be at least 0 and 1"
            )
        if not 1 / _PENALTY <= self.repetition_penalty <= _PENALTY:
            raise PhikitError(
                f"repetition_penalty is {self.repetition_penalty}; it must be between "
                f"{1 / _PENALTY:g} and {_PENALTY:g} (1 is none)"
            )
        for name in ("presence_penalty", "frequency_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise PhikitError(f"{name} is {getattr(self, name)}; it must be a finite number")
        for token, value in self.logit_bias:
            if not value < math.inf:
                raise PhikitError(
                    f"logit_bias of token {token} is {value}; it must be a number, or -inf to "
                    "keep the token out"
                )
        if any(not text for text in self.stop):
            raise PhikitError("a stop text is empty; every completion would end at once")
        if self.top_logprobs < 0:
            raise PhikitError(f"top_logprobs is {self.top_logprobs}; it must be 0 or more")

    def __repr__(self) -> str:
        """The six settings that there always were, and of the others those that are not at rest:
        searches on disk know their settings by this text."""
        shown = [
            f"{f.name}={getattr(self, f.name)!r}"
            for i, f in enumerate(dataclasses.fields(self))
            if i < 6 or getattr(self, f.name) != f.default
        ]
        return f"Sampling({', '.join(shown)})"


@dataclass(frozen=True, slots=True)
class Request:
    """Ask for `n` rollouts of one prompt.

    Sample i of the request draws from a random stream that depends on (`seed`, `first_sample` + i)
    alone, so asking for 8, or for 4 and then 4 more with first_sample=4, draws the same tokens.

    Attributes:
        adapter: the name of a LoRA adapter that the model carries (`models.lora`; for example
            `train.adapters.load` puts one on); empty for the one that is active, if any is.
    """

    prompt_ids: tuple[int, ...]
    sampling: Sampling
    n: int = 1
    seed: int = 0
    first_sample: int = 0
    adapter: str = ""


def check(
    request: Request, vocab_size: int, max_positions: int, adapters: Collection[str] = ()
) -> None:
    """Whether a model of this vocabulary, context and adapters can take the request.

    Raises:
        PhikitError: it cannot.
    """
    ids = request.prompt_ids
    if not ids:
        raise PhikitError("the prompt is empty", "give at least one token")
    if request.n < 1 or request.first_sample < 0:
        raise PhikitError(
            f"n is {request.n} and first_sample {request.first_sample}; "
            "they must be at least 1 and 0"
        )
    if len(ids) >= max_positions:
        raise PhikitError(
            f"the prompt has {len(ids)} tokens; the model's context is {max_positions}, "
            "so none can follow",
            "shorten the prompt",
        )
    if request.adapter and request.adapter not in adapters:
        raise PhikitError(
            f"the model has no adapter {request.adapter!r}",
            did_you_mean(request.adapter, adapters) if adapters else "it has none at all",
        )
    for token, _ in request.sampling.logit_bias:
        if not 0 <= token < vocab_size:
            raise PhikitError(f"logit_bias names token {token}; the vocabulary has {vocab_size}")
    if min(ids) < 0 or max(ids) >= vocab_size:
        wrong = next(i for i in ids if not 0 <= i < vocab_size)
        raise PhikitError(
            f"token id {wrong} is not in the vocabulary of {vocab_size}",
            "encode the prompt with this model's own tokenizer",
        )


def none_fits(where: str, problems: int, context: int) -> PhikitError:
    """The error of a stage whose problems all fill the model's context, each of which it would
    have passed over: `check` refuses them."""
    return PhikitError(
        f"{where}: none of {problems} problems leaves room for an answer",
        f"the model's context is {context}: give shorter problems",
    )


def can_run(request: Request, texts: bool = False) -> None:
    """Whether a generator can take the request, which knows token ids alone unless `texts`.

    Raises:
        PhikitError: it asks for stop texts or a constraint.
    """
    if texts:
        return
    if request.sampling.stop:
        raise PhikitError(
            "stop texts need a generator that knows texts; this one sees token ids alone",
            "give the engine its tokenizer, or stop at ids (stop_ids)",
        )
    if request.sampling.constraint is not None:
        raise PhikitError(
            "a constraint needs a generator that knows texts; this one sees token ids alone",
            "give the engine its tokenizer, or leave the constraint out",
        )


class Finished(NamedTuple):
    """One rollout, with the index of its request and its number within that request."""

    request: int
    sample: int
    rollout: Rollout


class Generator(Protocol):
    """Prompts as token ids in, rollouts out, streamed as they finish."""

    def generate(self, requests: Sequence[Request]) -> Iterator[Finished]:
        """Yields every sample of every request exactly once, in order of finishing.

        Raises:
            PhikitError: a prompt is empty or longer than the model's context.
        """
        ...


def collect(generator: Generator, requests: Sequence[Request]) -> list[list[Rollout]]:
    """Generates, and returns the rollouts grouped by request, in the order of their numbers."""
    groups: list[list[Rollout | None]] = [[None] * r.n for r in requests]
    for done in generator.generate(requests):
        groups[done.request][done.sample] = done.rollout
    complete = [[r for r in group if r is not None] for group in groups]
    missing = sum(len(g) - len(c) for g, c in zip(groups, complete, strict=True))
    if missing:
        raise PhikitError(f"the generator lost {missing} rollouts of {len(requests)} requests")
    return complete
