"""What quantisation costs in quality: the distance between two models' next-token distributions.

Shapes: B sequences, L positions, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phikit.engine.base import Request, Sampling
from phikit.engine.local import LocalEngine
from phikit.engine.runners import Model


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
def distances(reference: nn.Module, others: Sequence[nn.Module], ids_BL: Tensor) -> list[Distance]:
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


def _logprobs(model: nn.Module, row_L: Tensor) -> Tensor:
    return F.log_softmax(model(row_L[None, :-1])[0].float(), dim=-1)


def decoding_speed(model: Model, prompt: Sequence[int], tokens: int = 48) -> float:
    """Tokens per second of one greedy stream, after the prompt and the first token."""
    stream = LocalEngine(model, max_batch=1).stream(
        Request(tuple(prompt), Sampling(temperature=0, max_tokens=tokens + 1))
    )
    next(stream)
    begin = time.perf_counter()
    for _ in stream:
        pass
    return tokens / (time.perf_counter() - begin)
