"""Where the rollouts of a policy in training come from: this process, or a pool of engines."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist

from phikit.engine.base import Request, collect
from phikit.engine.local import LocalEngine
from phikit.engine.native.build import library
from phikit.engine.native.step import trained_obstacle
from phikit.engine.policy_pool import PolicyPool
from phikit.errors import PhikitError
from phikit.models.decoder import Decoder
from phikit.records import Rollout
from phikit.train import parallel
from phikit.train.objectives.grpo_settings import GeneratorSettings, RolloutSettings

_PATIENCE = timedelta(days=365)  # of processes for the one that draws: answers take what they take


class Drawer(Protocol):
    """Draws rollouts from the weights it is given."""

    def draw(self, policy: Decoder, requests: Sequence[Request]) -> list[list[Rollout]]:
        """The rollouts of each request, in the order of their numbers. With several processes all
        must ask, with the same policy and requests, and all get the same.

        Args:
            policy: the whole weights, adapters merged.
        """
        ...

    def close(self) -> None:
        """Gives back the engines and their memory."""
        ...


def drawer(rollouts: RolloutSettings, generator: GeneratorSettings) -> Drawer:
    """What the settings ask for. Nothing is started before the first rollouts are drawn."""
    if generator.kind == "ray":
        return PooledDrawer(rollouts, generator)
    return LocalDrawer(rollouts)


def as_trained(rollouts: RolloutSettings, policy: Decoder) -> bool:
    """Whether the local engine is to give the bits of training's forward pass."""
    if rollouts.as_trained is not None:
        return rollouts.as_trained
    bf16 = rollouts.precision == "bf16" and not rollouts.invariant
    return bf16 and not trained_obstacle(policy, library())


class LocalDrawer:
    """The local engine on the very weights being trained, without a copy of them; every process
    draws everything."""

    def __init__(self, rollouts: RolloutSettings) -> None:
        self.rollouts = rollouts
        self.engine: LocalEngine | None = None

    def draw(self, policy: Decoder, requests: Sequence[Request]) -> list[list[Rollout]]:
        if self.engine is None:
            r = self.rollouts
            self.engine = LocalEngine(
                policy, r.max_batch, torch.bfloat16 if r.precision == "bf16" else None,
                invariant=r.invariant, as_trained=as_trained(r, policy),
            )  # fmt: skip
        self.engine.model = policy
        return collect(self.engine, requests)

    def close(self) -> None:
        self.engine = None


class PooledDrawer:
    """Engines on a Ray cluster, which get the weights anew before all else.

    With several processes the first one has the pool, draws, and tells the others.
    """

    def __init__(self, rollouts: RolloutSettings, generator: GeneratorSettings) -> None:
        self.rollouts, self.generator = rollouts, generator
        self.pool: PolicyPool | None = None
        self._group: Any = None

    def draw(self, policy: Decoder, requests: Sequence[Request]) -> list[list[Rollout]]:
        """Raises:
        PhikitError: as `PolicyPool`; in all processes.
        """
        if parallel.world() == 1:
            return self._drawn(policy, requests)
        if self._group is None:
            self._group = dist.new_group(backend="gloo", timeout=_PATIENCE)
        told: list[Any] = [None, None]  # the rollouts, or what went wrong
        if parallel.rank() == 0:
            try:
                told[0] = self._drawn(policy, requests)
            except PhikitError as e:
                told[1] = (e.message, e.hint)
        dist.broadcast_object_list(told, src=0, group=self._group)
        if told[1] is not None:
            raise PhikitError(*told[1])
        made: list[list[Rollout]] = told[0]
        return made

    def _drawn(self, policy: Decoder, requests: Sequence[Request]) -> list[list[Rollout]]:
        if self.pool is None:
            r, g = self.rollouts, self.generator
            self.pool = PolicyPool(
                policy.config, g.workers, g.threads, r.max_batch,
                torch.bfloat16 if r.precision == "bf16" else torch.float32, r.invariant, g.address,
            )  # fmt: skip
        self.pool.load(policy)
        return collect(self.pool, requests)

    def close(self) -> None:
        """Ends the engines; the cluster stays."""
        if self.pool is not None:
            self.pool.close()
            self.pool = None
