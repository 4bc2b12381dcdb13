"""A whole decoding step in one call of the C kernels.

Shapes: M new tokens (up to 16, with packed weights any number), D model width, G key-value heads,
K head size, R rotated part of a head, L positions, T blocks of a sequence, V vocabulary.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from phikit.engine.native import products
from phikit.engine.native.build import Matrix
from phikit.errors import PhikitError
from phikit.models.decoder import Decoder, Layer
from phikit.models.lora import LoraLinear

_WIDEST_HEAD = 512  # of step.c


@runtime_checkable
class Packed(Protocol):
    """A linear layer with packed weights."""

    def matrix(self) -> Matrix: ...


class _Layer(ctypes.Structure):
    _fields_ = (
        ("input_norm", ctypes.c_void_p), ("post_norm", ctypes.c_void_p),
        ("qkv", Matrix), ("o", Matrix), ("gate_up", Matrix), ("down", Matrix),
    )  # fmt: skip


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in (
            "layers", "width", "inner", "heads", "kv_heads", "head_dim", "rotary", "vocab",
            "window", "as_trained", "wide")),
        ("eps", ctypes.c_float),
        ("embedding", ctypes.c_void_p), ("norm", ctypes.c_void_p),
        ("layer", ctypes.POINTER(_Layer)), ("head", Matrix),
    )  # fmt: skip


class _Cache(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.POINTER(ctypes.c_void_p)) for name in (
            "keys", "values", "key_scales", "value_scales")),
        *((f"{name}_stride", ctypes.c_int64) for name in ("block", "head", "position")),
        ("block_size", ctypes.c_int32), ("table_width", ctypes.c_int32),
        ("table", ctypes.c_void_p),
    )  # fmt: skip


@dataclass(frozen=True)
class Pages:
    """Where the keys and values of the tokens' sequences are.

    Attributes:
        layers: for each layer keys and values [block, G, position in the block, K] in bfloat16, all
            laid out alike, K innermost; or the four tensors of a `pool8.Store8`.
        size: positions of a block.
        table_MT: int32, the blocks of each token's sequence in order.
    """

    layers: Sequence[tuple[Tensor, ...]]
    size: int
    table_MT: Tensor

    def cache(self) -> _Cache:
        """
        Raises:
            PhikitError: they are not laid out so.
        """
        strides: tuple[int, ...] = (0, 0, 0)
        if len(self.layers[0]) == 2:
            first = self.layers[0][0]
            if any(t.stride() != first.stride() for layer in self.layers for t in layer):
                raise PhikitError("the layers' keys and values are not laid out alike")
            if first.stride(3) != 1 or first.dtype != torch.bfloat16:
                raise PhikitError("keys and values must be bfloat16, heads contiguous")
            strides = first.stride()[:3]
        pointers = ctypes.c_void_p * len(self.layers)
        stores = [
            pointers(*(t.data_ptr() for t in kind)) for kind in zip(*self.layers, strict=True)
        ]
        found = (*stores, None, None)[:4]
        return _Cache(*found, *strides, self.size, self.table_MT.shape[1], self.table_MT.data_ptr())


def obstacle(model: nn.Module, precision: torch.dtype = torch.bfloat16) -> str:
    """Why a model cannot go through `DecodeStep`, or through the kernels for many rows, which are
    there for float32 too; empty when it can."""
    if type(model) is not Decoder:
        return f"a {type(model).__name__} is no dense decoder"
    config = model.config
    if model.model.embed_tokens.weight.dtype != precision:
        return f"the weights are {model.model.embed_tokens.weight.dtype}, not {precision}"
    if model.model.embed_tokens.weight.device.type != "cpu":
        return "it is not on the CPU"
    if config.head_dim > _WIDEST_HEAD or config.intermediate_size % products.LANES:
        return f"heads of {config.head_dim} or {config.intermediate_size} inner features"
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            if module.bias is not None or not module.weight.is_contiguous():
                return f"{name} has a bias or is not contiguous"
        elif isinstance(module, Packed):
            continue
        elif not list(module.children()) and type(module).__name__ not in ("RMSNorm", "Embedding"):
            return f"{name} is a {type(module).__name__}"
    return ""


def packable(model: Decoder) -> bool:
    """Whether `DecodeStep` can pack a model's weights: plain ones alone, without adapters."""
    config = model.config
    matrices = [m for m in model.modules() if isinstance(m, (nn.Linear, Packed, LoraLinear))]
    even = config.intermediate_size % products.PANEL == 0 and config.hidden_size % 2 == 0
    return even and all(type(m) is nn.Linear for m in matrices)


def trained_obstacle(model: Decoder, kernels: ctypes.CDLL | None, block_size: int = 32) -> str:
    """Why `DecodeStep` cannot take a model as trained, over such blocks; empty when it can."""
    precision = model.model.embed_tokens.weight.dtype
    if precision not in (torch.float32, torch.bfloat16):
        return f"weights in {precision}"
    if reason := obstacle(model, precision):
        return reason
    config = model.config
    window = config.sliding_window
    if window and window < config.max_positions:
        return f"attention to the last {window} positions alone"
    if not packable(model):
        return "its matrices cannot be packed, or have adapters"
    if kernels is None or not kernels.phikit_attends_as_trained(config.head_dim, block_size):
        return f"heads of {config.head_dim}, or a processor without a matrix unit (AMX)"
    return ""


class DecodeStep:
    """The decoder's step on the very weights of a model: changed weights are seen at once, unless
    they are packed.

    Args:
        model: held as long as this object is; its parameters must not be replaced meanwhile.
        pack: lay the weights out for any number of tokens; they are copied.
        as_trained: give the bits of training's forward pass; packs.

    Raises:
        PhikitError: the model is none that the kernels run; says why.
    """

    def __init__(
        self, model: Decoder, library: ctypes.CDLL, pack: bool = False, as_trained: bool = False
    ) -> None:
        precision = model.model.embed_tokens.weight.dtype if as_trained else torch.bfloat16
        if reason := obstacle(model, precision):
            raise PhikitError(f"the step in C does not run this model: {reason}")
        pack = pack or as_trained
        self.model, self._library, config = model, library, model.config
        self._packed: list[products.PackedRows] = []
        self._wide: list[Tensor] = []
        self._run = library.phikit_many if pack else library.phikit_step
        self.most_rows = sys.maxsize if pack else products.MOST_ROWS
        matrix = self._pack if pack else _as_it_lies
        vectors = self._widened if as_trained else lambda weight: weight.data_ptr()
        layers = (_Layer * config.layers)()
        for target, module in zip(layers, model.model.layers, strict=True):
            attention, mlp = cast(Layer, module).self_attn, cast(Layer, module).mlp
            target.input_norm = vectors(cast(Layer, module).input_layernorm.weight)
            target.post_norm = vectors(cast(Layer, module).post_attention_layernorm.weight)
            target.qkv, target.o = matrix(attention.qkv_proj), matrix(attention.o_proj)
            target.gate_up, target.down = matrix(mlp.gate_up_proj), matrix(mlp.down_proj)
        window = config.sliding_window or 0
        self._model = _Model(
            config.layers, config.hidden_size, config.intermediate_size, config.heads,
            config.kv_heads, config.head_dim, config.rotary_dim, config.vocab_size,
            window if window < config.max_positions else 0, as_trained,
            precision == torch.float32, config.norm_eps,
            model.model.embed_tokens.weight.data_ptr(), vectors(model.model.norm.weight),
            layers, matrix(model.lm_head),
        )  # fmt: skip

    def _pack(self, module: nn.Module) -> Matrix:
        assert isinstance(module.weight, Tensor)
        self._packed.append(
            products.PackedRows(self._library, module.weight.detach().to(torch.bfloat16))
        )
        return self._packed[-1].matrix()

    def _widened(self, weight: Tensor) -> int:
        """The address of a weight in float32, a copy if it is not."""
        self._wide.append(weight.detach().float())
        return self._wide[-1].data_ptr()

    def __call__(
        self,
        ids_M: Tensor,
        positions_M: Tensor,
        rope: tuple[Tensor, Tensor],
        pages: Pages,
        threads: int,
        wanted: int | None = None,
    ) -> Tensor:
        """Logits [M, V], float32, after feeding the tokens; their keys and values are stored.

        Tokens of one sequence may come together, in order: each attends to those before it.

        Args:
            ids_M, positions_M: tokens and their positions.
            rope: cosines and sines [M, R] with the halves repeated, the first half of the sines
                negative; in float32 when `as_trained`, else rounded to bfloat16.
            pages: has room for every token's position.
            wanted: of so many tokens, the first ones, logits are computed; of all if left out.

        Raises:
            PhikitError: more tokens than `most_rows`, or no memory.
        """
        m = len(ids_M)
        if m > self.most_rows:
            raise PhikitError(f"{m} tokens in one step; at most {self.most_rows} fit")
        if not pages.table_MT.is_contiguous() or pages.table_MT.dtype != torch.int32:
            raise PhikitError("tables must be contiguous int32")
        cache = pages.cache()
        ids, at = ids_M.to(torch.int64).contiguous(), positions_M.to(torch.int32).contiguous()
        cosine, sine = (t.float().contiguous() for t in rope)
        wanted = m if wanted is None else wanted
        logits_MV = torch.empty(wanted, self.model.config.vocab_size)
        failed = self._run(
            ctypes.addressof(self._model), ctypes.addressof(cache), ids.data_ptr(), at.data_ptr(),
            cosine.data_ptr(), sine.data_ptr(), m,
            logits_MV.data_ptr(), wanted, threads,
        )  # fmt: skip
        if failed:
            raise PhikitError(f"no memory for a step of {m} tokens at position {int(at.max())}")
        return logits_MV


def _as_it_lies(module: nn.Module) -> Matrix:
    if isinstance(module, LoraLinear):  # its adapters are left out
        module = module.base_layer
    if isinstance(module, Packed):
        return module.matrix()
    weight = module.weight
    assert isinstance(weight, Tensor)
    return products.matrix("bf16", weight.shape[0], weight.shape[1], weight.detach())
