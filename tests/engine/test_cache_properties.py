"""The block allocator and the prefix cache under random use, held against plain models of them."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from phikit.engine.blocks import NULL, Blocks
from phikit.engine.radix import PrefixCache
from phikit.errors import PhikitError


class BlocksMachine(RuleBasedStateMachine):
    """`held` counts the references that the outside world has to each block."""

    @initialize(count=st.integers(2, 12))
    def start(self, count):
        self.blocks, self.held = Blocks(count, 4), {}

    @precondition(lambda self: self.blocks.free)
    @rule()
    def take(self):
        block = self.blocks.take()
        assert block != NULL and block not in self.held
        assert all(b in self.held for b in range(1, block))  # the lowest free one
        self.held[block] = 1

    @precondition(lambda self: not self.blocks.free)
    @rule()
    def take_too_many(self):
        with pytest.raises(PhikitError, match="are in use"):
            self.blocks.take()

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def share(self, data):
        block = data.draw(st.sampled_from(sorted(self.held)))
        self.blocks.share(block)
        self.held[block] += 1

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data):
        block = data.draw(st.sampled_from(sorted(self.held)))
        self.blocks.release([block])
        self.held[block] -= 1
        if not self.held[block]:
            del self.held[block]

    @precondition(lambda self: self.blocks.free)
    @rule(data=st.data())
    def misuse(self, data):
        free = [b for b in range(1, self.blocks.count) if b not in self.held]
        block = data.draw(st.sampled_from(free))
        with pytest.raises(PhikitError, match="released twice"):
            self.blocks.release([block])
        with pytest.raises(PhikitError, match="not in use"):
            self.blocks.share(block)

    @invariant()
    def counts(self):
        assert self.blocks.used == len(self.held)
        assert self.blocks.free == self.blocks.count - 1 - len(self.held)


class PrefixMachine(RuleBasedStateMachine):
    """Sequences over a tiny alphabet come, take up what the tree has, write on, stay or leave.

    `content` says what each block was filled with; a match must name blocks of the very tokens.
    """

    SIZE = 3

    @initialize(count=st.integers(4, 20))
    def start(self, count):
        self.blocks = Blocks(count, self.SIZE)
        self.tree = PrefixCache(self.blocks)
        self.rows: list[tuple[list[int], tuple[int, ...]]] = []
        self.content: dict[int, tuple[int, ...]] = {}

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=12), regime=st.booleans())
    def come(self, tokens, regime):
        tokens = tuple(tokens)
        match = self.tree.match(regime, tokens)
        assert match.length <= len(tokens)
        for i, node in enumerate(match.nodes):
            assert self.content[node.block] == (regime, tokens[: (i + 1) * self.SIZE])
        if match.tail is not None:
            known = self.content[match.tail.block]
            assert known[0] == regime and known[1][: match.length] == tokens[: match.length]
        for node in match.nodes:
            self.blocks.share(node.block)
        wanted = -(-len(tokens) // self.SIZE) - len(match.nodes)
        lacking = wanted - self.blocks.free
        if lacking > 0 and self.tree.evict(lacking) < lacking:
            assert self.tree.idle == 0  # all that could go has gone
            self.blocks.release([n.block for n in match.nodes])
            return
        table = [n.block for n in match.nodes] + [self.blocks.take() for _ in range(wanted)]
        at = match.at
        for i in range(len(match.nodes), len(table)):
            self.content[table[i]] = (regime, tokens[: (i + 1) * self.SIZE])
            part = tokens[i * self.SIZE : (i + 1) * self.SIZE]
            at = self.tree.insert(at, part, table[i], ready=True)
        self.rows.append((table, tokens))

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def leave(self, data):
        table, _ = self.rows.pop(data.draw(st.integers(0, len(self.rows) - 1)))
        self.blocks.release(table)

    @rule(wanted=st.integers(0, 5))
    def evict(self, wanted):
        idle = self.tree.idle
        assert self.tree.evict(wanted) == min(wanted, idle)
        assert self.tree.idle == idle - min(wanted, idle)

    @invariant()
    def references_are_right(self):
        count = [0] * self.blocks.count
        for table, _ in self.rows:
            for block in table:
                count[block] += 1
        for node in self.tree.nodes:
            count[node.block] += 1
            assert node.parent is not None
            assert node in node.parent.children[node.tokens[0]]
        assert self.blocks.references == count

    def teardown(self):
        if not hasattr(self, "tree"):
            return
        for table, _ in self.rows:
            self.blocks.release(table)
        self.tree.clear()
        assert self.blocks.used == 0 and not self.tree.nodes


BlocksMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
PrefixMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestBlocks = BlocksMachine.TestCase
TestPrefixes = PrefixMachine.TestCase


def test_the_longest_unused_goes_first():
    blocks = Blocks(10, 2)
    tree = PrefixCache(blocks)
    for first in (1, 2, 3):
        block = blocks.take()
        tree.match(False, (first, first))
        tree.insert(tree.root(False), (first, first), block, ready=True)
        blocks.release([block])
    tree.match(False, (1, 1))
    assert tree.evict(1) == 1
    assert [tree.match(False, (t, t)).length for t in (1, 2, 3)] == [2, 0, 2]
