"""Settings of GRPO: how answers are drawn and rewarded, and how they are learned from."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from phikit.stage import Config


class RolloutSettings(Config):
    """Answers and rewards. The report: 64 prompts × 8 answers, 31,744 tokens at most; the rollout
    temperature was not published."""

    prompts: int = Field(default=32, ge=1, description="problems per iteration (report: 64)")
    group: int = Field(default=8, ge=2, description="answers per problem (report: 8)")
    max_tokens: int = Field(default=192, ge=2, description="longest answer (report: 31,744)")
    temperature: float = Field(
        default=1.0, gt=0, description="of the rollouts; training divides its logits by it too"
    )
    temperature_end: float | None = Field(
        default=None, gt=0, description="anneal to this (mini-reasoning: 0.6); None: stay"
    )
    anneal_share: float = Field(
        default=0.5, gt=0, le=1, description="share of the steps over which it is annealed"
    )
    reward: Literal["reasoning", "sign"] = Field(
        default="reasoning",
        description="reasoning: the report's, lengths scaled to max_tokens; sign: +1 or -1 "
        "(mini-reasoning)",
    )
    think: bool = Field(
        default=True, description="an answer must begin with one well-formed <think> block"
    )
    min_group_accuracy: float = Field(
        default=0.0, ge=0, le=1, description="drop groups with a smaller share of right answers"
    )
    max_group_accuracy: float = Field(
        default=1.0, ge=0, le=1, description="drop groups above this (mini-reasoning: 0.5)"
    )
    max_length_spread: float = Field(
        default=1.0, gt=0, le=1,
        description="drop groups whose lengths differ by more than this share of max_tokens",
    )  # fmt: skip
    hard_share: float = Field(
        default=0.0, ge=0, lt=1,
        description="share of each iteration's problems drawn again from those that few answers "
        "got right so far (mini-reasoning over-samples hard prompts)",
    )  # fmt: skip
    balance: bool = Field(
        default=False, description="keep all right answers and as many wrong ones, at random"
    )
    max_batch: int = Field(
        default=256, ge=1, description="answers in the making at once, in each engine"
    )
    precision: Literal["f32", "bf16"] = Field(
        default="f32", description="f32: the trained weights themselves; bf16: a rounded copy"
    )
    invariant: bool = Field(
        default=False,
        description="answers and their log-probabilities are of the same bits whatever is drawn "
        "beside them, and by however many engines; slower",
    )
    as_trained: bool | None = Field(
        default=None,
        description="the local engine computes as training's forward pass in bf16, bit by bit, so "
        "that both give an answer the same log-probabilities; None: with precision bf16, where the "
        "model and the processor (AMX) allow it",
    )


class GeneratorSettings(Config):
    """Which engines draw the answers: the one in this process, or a pool on a Ray cluster."""

    kind: Literal["local", "ray"] = Field(
        default="local",
        description="local: an engine on the trained weights themselves; ray: a pool of engines, "
        "which get the weights before each iteration (pip install -e '.[ray]')",
    )
    workers: int = Field(
        default=1, ge=1, description="ray: engines, each with a copy of the weights"
    )
    threads: int = Field(default=1, ge=1, description="ray: CPUs of each engine")
    address: str | None = Field(
        default=None,
        description="ray: HOST:PORT of the cluster; one on this machine when left out",
    )

    @model_validator(mode="after")
    def _only_of_a_pool(self) -> Self:
        if self.kind == "local" and (self.workers, self.threads, self.address) != (1, 1, None):
            raise ValueError(
                "workers, threads and address are a pool's: add generator.kind=ray, or leave "
                "them out"
            )
        return self


class GrpoLoss(Config):
    """Clipped policy gradient with KL and entropy terms. Not published: the clipping range."""

    kl: float = Field(default=0.001, ge=0, description="factor of the KL term (report: 0.001)")
    kl_to: Literal["old", "reference"] = Field(
        default="old", description="old: the rollouts' policy, as the report prints it; "
        "reference: the first weights, frozen",
    )  # fmt: skip
    entropy: float = Field(
        default=0.001, ge=0, description="factor of the entropy bonus (report: 0.001)"
    )
    clip_low: float = Field(default=0.2, gt=0, lt=1, description="ratios are clipped to 1 - this")
    clip_high: float = Field(default=0.2, gt=0, description="... and to 1 + this")
    updates: int = Field(default=1, ge=1, description="optimiser steps per iteration of rollouts")
    mean_over: Literal["sequences", "tokens"] = Field(
        default="sequences",
        description="sequences: each answer counts the same; tokens: each token does",
    )
    importance_cap: float = Field(
        default=2.0, ge=0, description="cap of the engine-to-trainer importance weights; 0: none"
    )
