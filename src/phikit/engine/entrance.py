"""How samples enter: what the prefix cache has of them, and the rest computed piece by piece.

An admitted sample holds all blocks of its context. What it will compute is announced in the prefix
tree at once, so that a sample admitted after it builds on it and waits, instead of computing the
same again. Admission is in order, hence a sample only ever waits for earlier ones.
"""

from __future__ import annotations

from phikit.engine.blocks import Blocks
from phikit.engine.radix import Match, Node, PrefixCache, closest
from phikit.engine.runner import Piece, Runner
from phikit.engine.samples import Sample


class Entrance:
    """Admitted samples that cannot run yet, in order of admission."""

    def __init__(self, runner: Runner, blocks: Blocks, prefixes: PrefixCache) -> None:
        self.runner, self.blocks, self.prefixes = runner, blocks, prefixes
        self.entering: list[Sample] = []
        self.reused = 0
        self._admitted = 0

    def secure(self, wanted: int) -> bool:
        """Sees to it that so many blocks are free, by evicting cached ones if need be."""
        lacking = wanted - self.blocks.free
        return lacking <= 0 or self.prefixes.evict(lacking) >= lacking

    def admit(self, sample: Sample, reserve: int) -> bool:
        """Gives a sample its blocks, if `reserve` more stay free; says whether it could."""
        context, size, blocks = sample.context, self.blocks.size, self.blocks
        original = self.runner.original
        sample.long = original is not None and len(context) > original
        sample.goal = goal = len(context) - 1
        match = self.prefixes.match(sample.regime, context[:goal])
        shared = [n.block for n in match.nodes]
        for block in shared:
            blocks.share(block)
        if match.tail is not None:
            blocks.share(match.tail.block)
        wanted = goal // size + 1 - len(shared)  # the last one is for the first token to be fed
        if not self.secure(wanted + reserve) and match.tail is not None:
            # do without the part-filled block: it needs room beside its copy
            blocks.release([match.tail.block])
            match = Match(match.nodes, None, 0, match.at)
        if not self.secure(wanted + reserve):
            blocks.release(shared)
            return False
        sample.table = shared + [blocks.take() for _ in range(wanted)]
        sample.path = list(match.nodes)
        sample.computed = match.length
        sample.copy = None
        sample.waits = [n for n in match.nodes if not n.ready]
        if match.tail is not None:
            sample.copy = (match.tail, sample.table[len(shared)])
            if not match.tail.ready:
                sample.waits.append(match.tail)
        if match.length < goal:
            self._announce(sample, match.at, context)
        self.reused += match.length
        if not sample.tokens:
            sample.reused = match.length
        self._admitted += 1
        sample.order = self._admitted
        self.entering.append(sample)
        return True

    def _announce(self, sample: Sample, at: Node, context: tuple[int, ...]) -> None:
        size = self.blocks.size
        for index in range(len(sample.path), -(-sample.goal // size)):
            tokens = context[index * size : min((index + 1) * size, sample.goal)]
            at = self.prefixes.insert(at, tokens, sample.table[index], ready=False)
            sample.path.append(at)

    def work(self, budget: int) -> list[Sample]:
        """Computes up to `budget` tokens of those that enter; returns those that can run now.

        In waves: what the samples of one wave have computed, those of the next may build on. The
        runner may leave computing to the step that follows.
        """
        entered: list[Sample] = []
        while self.entering:
            ready = [s for s in self.entering if self._is_ready(s)]
            self._begin(ready)
            through = [s for s in ready if s.computed >= s.goal]
            pieces: list[tuple[Sample, Piece]] = []
            for sample in ready:
                count = min(budget, sample.goal - sample.computed)
                if count > 0:
                    budget -= count
                    pieces.append((sample, self._piece(sample, count)))
            if not pieces and not through:
                break
            if pieces:
                self.runner.prefill([piece for _, piece in pieces], late=True)
                for sample, piece in pieces:
                    self._computed(sample, len(piece.tokens))
                through += [s for s, _ in pieces if s.computed >= s.goal]
            gone = set(map(id, through))
            self.entering = [s for s in self.entering if id(s) not in gone]
            entered += through
        entered.sort(key=lambda s: s.order)
        return entered

    def _piece(self, sample: Sample, count: int) -> Piece:
        start = sample.computed
        tokens = sample.context[start : start + count]
        return Piece(tokens, start, sample.table, sample.long, sample.state, sample.adapter)

    def _is_ready(self, sample: Sample) -> bool:
        """Whether all that it builds on is computed."""
        return all(n.ready for n in sample.waits)

    def _begin(self, ready: list[Sample]) -> None:
        """Copies the part-filled blocks that samples write on in."""
        samples = [s for s in ready if s.copy is not None]
        if not samples:
            return
        copies = [s.copy for s in samples if s.copy is not None]
        self.runner.copy_blocks([node.block for node, _ in copies], [to for _, to in copies])
        for sample, (node, _) in zip(samples, copies, strict=True):
            self.blocks.release([node.block])
            sample.copy = None

    def _computed(self, sample: Sample, count: int) -> None:
        sample.computed += count
        end = 0
        for node in sample.path:
            end += len(node.tokens)
            if end <= sample.computed:
                node.ready = True

    # --- leaving ---------------------------------------------------------------------------------

    def withdraw(self, first: Sample) -> list[Sample]:
        """Takes a sample back out, and those after it, which may build on it; returns them in
        order of admission. What was computed of them stays cached."""
        at = self.entering.index(first)
        out = self.entering[at:]
        del self.entering[at:]
        for sample in reversed(out):
            mine = [n for n in sample.path if not n.ready and n not in sample.waits]
            if sample.copy is not None:
                self.blocks.release([sample.copy[0].block])
            self.give_up(sample)
            for node in reversed(mine):
                self.prefixes.forget(node)
        return out

    def give_up(self, sample: Sample) -> None:
        """A sample lets go of its blocks."""
        self.blocks.release(sample.table)
        sample.table, sample.path, sample.waits, sample.copy = [], [], [], None

    def keep(self, sample: Sample, tokens: tuple[int, ...]) -> None:
        """Enters all that a sample has computed, of these tokens, into the prefix tree."""
        size, prefixes, path = self.blocks.size, self.prefixes, sample.path
        at = path[-1] if path else prefixes.root(sample.regime)
        if path and len(at.tokens) < size:  # its own, and it has written on in it
            assert at.parent is not None
            start = (len(path) - 1) * size
            mine = tokens[start : start + size]
            same, length = closest(at.parent.children[mine[0]], mine)
            if same is not None and same is not at and length == len(mine):
                at = same  # others have been here
            else:
                prefixes.extend(at, mine[len(at.tokens) :])
            if len(at.tokens) < size:
                return
        for index in range(len(path), -(-len(tokens) // size)):
            mine = tokens[index * size : (index + 1) * size]
            same, length = closest(at.children.get(mine[0], ()), mine)
            if same is None or length < len(mine):
                at = prefixes.insert(at, mine, sample.table[index], ready=True)
            elif length < size:
                return
            else:
                at = same
