"""Samples of models with states enter, and share what another one has computed before them.

A state (Mamba's, a window's) stands at one position and cannot be cut back, so a prefix is of use
only where a state was kept. States are kept where a prompt ends, from which its other samples fork,
and where a finished sample ends, from which a conversation goes on. There is no tree of blocks: the
few prefixes that are kept are compared with a prompt one by one. Each holds a slot, which is large,
and its blocks of the one cache that grows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from phikit.engine.blocks import Blocks
from phikit.engine.entrance import Entrance
from phikit.engine.runner import RowStates, Runner
from phikit.engine.samples import Sample

MOST_KEPT = 16  # prefixes with a slot of their own


@dataclass(eq=False, slots=True)
class Kept:
    """A prefix whose state is in `slot`; `blocks` hold it, the last one perhaps in part."""

    tokens: tuple[int, ...]
    blocks: list[int]
    slot: int
    used: int


class KeptPrefixes:
    """Holds one reference to each block of what is kept; the longest unused goes first.

    Attributes:
        nodes: what is kept.
    """

    def __init__(self, blocks: Blocks, states: RowStates, most: int = MOST_KEPT) -> None:
        self.blocks, self.states, self.most = blocks, states, most
        self.nodes: list[Kept] = []
        self._time = 0

    def longest(self, tokens: Sequence[int]) -> Kept | None:
        """The longest kept prefix of the tokens."""
        self._time += 1
        tokens, best = tuple(tokens), None
        for each in self.nodes:
            n = len(each.tokens)
            longer = best is None or n > len(best.tokens)
            if longer and n <= len(tokens) and tokens[:n] == each.tokens:
                best = each
        if best is not None:
            best.used = self._time
        return best

    def add(self, tokens: tuple[int, ...], table: Sequence[int], slot: int, copy: bool) -> bool:
        """Keeps a prefix with its state: a copy of the slot, or the slot itself.

        Returns:
            whether the slot itself was taken.
        """
        same = self.longest(tokens)
        if same is not None and len(same.tokens) == len(tokens):
            return False
        if len(self.nodes) >= self.most:
            self._drop(min(self.nodes, key=lambda k: k.used))
        blocks = list(table[: -(-len(tokens) // self.blocks.size)])
        for block in blocks:
            self.blocks.share(block)
        mine = self.states.fork(slot) if copy else slot
        self.nodes.append(Kept(tokens, blocks, mine, self._time))
        return not copy

    @property
    def idle(self) -> int:
        """How many blocks are held by what is kept alone."""
        mine: dict[int, int] = {}
        for each in self.nodes:
            for block in each.blocks:
                mine[block] = mine.get(block, 0) + 1
        return sum(self.blocks.references[b] == count for b, count in mine.items())

    def evict(self, wanted: int) -> int:
        """Frees at least so many blocks, if dropping all that is kept can; returns how many."""
        before = self.blocks.free
        while self.nodes and self.blocks.free - before < wanted:
            self._drop(min(self.nodes, key=lambda k: k.used))
        return self.blocks.free - before

    def clear(self) -> None:
        """Drops all that is kept."""
        while self.nodes:
            self._drop(self.nodes[-1])

    def _drop(self, kept: Kept) -> None:
        self.nodes.remove(kept)
        self.blocks.release(kept.blocks)
        self.states.release(kept.slot)


@dataclass(slots=True)
class _Source:
    """What a sample builds on: a kept prefix, or another sample that is still entering."""

    length: int
    table: list[int]
    slot: int = -1
    after: Sample | None = None


class StateEntrance(Entrance):
    """An `Entrance` for runners with states: each admitted sample has a slot."""

    def __init__(
        self, runner: Runner, states: RowStates, blocks: Blocks, kept: KeptPrefixes
    ) -> None:
        self.runner, self.states, self.blocks, self.kept = runner, states, blocks, kept
        self.entering: list[Sample] = []
        self.reused = 0
        self._admitted = 0

    def secure(self, wanted: int) -> bool:
        lacking = wanted - self.blocks.free
        return lacking <= 0 or self.kept.evict(lacking) >= lacking

    def admit(self, sample: Sample, reserve: int) -> bool:
        context = sample.context
        sample.long, sample.goal = False, len(context) - 1
        found = self._source(context[: sample.goal])
        # what is kept may itself be in the way: its last block is needed beside the copy
        return self._admit(sample, found, reserve) or (
            found.length > 0 and self._admit(sample, _Source(0, []), reserve)
        )

    def _source(self, head: tuple[int, ...]) -> _Source:
        kept = self.kept.longest(head)
        best = _Source(0, [])
        if kept is not None:
            best = _Source(len(kept.tokens), kept.blocks, slot=kept.slot)
        for other in self.entering:
            n = other.goal
            if best.length < n <= len(head) and head[:n] == other.context[:n]:
                best = _Source(n, other.table, after=other)
        return best

    def _admit(self, sample: Sample, source: _Source, reserve: int) -> bool:
        size, blocks = self.blocks.size, self.blocks
        whole, part = divmod(source.length, size)
        held = source.table[: whole + (part > 0)]
        for block in held:  # the last one only until it is copied
            blocks.share(block)
        # before anything is evicted, which may be what it is copied from
        state = self.states.fork(source.slot) if source.slot >= 0 else -1
        wanted = sample.goal // size + 1 - whole
        if not self.secure(wanted + reserve):
            blocks.release(held)
            if state >= 0:
                self.states.release(state)
            return False
        sample.table = held[:whole] + [blocks.take() for _ in range(wanted)]
        sample.after, sample.computed = source.after, source.length
        if source.after is None:
            sample.state = state if state >= 0 else self.states.take()
            self._take_part(sample, held[whole:])
        else:
            blocks.release(held[whole:])  # the other sample holds it
        self.reused += source.length
        self._admitted += 1
        sample.order = self._admitted
        self.entering.append(sample)
        return True

    def _take_part(self, sample: Sample, part: list[int]) -> None:
        """Copies a block that is filled in part, and lets go of it."""
        if part:
            at = sample.computed // self.blocks.size
            self.runner.copy_blocks(part, sample.table[at : at + 1])
            self.blocks.release(part)

    def _is_ready(self, sample: Sample) -> bool:
        return sample.after is None or sample.after.computed >= sample.after.goal

    def _begin(self, ready: list[Sample]) -> None:
        """Forks the states of samples that others waited for, before those move on."""
        for sample in ready:
            if (other := sample.after) is None:
                continue
            sample.state, sample.after = self.states.fork(other.state), None
            at, part = divmod(sample.computed, self.blocks.size)
            if part:
                self.runner.copy_blocks(other.table[at : at + 1], sample.table[at : at + 1])

    def _computed(self, sample: Sample, count: int) -> None:
        sample.computed += count
        if sample.computed >= sample.goal and not sample.tokens:
            prompt = sample.ticket.request.prompt_ids[: sample.goal]
            self.kept.add(prompt, sample.table, sample.state, copy=True)

    def withdraw(self, first: Sample) -> list[Sample]:
        at = self.entering.index(first)
        out = self.entering[at:]
        del self.entering[at:]
        for sample in out:
            self.give_up(sample)
        return out

    def give_up(self, sample: Sample) -> None:
        super().give_up(sample)
        if sample.state >= 0:
            self.states.release(sample.state)
        sample.state, sample.after = -1, None

    def keep(self, sample: Sample, tokens: tuple[int, ...]) -> None:
        if self.kept.add(tokens, sample.table, sample.state, copy=False):
            sample.state = -1
