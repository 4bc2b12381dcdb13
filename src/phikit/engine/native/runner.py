"""Runs a dense decoder's steps of few rows through the C kernels, all else as `DenseRunner` does.

Up to 16 rows a step is bound by reading the weights, or by the calling of many small operations;
from there on torch's products are as good.
"""

from __future__ import annotations

import torch
from torch import Tensor

from phikit.engine.dense import DenseRunner
from phikit.engine.native import products
from phikit.engine.native.build import Compiler, library
from phikit.engine.native.step import DecodeStep, Pages, obstacle
from phikit.engine.runner import Rows
from phikit.models.decoder import Decoder


class NativeRunner(DenseRunner):
    """A `runner.Runner`. Where there is no compiler, or the model is none that the kernels run
    (not bfloat16, not on the CPU, adapted layers), it is a `DenseRunner`.

    A row's logits do not depend on how many rows go with it through the kernels.
    """

    def __init__(
        self, model: Decoder, block_size: int = 32, compiler: Compiler | None = None
    ) -> None:
        super().__init__(model, block_size)
        self._kernels: DecodeStep | None = None
        if not obstacle(model) and (built := library(compiler or Compiler())) is not None:
            self._kernels = DecodeStep(model, built)

    def step(self, rows: Rows) -> Tensor:
        """Logits [N, V] after feeding one token per row."""
        if self._kernels is None or len(rows.token_N) > products.MOST_ROWS:
            return super().step(rows)
        self._plan = None  # `DenseRunner` would take rows that it has not seen for the same
        self.rope.fit(int(rows.position_N.max()) + 1)
        token_N, position_N, long_N = map(
            torch.from_numpy, (rows.token_N, rows.position_N, rows.long_N)
        )
        cos_N1R, sin_N1R = self.rope.at(position_N, long_N)
        blocks = int(rows.position_N.max()) // self.block_size + 1
        table_NJ = torch.from_numpy(rows.table_NJ[:, :blocks]).to(torch.int32)
        pages = Pages(self.pool.k, self.pool.v, table_NJ)
        rope = (cos_N1R[:, 0], sin_N1R[:, 0])
        return self._kernels(token_N, position_N, rope, pages, torch.get_num_threads())
