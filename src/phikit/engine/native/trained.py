"""Steps that give the bits of training's forward pass.

In bfloat16 a rounding that falls the other way spreads over a whole model within two layers, so an
engine and a forward pass that compute the same in another order differ by 0.017 in the mean
log-probability of SmolLM2. Here every sum is taken in the order of training's kernels and rounded
where they round, so nothing differs: what was sampled off a policy is on it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from phikit.engine.dense import DenseRunner, RopeTable
from phikit.engine.native.build import Compiler, library
from phikit.engine.native.runner import NativeRunner
from phikit.engine.native.step import DecodeStep
from phikit.engine.pool import block_bytes
from phikit.engine.runner import Piece
from phikit.models.decoder import Decoder

_BLOCK = 32  # positions


class TrainedRunner(NativeRunner):
    """A `runner.Runner` of a dense decoder in bfloat16, whatever precision its weights are in: they
    are copied and rounded when this is made, but for embedding and norms, as training takes them.
    It has no `trained_obstacle`.
    """

    def __init__(self, model: Decoder) -> None:
        self._built = library(Compiler())
        assert self._built is not None
        DenseRunner.__init__(self, model, _BLOCK)
        self.dtype, self.cache8 = torch.bfloat16, False
        self.block_bytes = block_bytes(model.config, self.dtype, _BLOCK)
        self._turns = RopeTable(model.config, torch.float32, self.device)
        self._kernels = DecodeStep(model, self._built, as_trained=True)
        self._between = None
        self.most_rows = self._kernels.most_rows
        self._late: list[Piece] = []

    def prefill(self, pieces: Sequence[Piece], late: bool = False) -> None:
        """Row by row through the functions of steps, or with the next step."""
        self._late += pieces
        if not late:
            self.settle()
