"""Penalties and biases: what a request adds to the logits before they become probabilities.

Shapes: N rows, P of them adjusted, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from phikit.engine.base import Sampling


def adjusts(sampling: Sampling) -> bool:
    """Whether these settings change logits by a bias or by what was drawn before."""
    return bool(
        sampling.logit_bias
        or sampling.repetition_penalty != 1
        or sampling.presence_penalty
        or sampling.frequency_penalty
    )


class Adjustments:
    """The adjustments of a batch, while its rows stay the same ones.

    Args:
        rows: of every row its settings, its prompt and what it has drawn so far.
    """

    def __init__(
        self,
        rows: Sequence[tuple[Sampling, Sequence[int], Sequence[int]]],
        vocab_size: int,
        device: torch.device,
    ) -> None:
        chosen = [i for i, (sampling, _, _) in enumerate(rows) if adjusts(sampling)]
        count_PV = np.zeros((len(chosen), vocab_size), np.float32)
        bias_PV, prompt_PV = np.zeros_like(count_PV), np.zeros(count_PV.shape, bool)
        for at, (sampling, prompt, drawn) in enumerate(rows[i] for i in chosen):
            np.add.at(count_PV[at], np.asarray(drawn, np.int64), 1.0)
            prompt_PV[at, list(prompt)] = True
            for token, value in sampling.logit_bias:
                bias_PV[at, token] += value

        def column(name: str) -> Tensor:
            values = [getattr(rows[i][0], name) for i in chosen]
            return torch.tensor(values, dtype=torch.float32, device=device)[:, None]

        self.row_P = torch.tensor(chosen, dtype=torch.int64, device=device)
        self.count_PV, self.prompt_PV, self.bias_PV = (
            torch.from_numpy(a).to(device) for a in (count_PV, prompt_PV, bias_PV)
        )
        self.repetition_P1 = column("repetition_penalty")
        self.presence_P1 = column("presence_penalty")
        self.frequency_P1 = column("frequency_penalty")

    def apply(self, logits_NV: Tensor) -> Tensor:
        """The logits to sample from; those given stay as they are."""
        x_PV = logits_NV[self.row_P] + self.bias_PV
        drawn_PV = self.count_PV > 0
        repeated_PV = torch.where(x_PV > 0, x_PV / self.repetition_P1, x_PV * self.repetition_P1)
        x_PV = torch.where(drawn_PV | self.prompt_PV, repeated_PV, x_PV)
        x_PV -= self.presence_P1 * drawn_PV + self.frequency_P1 * self.count_PV
        return logits_NV.index_copy(0, self.row_P, x_PV)

    def record(self, token_N: Tensor) -> None:
        """Counts what was drawn."""
        token_P1 = token_N[self.row_P][:, None]
        self.count_PV.scatter_add_(1, token_P1, torch.ones_like(token_P1, dtype=torch.float32))
