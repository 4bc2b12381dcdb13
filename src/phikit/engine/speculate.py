"""Speculative decoding: some tokens of a row are guessed, and checked together in one step.

Where reading the weights is what a step costs, checking a few tokens costs little more than drawing
one. Two rules accept a guess, and neither changes what is drawn from:

*matching*: every position draws its token from its own random stream, as without guesses, and the
guess is accepted if it is that token. The tokens are those of an engine that does not guess (in
every bit with an invariant runner). A guess is accepted with its probability under the model: for a
guess without a distribution of its own (look-up) no rule does better.

*rejection*: a guess x, drawn from the draft model's q, is accepted with probability
min(1, p(x) / q(x)); else a token is drawn from max(p - q, 0). Source: Leviathan et al. 2023
(arXiv 2211.17192), algorithm 1. It accepts more than matching, and the tokens are other ones under
the same seed.

Shapes: N rows, M positions checked, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from phikit.engine.adjust import adjusts
from phikit.engine.base import Sampling
from phikit.engine.columns import Columns
from phikit.engine.runner import Rows, Runner
from phikit.engine.sampling import Settings, draw, inverse_cdf, uniforms

TOGETHER = 16  # positions of one step: what the kernels for few rows take
MOST = 8  # guesses of one row
_ACCEPT = np.uint64(0x5851F42D4C957F2D)  # tells the stream of acceptances from that of the draws


@dataclass(slots=True)
class Guess:
    """Guessed tokens of a row; `q` holds the distributions [tokens, V] that they were drawn from,
    or None where they were chosen without chance."""

    tokens: list[int]
    q: Tensor | None = None

    def cut(self, length: int) -> None:
        """Leaves the first `length` tokens."""
        del self.tokens[length:]
        if self.q is not None:
            self.q = self.q[:length]


class Guesser(Protocol):
    """Guesses the tokens that rows will draw next; a wrong guess costs time and changes nothing."""

    def guess(self, rows: Columns, lengths: Sequence[int]) -> list[Guess]:
        """Up to so many tokens for each row in use."""
        ...


class Checked(NamedTuple):
    """New tokens, row after row: which row, and what `Events` tells of them."""

    row: np.ndarray
    token: np.ndarray
    logprob: np.ndarray
    raw_logprob: np.ndarray


def simple(sampling: Sampling) -> bool:
    """Whether a row's next distributions depend on nothing but its tokens' logits."""
    return not (adjusts(sampling) or sampling.stop or sampling.constraint or sampling.top_logprobs)


class Speculation:
    """Guesses for the rows of a scheduler.

    A row that guesses well guesses further the next time, up to `MOST` tokens, and one that does
    not guesses less.

    Args:
        matching: accept by matching also where the guesser has distributions.

    Attributes:
        guessed, accepted: tokens so far.
    """

    def __init__(self, guesser: Guesser, matching: bool = False) -> None:
        self.guesser, self.matching = guesser, matching
        self.guessed = self.accepted = 0

    def guess(self, rows: Columns, runner: Runner) -> list[Guess] | None:
        """Guesses for all rows, or None when this step is better done without."""
        n = rows.n
        room = TOGETHER // n - 1
        if room < 1 or not all(simple(s.ticket.request.sampling) for s in rows.samples):
            return None
        left = rows.limit[:n] - rows.count[:n] - 1
        left = np.minimum(left, runner.max_positions - rows.position[:n] - 2)
        if runner.original is not None:  # beyond, all positions turn by other factors
            short = np.where(rows.long[:n] == 0, runner.original - rows.position[:n] - 1, left)
            left = np.minimum(left, short)
        wanted = [
            max(0, min(room, int(s.guesses), k))
            for s, k in zip(rows.samples, left.tolist(), strict=True)
        ]
        guesses = self.guesser.guess(rows, wanted) if any(wanted) else []
        return guesses if any(g.tokens for g in guesses) else None

    def check(
        self, rows: Columns, guesses: Sequence[Guess], runner: Runner, adapters: Sequence[str]
    ) -> Checked:
        """Feeds every row's last token and its guesses, and draws."""
        n = rows.n
        lengths = np.array([len(g.tokens) for g in guesses])
        row_M = np.repeat(np.arange(n), lengths + 1)
        first_N = np.cumsum(lengths + 1) - lengths - 1
        offset_M = np.arange(len(row_M)) - first_N[row_M]
        token_M = rows.last[row_M].copy()
        token_M[offset_M > 0] = [t for g in guesses for t in g.tokens]
        named = [adapters[r] for r in row_M.tolist()] if adapters else ()
        batch = Rows(
            token_M, rows.position[row_M] + offset_M, rows.table[row_M], rows.long[row_M],
            rows.state[row_M], False, named,
        )  # fmt: skip
        logits_MV = runner.step(batch).float()
        sampling = [rows.samples[r].ticket.request.sampling for r in row_M.tolist()]
        settings = Settings.of(sampling, logits_MV.device)
        uniform_M = torch.from_numpy(uniforms(rows.key[row_M], rows.count[row_M] + offset_M))
        weights = not self.matching and any(g.q is not None for g in guesses)
        drawn = draw(logits_MV, settings, uniform_M.to(logits_MV.device), weights=weights)
        tokens, logprobs, raw = (t.cpu().numpy().copy() for t in drawn[:3])
        ends = []
        for r, guess in enumerate(guesses):
            at, greedy = int(first_N[r]), sampling[first_N[r]].temperature == 0
            rejecting = guess.q is not None and not self.matching and not greedy
            if rejecting:
                assert guess.q is not None and drawn.p_NV is not None
                p = drawn.p_NV[at : at + len(guess.tokens) + 1].double()
                p /= p.sum(-1, keepdim=True)
                chosen = _rejection(guess, p, int(rows.key[r]), int(rows.count[r]))
                for i, token in enumerate(chosen):
                    tokens[at + i] = token
                    logprobs[at + i] = float(p[i, token].log())
                    raw[at + i] = float(logits_MV[at + i, token] - drawn.log_z_N1[at + i, 0])
            right = 0
            while right < len(guess.tokens) and tokens[at + right] == guess.tokens[right]:
                right += 1
            ends.append(right + 1)
            self._learn(rows, r, len(guess.tokens), right)
        ends = [self._until_stop(rows, r, tokens, int(first_N[r]), e) for r, e in enumerate(ends)]
        kept_M = offset_M < np.array(ends)[row_M]
        return Checked(row_M[kept_M], tokens[kept_M], logprobs[kept_M], raw[kept_M])

    def _learn(self, rows: Columns, row: int, guessed: int, right: int) -> None:
        self.guessed += guessed
        self.accepted += right
        sample = rows.samples[row]
        if guessed and right == guessed:
            sample.guesses = min(MOST, 2 * sample.guesses)
        elif guessed:
            sample.guesses = max(1.0, 0.5 * (sample.guesses + right + 1))

    @staticmethod
    def _until_stop(rows: Columns, row: int, tokens: np.ndarray, at: int, count: int) -> int:
        """Of so many new tokens, those up to the first that ends the row."""
        stops = np.isin(tokens[at : at + count], rows.stop[row])
        return int(stops.argmax()) + 1 if stops.any() else count


def _rejection(guess: Guess, p_MV: Tensor, key: int, count: int) -> list[int]:
    """The tokens to keep, by Leviathan et al.: accepted guesses and, where one is rejected, what is
    drawn in its place. Nothing is said of what follows when all are accepted."""
    assert guess.q is not None
    chosen: list[int] = []
    steps = count + np.arange(len(guess.tokens))
    keys = np.full(len(steps), key, np.uint64)
    accept, again = uniforms(keys ^ _ACCEPT, steps), uniforms(keys, steps)
    for i, token in enumerate(guess.tokens):
        q_V = guess.q[i].double()
        if float(accept[i]) * float(q_V[token]) < float(p_MV[i, token]):
            chosen.append(token)
            continue
        rest_V = (p_MV[i] - q_V).clamp(min=0)
        uniform = torch.tensor([float(again[i])], dtype=torch.float64, device=rest_V.device)
        chosen.append(int(inverse_cdf(rest_V[None], uniform)[0]))
        break
    return chosen
