"""Predict the next token: pre-training, mid-training and supervised fine-tuning.

They differ only in which targets are trained on, which packing has already decided.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from phikit.data.pack import IGNORE, Batch, Batches
from phikit.models.decoder import Decoder
from phikit.train.adapters import head
from phikit.train.attention import confined
from phikit.train.loop import Loss, StepBatch
from phikit.train.losses import cross_entropy, trained_rows

NEARLY_FULL = 0.9  # share of a batch's positions that are used
ROUND = 64  # tokens


def cut(batch: Batch, rows: int) -> list[Batch]:
    """A batch in pieces of at most `rows` rows; 0 leaves it whole."""
    size = rows or len(batch.ids_BL)
    return [
        Batch(*parts)
        for parts in zip(
            *(
                torch.split(t, size)
                for t in (batch.ids_BL, batch.targets_BL, batch.positions_BL, batch.segments_BL)
            ),
            strict=True,
        )
    ]


def without_padding(batch: Batch) -> Batch:
    """The same documents one after the other in a single row, so that padding costs little.

    Rows that are nearly full stay as they are, and a single row is filled up to a round length:
    tensors of ever other sizes, step after step, leave the heap full of holes (a quarter more
    memory after a dozen steps).
    """
    used_BL = batch.segments_BL != 0
    used = int(used_BL.sum())
    if used >= NEARLY_FULL * used_BL.numel():
        return batch
    numbers_BL = batch.segments_BL + batch.segments_BL.shape[1] * torch.arange(
        len(used_BL), dtype=batch.segments_BL.dtype
    ).unsqueeze(1)  # so that a row's last document is another than the next row's first
    fills = (
        (batch.ids_BL, 0),
        (batch.targets_BL, IGNORE),
        (batch.positions_BL, 0),
        (numbers_BL, 0),
    )
    return Batch(*(F.pad(x[used_BL], (0, -used % ROUND), value=fill)[None] for x, fill in fills))


@dataclass
class NextToken:
    """Cross entropy over the trained targets of packed rows, `microbatch` rows at once.

    `names`: what the packed examples are called, by their numbers.
    """

    batches: Batches
    microbatch: int = 0
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    names: Callable[[int], str] = "example {}".format

    def draw(self, step: int) -> StepBatch[Batch]:
        before = self.batches.state()
        batch = next(self.batches)
        rows = self.batches.taken
        used = batch.segments_BL != 0
        return StepBatch(
            micros=cut(batch, self.microbatch),
            weight=float((batch.targets_BL != IGNORE).sum()),
            tokens=int(used.sum()),
            context=float((batch.positions_BL + 1)[used].double().mean()),
            name=f"{len(batch.ids_BL)} rows from row {before['row']} of epoch {before['epoch']}",
            ids=lambda: [self.names(n) for n in self.batches.rows.examples(rows)],
        )

    def loss(self, model: Decoder, micro: Batch) -> Loss:
        micro = without_padding(micro)
        hidden_BLD = model.hidden(
            micro.ids_BL, micro.positions_BL, attend=confined(micro.segments_BL)
        )
        hidden_ND, targets_N = trained_rows(hidden_BLD, micro.targets_BL)
        loss = cross_entropy(*head(model, hidden_ND), targets_N, self.label_smoothing, self.z_loss)
        smoothed = self.label_smoothing or self.z_loss
        return Loss(loss.loss, {"nll": loss.nll} if smoothed else {})

    def state(self) -> dict[str, Any]:
        return self.batches.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self.batches.load_state(state)
