"""What quantisation costs in quality: the distance between two models' next-token distributions.

Shapes: B sequences, L positions, N positions of one step, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from phikit.engine.base import Request, Sampling
from phikit.engine.local import LocalEngine
from phikit.engine.runner import Rows
from phikit.engine.runners import Model, runner_of
from phikit.errors import PhikitError

#: token ids [1, L] to logits [1, L, V]: a model, or one by its cache
Logits = Callable[[Tensor], Tensor]

_TOGETHER = 64  # positions of one step through the cache


@dataclass(frozen=True)
class Distance:
    """Means over positions.

    Attributes:
        kl: Kullback-Leibler divergence from the reference, in nats.
        agreement: how often the most probable token is the same.
        perplexity, reference: e to the mean negative log-probability of the text's own next token.
    """

    kl: float
    agreement: float
    perplexity: float
    reference: float


@torch.no_grad()
def distances(reference: Logits, others: Sequence[Logits], ids_BL: Tensor) -> list[Distance]:
    """How far other models are from a reference on given text, a sequence at a time."""
    sums = torch.zeros(len(others), 4, dtype=torch.float64)
    for row_L in ids_BL:
        target_L1 = row_L[1:, None]
        mine_LV = _logprobs(reference, row_L)
        best_L, said = mine_LV.argmax(-1), -mine_LV.gather(1, target_L1).mean()
        for i, other in enumerate(others):
            theirs_LV = _logprobs(other, row_L)
            kl = F.kl_div(theirs_LV, mine_LV, log_target=True, reduction="none").sum(-1).mean()
            same = (theirs_LV.argmax(-1) == best_L).double().mean()
            nll = -theirs_LV.gather(1, target_L1).mean()
            sums[i] += torch.stack((kl.double(), same, nll.double(), said.double()))
    means = sums / len(ids_BL)
    return [
        Distance(kl, same, torch.tensor(nll).exp().item(), torch.tensor(said).exp().item())
        for kl, same, nll, said in means.tolist()
    ]


def _logprobs(model: Logits, row_L: Tensor) -> Tensor:
    return F.log_softmax(model(row_L[None, :-1])[0].float(), dim=-1)


class Cached:
    """A model as the engine decodes with it: keys and values go into the cache, and every position
    reads its past from there, as the steps of speculative decoding do.

    Args:
        length: the longest sequence.

    Attributes:
        bytes: of a position's keys and values.

    Raises:
        PhikitError: the engine has no such cache for the model, or steps through it one at a time.
    """

    def __init__(self, model: Model, cache: str, length: int) -> None:
        self._runner = runner_of(model, cache=cache)
        if self._runner.states is not None:
            raise PhikitError("a model with states is fed one position at a time")
        size = self._runner.block_size
        self._blocks = -(-length // size)
        self._runner.allocate(self._blocks + 1)
        self.bytes = self._runner.block_bytes / size

    def __call__(self, ids_1L: Tensor) -> Tensor:
        ids_L = ids_1L[0].numpy()
        original = self._runner.original
        far = original is not None and len(ids_L) > original
        found = []
        for start in range(0, len(ids_L), _TOGETHER):
            token_N = ids_L[start : start + _TOGETHER]
            n = len(token_N)
            table_NJ = np.tile(np.arange(1, self._blocks + 1), (n, 1))
            position_N = np.arange(start, start + n)
            rows = Rows(token_N, position_N, table_NJ, np.full(n, int(far)), np.full(n, -1))
            found.append(self._runner.step(rows).float().clone())
        return torch.cat(found)[None]


def decoding_speed(model: Model, prompt: Sequence[int], tokens: int = 48, cache: str = "") -> float:
    """Tokens per second of one greedy stream, after the prompt and the first token."""
    stream = LocalEngine(model, max_batch=1, cache=cache).stream(
        Request(tuple(prompt), Sampling(temperature=0, max_tokens=tokens + 1))
    )
    next(stream)
    begin = time.perf_counter()
    for _ in stream:
        pass
    return tokens / (time.perf_counter() - begin)
