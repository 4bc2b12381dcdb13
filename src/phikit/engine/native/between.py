"""What lies between the products of a step of many rows, by the C kernels.

Shapes: M rows, D model width, H query heads, G key-value heads, K head size, F inner width, R
rotated part of a head, T blocks of a row's table.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from phikit.engine.pool import Pool
from phikit.engine.pool8 import Pool8
from phikit.errors import PhikitError
from phikit.models.decoder_config import DecoderConfig

_LANES = 16  # positions whose scores are computed together


class _Shape(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in (
            "heads", "kv_heads", "head_dim", "rotary", "window", "most")),
        *((f"{name}_stride", ctypes.c_int64) for name in ("block", "head", "position")),
        ("block_size", ctypes.c_int32), ("table_width", ctypes.c_int32),
    )  # fmt: skip


class Between:
    """The kernels for one model; all tensors are contiguous on the CPU. What goes into products and
    comes from them is bfloat16, the residual sum float32; with `wide` all are float32."""

    def __init__(self, library: ctypes.CDLL, config: DecoderConfig, wide: bool = False) -> None:
        self.config, self.threads = config, torch.get_num_threads()
        kind = "wide" if wide else "rows"
        self._norm, self._gate, self.attend = (
            getattr(library, f"phikit_{name}_{kind}") for name in ("norm", "gate", "attend")
        )

    def norm(self, x_MD: Tensor, add_MD: Tensor | None, weight_D: Tensor) -> Tensor:
        """Adds to x (float32) in place; returns x / rms(x) × weight in the weight's precision."""
        out_MD = torch.empty_like(x_MD, dtype=weight_D.dtype)
        self._norm(
            x_MD.data_ptr(), None if add_MD is None else add_MD.data_ptr(), weight_D.data_ptr(),
            out_MD.data_ptr(), len(x_MD), x_MD.shape[1], self.config.norm_eps, self.threads,
        )  # fmt: skip
        return out_MD

    def gate(self, both_MF2: Tensor) -> Tensor:
        """silu(gate) × up: [M, F]."""
        m, f = both_MF2.shape[0], both_MF2.shape[1] // 2
        out_MF = both_MF2.new_empty(m, f)
        self._gate(both_MF2.data_ptr(), out_MF.data_ptr(), m, f, self.threads)
        return out_MF

    def attending(
        self, pool: Pool | Pool8, table_MT: Tensor, position_M: Tensor, rope: tuple[Tensor, Tensor]
    ) -> Attending:
        return Attending(self, pool, table_MT, position_M, rope)


class Attending:
    """What the new position of each row attends to, for one step and all layers.

    Args:
        table_MT: int32, the rows' blocks, `position` included.
        position_M: int32, where the rows' tokens are.
        rope: cosines and signed sines [M, R].
    """

    def __init__(
        self,
        between: Between,
        pool: Pool | Pool8,
        table_MT: Tensor,
        position_M: Tensor,
        rope: tuple[Tensor, Tensor],
    ) -> None:
        self._between, self._pool = between, pool
        # the kernels are given addresses, so what they read is held here
        self._table_MT, self._position_M = table_MT, position_M
        self._rope = [t.float().contiguous() for t in rope]
        config = between.config
        window = config.sliding_window or 0
        most = (int(position_M.max()) // _LANES + 1) * _LANES
        self._shape = _Shape(
            config.heads, config.kv_heads, config.head_dim, config.rotary_dim,
            window if window < config.max_positions else 0, most, *pool.strides,
            pool.size, table_MT.shape[1],
        )  # fmt: skip
        self._rope_pointers = (ctypes.c_void_p * 2)(*(t.data_ptr() for t in self._rope))

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        """Stores the new keys and values, and attends: [M, H × K]. `qkv` is rotated in place.

        Raises:
            PhikitError: there is no memory for the scores.
        """
        config, pool = self._between.config, self._pool
        out = qkv.new_empty(len(qkv), config.heads * config.head_dim)
        addresses = [t.data_ptr() for t in pool.layers[layer]]
        store = (ctypes.c_void_p * 4)(*addresses)
        failed = self._between.attend(
            ctypes.addressof(self._shape), store, self._table_MT.data_ptr(),
            self._position_M.data_ptr(), self._rope_pointers, qkv.data_ptr(), out.data_ptr(),
            len(qkv), self._between.threads,
        )  # fmt: skip
        if failed:
            raise PhikitError(f"no memory for the attention of {len(qkv)} rows")
        return out
