"""The prefix cache: a tree of token blocks whose keys and values are computed already.

A node stands for up to one block of tokens after all the tokens of its parents, and holds that
block. Looking up a prompt walks down from the root; where the last step shares only some of a
node's tokens, the block is to be copied and written on from there (copy on write), so that a shared
prefix is computed once whatever its length. Only full blocks have children.

Keys of another regime (LongRoPE's short or long factors, an adapter) live under another root.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from phikit.engine.blocks import Blocks


@dataclass(eq=False, slots=True)
class Node:
    """One block of the tree. `ready`: its keys and values are computed."""

    tokens: tuple[int, ...]
    block: int
    parent: Node | None
    ready: bool = False
    used: int = 0  # when it was last asked for, in the tree's own time
    children: dict[int, list[Node]] = field(default_factory=dict)  # by first token

    def drop(self, child: Node) -> None:
        """Takes a child out."""
        same = self.children[child.tokens[0]]
        same.remove(child)
        if not same:
            del self.children[child.tokens[0]]


@dataclass(slots=True)
class Match:
    """What is there of a prompt: whole blocks, and a part of one more."""

    nodes: list[Node]  # whole blocks, in order
    tail: Node | None  # shares `tail_length` tokens more
    tail_length: int
    at: Node  # where what is missing hangs on

    @property
    def length(self) -> int:
        """How many tokens of the prefix are held."""
        return sum(len(n.tokens) for n in self.nodes) + self.tail_length

    @property
    def ready(self) -> bool:
        """Whether all of it is computed; another sample may still be at it."""
        return all(n.ready for n in self.nodes) and (self.tail is None or self.tail.ready)


class PrefixCache:
    """The tree holds one reference to each of its blocks.

    Blocks that only the tree still holds are evicted leaf by leaf, the longest unused first.
    """

    def __init__(self, blocks: Blocks) -> None:
        self.blocks = blocks
        self.roots: dict[Hashable, Node] = {}
        self.nodes: dict[Node, None] = {}  # in order of making
        self._time = 0

    def root(self, regime: Hashable) -> Node:
        """The tree of a regime: what is held under one is never taken up under another."""
        return self.roots.setdefault(regime, Node((), 0, None, ready=True))

    def match(self, regime: Hashable, tokens: Sequence[int]) -> Match:
        """The longest known prefix of the tokens."""
        self._time += 1
        size, at = self.blocks.size, self.root(regime)
        nodes: list[Node] = []
        start = 0
        while start < len(tokens):
            rest = tuple(tokens[start : start + size])
            best, length = closest(at.children.get(rest[0], ()), rest)
            if best is None:
                break
            best.used = self._time
            if length < size:
                return Match(nodes, best, length, at)
            nodes.append(best)
            at = best
            start += size
        return Match(nodes, None, 0, at)

    def insert(self, parent: Node, tokens: tuple[int, ...], block: int, ready: bool) -> Node:
        """A new node below a full one; the tree takes a reference to the block."""
        self.blocks.share(block)
        node = Node(tokens, block, parent, ready, self._time)
        parent.children.setdefault(tokens[0], []).append(node)
        self.nodes[node] = None
        return node

    def extend(self, node: Node, more: tuple[int, ...]) -> None:
        """The owner of a part-filled block has written on in it."""
        node.tokens += more

    def forget(self, node: Node) -> None:
        """Takes out a node without children, and lets go of its block."""
        assert node.parent is not None and not node.children
        node.parent.drop(node)
        del self.nodes[node]
        self.blocks.release([node.block])

    @property
    def idle(self) -> int:
        """How many blocks nobody but the tree holds: all of them can be evicted."""
        references = self.blocks.references
        return sum(references[n.block] == 1 for n in self.nodes)

    def evict(self, wanted: int) -> int:
        """Frees at least so many blocks, if there are so many idle ones; returns how many."""
        references, freed = self.blocks.references, 0
        while freed < wanted:
            leaves = [
                n for n in self.nodes if not n.children and references[n.block] == 1
            ]  # fmt: skip
            if not leaves:
                break
            leaves.sort(key=lambda n: n.used)
            for node in leaves[: wanted - freed]:
                self.forget(node)
                freed += 1
        return freed

    def clear(self) -> None:
        """Evicts all that nobody uses."""
        self.evict(len(self.nodes))


def closest(nodes: Sequence[Node], tokens: tuple[int, ...]) -> tuple[Node | None, int]:
    """The node that shares the longest head with the tokens, and how long that is."""
    best, most = None, 0
    for node in nodes:
        length = _common(node.tokens, tokens)
        if length > most:
            best, most = node, length
    return best, most


def _common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    if a == b:
        return len(a)
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
