"""The same bits for a request, whatever else is computed with it.

Everything that a token leaves behind (its keys and values, its logits) is computed by functions of
its own row and of the keys and values before it: one order of summation per element of a product,
one order of positions in attention, nothing that depends on how many rows go together or on who
shares a prefix. Prompts go through the same functions as steps. So it makes no difference either
where a prompt is cut, whether the cache had some of it, or who computed that.

Shapes: N rows, M rows of a product, K its columns, J blocks of a table.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from phikit.engine.native import products
from phikit.engine.native.between import Between
from phikit.engine.native.build import Compiler, library
from phikit.engine.native.runner import NativeRunner
from phikit.engine.native.step import Packed, obstacle, packable
from phikit.engine.packed import Product
from phikit.engine.rowwise import Rowwise, blockwise
from phikit.engine.runner import Piece, Rows
from phikit.errors import PhikitError
from phikit.models.decoder import Decoder
from phikit.models.lora import LoraLinear

_MOST = 1 << 32  # bytes of weights that are packed, so copied; it does not depend on what is free


class InvariantRunner(NativeRunner):
    """A `runner.Runner` whose results for a row do not depend on the other rows, in any bit.

    With the C kernels they do not depend on the number of threads either. Plain bfloat16 weights
    are packed, and a step is then one call, as in the ordinary engine. Without a compiler torch
    computes row by row, which is several times slower.

    Attributes:
        native: whether the C kernels are there.

    Raises:
        PhikitError: the model is not on the CPU, or neither float32 nor bfloat16, or has layers
            that are neither plain nor quantised by phikit.
    """

    def __init__(
        self,
        model: Decoder,
        block_size: int = 0,
        compiler: Compiler | None = None,
        cache: str = "",
    ) -> None:
        weight = model.model.embed_tokens.weight
        if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16):
            raise PhikitError(
                f"invariant results are to be had on the CPU in float32 or bfloat16, not in "
                f"{weight.dtype} on {weight.device.type}",
                "leave invariant out",
            )
        self._library = library(compiler or Compiler())
        super().__init__(model, block_size, compiler=compiler, cache=cache)
        self._kernels, wide = None, weight.dtype == torch.float32
        config = model.config
        packs = not obstacle(model) and packable(model)
        if self._library is not None and packs and 2 * config.parameters <= _MOST:
            self._kernels = self._one_call(self._library, packs=True)
        self.native = self._library is not None
        self._between = Rowwise(config)
        if self._library is not None:
            self._between = Between(self._library, config, wide)

    def _product(self, module: nn.Module, pack: int = 0) -> Product:
        if isinstance(module, LoraLinear):
            return self.lora.product(module, self._product(module.base_layer), self._product)
        built, threads = self._library, torch.get_num_threads()
        if built is None:
            return blockwise(module)
        weight, bias = None, None
        if isinstance(module, Packed):
            matrix = module.matrix()
        elif isinstance(module, nn.Linear):
            weight, bias = module.weight.detach().contiguous(), module.bias
            kind = "f32" if weight.dtype == torch.float32 else "bf16"
            matrix = products.matrix(kind, weight.shape[0], weight.shape[1], weight)
        else:
            raise PhikitError(f"invariant results are not to be had of a {type(module).__name__}")

        wide = module is self.model.lm_head  # logits are not rounded

        def product(x_MK: Tensor) -> Tensor:
            y_MN = products.rows(built, matrix, x_MK, threads, wide)
            return y_MN if bias is None else y_MN + bias

        product.__dict__["weight"] = weight  # the matrix holds addresses alone

        return product

    def step(self, rows: Rows) -> Tensor:
        if self._kernels is not None:
            return self._with_late(self._kernels, rows)
        self.lora.choose(rows.adapters, len(rows.token_N), self.device)
        return self.head(self.rows_hidden(rows))

    def prefill(self, pieces: Sequence[Piece], late: bool = False) -> None:
        self._late += pieces
        if not late or self._kernels is None:
            self.settle()

    def feed(self, rows: Rows) -> None:
        if self._kernels is not None:
            super().feed(rows)
            return
        self.lora.choose(rows.adapters, len(rows.token_N), self.device)
        self.rows_hidden(rows)
