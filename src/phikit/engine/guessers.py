"""Where guesses come from: the row's own text, or a small model.

Shapes: N rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from phikit.engine.blocks import Blocks
from phikit.engine.columns import Columns
from phikit.engine.runner import Piece, Rows, Runner
from phikit.engine.runners import Model, runner_of
from phikit.engine.samples import Sample
from phikit.engine.sampling import Settings, draw, uniforms
from phikit.engine.speculate import Guess, Speculation
from phikit.errors import PhikitError
from phikit.models.decoder import Decoder

_LONGEST, _SHORTEST = 4, 2  # tokens that must have occurred before
_DRAFT = np.uint64(0x2545F4914F6CDD1D)  # tells the draft's stream from that of the draws
_STEP = 16  # tokens that the draft model has missed and takes in a step, not as a piece of prompt


class _Text:
    """The tokens of a row so far, and where each short run of them was last seen."""

    def __init__(self, sample: Sample) -> None:
        self.sample = sample
        self.tokens: list[int] = []
        self.after: dict[tuple[int, ...], int] = {}

    def add(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            for n in range(_SHORTEST, min(_LONGEST, len(self.tokens)) + 1):
                self.after[tuple(self.tokens[-n:])] = len(self.tokens)
            self.tokens.append(token)

    def next(self, count: int) -> list[int]:
        for n in range(min(_LONGEST, len(self.tokens)), _SHORTEST - 1, -1):
            at = self.after.get(tuple(self.tokens[-n:]))
            if at is not None:
                return self.tokens[at : at + count]
        return []


class _Texts:
    """The texts of the rows in use; those of others are forgotten."""

    def __init__(self) -> None:
        self.known: dict[int, _Text] = {}

    def of(self, rows: Columns) -> list[_Text]:
        texts = [self.known.get(id(s)) or _Text(s) for s in rows.samples]
        self.known = {id(t.sample): t for t in texts}
        for row, text in enumerate(texts):
            prompt = text.sample.ticket.request.prompt_ids
            if not text.tokens:
                text.add(prompt)
            seen = len(text.tokens) - len(prompt)
            text.add(rows.tokens[row, seen : int(rows.count[row])].tolist())
        return texts


class Lookup:
    """Prompt look-up: what followed when the last few tokens occurred before in the row."""

    def __init__(self) -> None:
        self._texts = _Texts()

    def guess(self, rows: Columns, lengths: Sequence[int]) -> list[Guess]:
        texts = self._texts.of(rows)
        return [Guess(t.next(k)) for t, k in zip(texts, lengths, strict=True)]


@dataclass(eq=False, slots=True)
class _Follower:
    """A row in the draft model's cache: its blocks, and how many positions are right."""

    sample: Sample
    table: list[int] = field(default_factory=list)
    fed: int = 0


class DraftModel:
    """A small model with the same vocabulary guesses, under the row's own sampling settings.

    Args:
        runner: of the small model; this is its only user.
        rows: the most rows in use.
        matching: choose the likeliest tokens, for acceptance by matching; else draw them.
    """

    def __init__(self, runner: Runner, rows: int, matching: bool = False) -> None:
        self.runner, self.matching = runner, matching
        self.blocks = Blocks(
            rows * -(-runner.max_positions // runner.block_size) + 1, runner.block_size
        )
        runner.allocate(self.blocks.count)
        self._texts = _Texts()
        self._known: dict[int, _Follower] = {}

    def guess(self, rows: Columns, lengths: Sequence[int]) -> list[Guess]:
        texts = self._texts.of(rows)
        followers = self._follow(rows)
        guesses = [Guess([]) for _ in texts]
        room = self.runner.max_positions
        wanted = [min(k, room - len(t.tokens)) for k, t in zip(lengths, texts, strict=True)]
        active = [i for i, k in enumerate(wanted) if k > 0]
        for i in active:
            last = len(texts[i].tokens) + wanted[i]
            while len(followers[i].table) * self.blocks.size < last:
                followers[i].table.append(self.blocks.take())
        self._catch_up([(followers[i], texts[i].tokens) for i in active])
        drawn: list[list[torch.Tensor]] = [[] for _ in texts]
        while active:
            fed = [(followers[i], [*texts[i].tokens, *guesses[i].tokens]) for i in active]
            tokens, p_NV = self._step(rows, active, fed, guesses)
            for place, i in enumerate(active):
                guesses[i].tokens.append(int(tokens[place]))
                if p_NV is not None:
                    drawn[i].append(p_NV[place] / p_NV[place].sum())
            active = [i for i in active if len(guesses[i].tokens) < wanted[i]]
        for guess, lines in zip(guesses, drawn, strict=True):
            if lines:
                guess.q = torch.stack(lines)
        return guesses

    def _follow(self, rows: Columns) -> list[_Follower]:
        followers = [self._known.get(id(s)) or _Follower(s) for s in rows.samples]
        known = {id(f.sample): f for f in followers}
        for key, gone in self._known.items():
            if key not in known:
                self.blocks.release(gone.table)
        self._known = known
        for row, follower in enumerate(followers):
            # what was guessed wrong last time is written over
            follower.fed = min(follower.fed, int(rows.position[row]))
        return followers

    def _long(self, length: int) -> bool:
        return self.runner.original is not None and length > self.runner.original

    def _catch_up(self, todo: list[tuple[_Follower, list[int]]]) -> None:
        """Computes what is missing, but for the last few tokens, which a step takes."""
        pieces = []
        for follower, tokens in todo:
            if len(tokens) - follower.fed > max(1, _STEP // len(todo)):
                part = tokens[follower.fed : -1]
                pieces.append(Piece(part, follower.fed, follower.table, self._long(len(tokens))))
                follower.fed = len(tokens) - 1
        if pieces:
            self.runner.prefill(pieces)

    def _step(
        self, rows: Columns, active: list[int], fed: list[tuple[_Follower, list[int]]],
        guesses: list[Guess],
    ) -> tuple[np.ndarray, torch.Tensor | None]:  # fmt: skip
        """Feeds what each has not had yet; draws what follows."""
        width = max(len(f.table) for f, _ in fed)
        token, position, table, long, last = [], [], [], [], []
        for follower, tokens in fed:
            line = [*follower.table, *[0] * (width - len(follower.table))]
            for at in range(follower.fed, len(tokens)):
                token.append(tokens[at])
                position.append(at)
                table.append(line)
                long.append(int(self._long(len(tokens))))
            last.append(len(token) - 1)
            follower.fed = len(tokens)
        batch = Rows(
            np.array(token), np.array(position), np.array(table), np.array(long),
            np.full(len(token), -1),
        )  # fmt: skip
        logits_NV = self.runner.step(batch)[last].float()
        if self.matching:
            return logits_NV.argmax(-1).cpu().numpy(), None
        settings = Settings.of(
            [rows.samples[i].ticket.request.sampling for i in active], logits_NV.device
        )
        steps = rows.count[active] + np.array([len(guesses[i].tokens) for i in active])
        uniform_N = torch.from_numpy(uniforms(rows.key[active] ^ _DRAFT, steps))
        uniform_N = uniform_N.to(logits_NV.device)
        found = draw(logits_NV, settings, uniform_N, weights=True)
        return found.token_N.cpu().numpy(), found.p_NV


def check_guesser(how: str | Decoder, model: Model) -> None:
    """Refuses what `speculation_of` cannot take.

    Raises:
        PhikitError: the small model has another vocabulary, or there is no such way.
    """
    if isinstance(how, Decoder):
        if how.config.vocab_size != model.config.vocab_size:
            raise PhikitError(
                f"the model that guesses has a vocabulary of {how.config.vocab_size}, "
                f"the other one {model.config.vocab_size}",
                "take a small model of the same family",
            )
    elif how not in ("", "lookup"):
        raise PhikitError(f"speculate is {how!r}; it must be 'lookup' or a model")


def speculation_of(how: str | Decoder, rows: int, matching: bool = False) -> Speculation | None:
    """The guesses of a new scheduler; None without any.

    Args:
        how: "lookup", or a small model of the same vocabulary; empty for none.
        rows: the most rows in use.
        matching: see `DraftModel`.
    """
    if isinstance(how, Decoder):
        return Speculation(DraftModel(runner_of(how), rows, matching), matching)
    return Speculation(Lookup()) if how else None
