"""Who shares which prompt: the seats of the prompt slots.

All rows that continue the same tokens sit in one prompt slot. A slot has a fixed number of seats,
so that attention to it is one product of fixed shape; a prompt with more rows than seats takes
several slots, which are copied, not computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Prompt:
    """One prompt slot: the tokens it stands for, its free chairs, and who is still to come."""

    context: tuple[int, ...]
    slot: int
    free: list[int]
    copied_from: Prompt | None = None


@dataclass
class Prompts:
    """The prompt slots in use, always slots 0 .. len - 1.

    `waiting` counts the samples per context that have not been seated yet: their prompt stays.
    """

    seats: int
    slots: list[Prompt] = field(default_factory=list)
    waiting: dict[tuple[int, ...], int] = field(default_factory=dict)
    _by_context: dict[tuple[int, ...], list[Prompt]] = field(default_factory=dict)

    def expect(self, context: tuple[int, ...], count: int = 1) -> None:
        """Says that samples of this context will come."""
        self.waiting[context] = self.waiting.get(context, 0) + count

    def seat(self, context: tuple[int, ...]) -> tuple[Prompt, int, bool]:
        """A chair for an expected sample: its prompt, the chair, and whether the slot is new."""
        self.waiting[context] -= 1
        same = self._by_context.setdefault(context, [])
        for prompt in same:
            if prompt.free:
                return prompt, prompt.free.pop(), False
        chairs = list(range(self.seats))[::-1]
        first = same[0] if same else None
        prompt = Prompt(context, len(self.slots), chairs, copied_from=first)
        same.append(prompt)
        self.slots.append(prompt)
        return prompt, prompt.free.pop(), True

    def leave(self, prompt: Prompt, chair: int) -> None:
        prompt.free.append(chair)

    def release(self) -> tuple[list[int], list[int]]:
        """Gives up the slots nobody sits in or waits for, and closes the gaps.

        Returns:
            source and target slots to copy, to be done in this order.
        """
        idle = [p for p in self.slots if len(p.free) == self.seats and not self._kept(p)]
        source: list[int] = []
        target: list[int] = []
        for prompt in sorted(idle, key=lambda p: -p.slot):
            same = self._by_context[prompt.context]
            same.remove(prompt)
            if not same:
                del self._by_context[prompt.context]
                if not self.waiting.get(prompt.context):
                    self.waiting.pop(prompt.context, None)
            last = self.slots.pop()
            if last is not prompt:
                source.append(last.slot)
                target.append(prompt.slot)
                last.slot = prompt.slot
                self.slots[prompt.slot] = last
        return source, target

    def _kept(self, prompt: Prompt) -> bool:
        """The first slot of a context stays while samples of it are to come."""
        return bool(self.waiting.get(prompt.context)) and (
            self._by_context[prompt.context][0] is prompt
        )


def seats_for(counts: Sequence[int], most: int) -> int:
    """How many seats a prompt slot gets: the mean number of samples per prompt.

    More would compute attention for empty seats; fewer would store prompts more often.
    """
    return max(1, min(most, round(sum(counts) / max(1, len(counts)))))
