"""A problem's answers as a group: rewards, advantages, and which groups are worth learning from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np

from phikit.records import Rollout
from phikit.train.objectives.grpo_settings import RolloutSettings
from phikit.train.reward import Lengths, reasoning_reward, well_formed


@dataclass(frozen=True)
class Group:
    """The answers to one problem, with what each earned."""

    rollouts: tuple[Rollout, ...]
    right: tuple[bool, ...]
    rewards: tuple[float, ...]

    @property
    def advantages(self) -> list[float]:
        """(reward - mean) / standard deviation over the group; zeros where all are equal."""
        centre = mean(self.rewards)
        deviation = math.sqrt(mean([(r - centre) ** 2 for r in self.rewards]))
        if deviation < 1e-8:
            return [0.0] * len(self.rewards)
        return [(r - centre) / deviation for r in self.rewards]


def mean(values: Sequence[float]) -> float:
    """The mean; 0 of nothing."""
    return sum(values) / len(values) if values else 0.0


def reward_group(
    rollouts: Sequence[Rollout],
    right: Sequence[bool],
    texts: Sequence[str],
    stop_ids: AbstractSet[int],
    settings: RolloutSettings,
) -> Group:
    """Rewards each answer, by the report's formula or by its sign."""
    lengths = Lengths.scaled(settings.max_tokens)
    rewards = []
    for rollout, passed, text in zip(rollouts, right, texts, strict=True):
        if settings.reward == "sign":
            rewards.append(1.0 if passed else -1.0)
            continue
        ids = rollout.completion_ids
        ended = bool(ids) and ids[-1] in stop_ids
        thought_ok = well_formed(text) if settings.think else True
        rewards.append(reasoning_reward(ids, passed, ended, thought_ok, lengths))
    return Group(tuple(rollouts), tuple(right), tuple(rewards))


def keep(group: Group, settings: RolloutSettings) -> bool:
    """Whether a group is learned from: its rewards differ, and the stabilisers let it pass."""
    if max(group.rewards) - min(group.rewards) < 1e-8:
        return False
    share = mean([float(r) for r in group.right])
    if not settings.min_group_accuracy <= share <= settings.max_group_accuracy:
        return False
    lengths = [len(r.completion_ids) for r in group.rollouts]
    return max(lengths) - min(lengths) <= settings.max_length_spread * settings.max_tokens


def balanced(group: Group, stream: np.random.Generator) -> Group:
    """All right answers and as many wrong ones, drawn at random, in their order."""
    right = [i for i, passed in enumerate(group.right) if passed]
    wrong = [i for i, passed in enumerate(group.right) if not passed]
    if not right or len(wrong) <= len(right):
        return group
    chosen = sorted([*right, *stream.permutation(wrong)[: len(right)].tolist()])
    return Group(
        *(tuple(x[i] for i in chosen) for x in (group.rollouts, group.right, group.rewards))
    )
