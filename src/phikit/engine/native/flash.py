"""A step of phi-4-mini-flash with the C kernels: attention, scan and products each in one pass.

Shapes: N rows, D model width, I Mamba's channels, S states, C taps of the convolution less one,
J blocks of a row's table, V vocabulary.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phikit.engine.native import products
from phikit.errors import PhikitError
from phikit.models.flash.config import Kind
from phikit.models.flash.layers import GMU, MLP, Attention, Mamba
from phikit.models.flash.model import Flash
from phikit.models.flash.state import Slots

_WIDEST_HEAD = 256  # of differ.c


class _DifferShape(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in (
            "kv_heads", "repeats", "head_dim", "block_size", "table_width", "cross")),
        ("lambda_", ctypes.c_float), ("eps", ctypes.c_float),
    )  # fmt: skip


class _MambaShape(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("inner", "states", "taps")),
        ("tail_slot", ctypes.c_int64), ("state_slot", ctypes.c_int64),
    )  # fmt: skip


class Blocks(NamedTuple):
    """Keys and values in blocks, and each row's place in them.

    Attributes:
        stores: keys [blocks, E, positions, K] and values [blocks, P, positions, V]; or in 8 bits
            the four stores of `flash_pool.FlashPool8`.
        size: positions of a block.
        table_NJ: int32; length_N: int32, the positions that are attended to; put_N: int32, where
            the new one goes.
    """

    stores: tuple[Tensor, ...]
    size: int
    table_NJ: Tensor
    length_N: Tensor
    put_N: Tensor


def obstacle(model: Flash) -> str:
    """Why a model cannot go through `FlashStep`; empty when it can."""
    embedding = model.model.embed_tokens.weight
    if embedding.dtype != torch.bfloat16 or embedding.device.type != "cpu":
        return f"the weights are {embedding.dtype} on {embedding.device}, not bfloat16 on the CPU"
    if model.config.head_dim > _WIDEST_HEAD:
        return f"heads of {model.config.head_dim}"
    return ""


class _Scan:
    """One Mamba layer's small weights, as the kernels take them."""

    def __init__(self, library: ctypes.CDLL, mamba: Mamba) -> None:
        self._library, self.mamba = library, mamba
        taps_IW, bias_I = mamba.conv1d.weight.squeeze(1), mamba.conv1d.bias
        assert bias_I is not None
        small = (taps_IW.t(), bias_I, mamba.rates(), mamba.D, mamba.dt_proj.bias)
        self._held = [t.detach().float().contiguous() for t in small]
        pointers = [t.data_ptr() for t in self._held]
        self._taps, self._rates = _pointers(pointers[:2]), _pointers(pointers[2:])

    def __call__(
        self, x_ND: Tensor, slot_N: Tensor, conv: Tensor, ssm: Tensor, threads: int
    ) -> tuple[Tensor, Tensor]:
        """What goes to the output projection, and the memory: each [N, I]."""
        mamba, n = self.mamba, len(x_ND)
        shape = _MambaShape(
            conv.shape[2], ssm.shape[1], mamba.taps, conv.stride(0), ssm.stride(0)
        )  # fmt: skip
        both = product(self._library, mamba.in_proj, x_ND)
        conv_NI = both.new_empty(n, shape.inner)
        self._library.phikit_mamba_convolve(
            ctypes.addressof(shape), slot_N.data_ptr(), conv.data_ptr(), both.data_ptr(),
            self._taps, conv_NI.data_ptr(), n, threads,
        )  # fmt: skip
        rest = product(self._library, mamba.x_proj, conv_NI)
        rank = mamba.sizes[0]
        delta_NI = weighed(self._library, mamba.dt_proj.weight, rest[:, :rank])
        memory_NI, out_NI = torch.empty_like(conv_NI), torch.empty_like(conv_NI)
        inputs = [t.data_ptr() for t in (conv_NI, delta_NI, rest[:, rank:])]
        self._library.phikit_mamba_scan(
            ctypes.addressof(shape), slot_N.data_ptr(), ssm.data_ptr(), both.data_ptr(),
            _pointers(inputs), rest.shape[1], self._rates,
            _pointers([memory_NI.data_ptr(), out_NI.data_ptr()]), n, threads,
        )  # fmt: skip
        return out_NI, memory_NI


class _Attend:
    """One attention layer's small weights."""

    def __init__(self, library: ctypes.CDLL, attention: Attention) -> None:
        self._library, self.attention = library, attention
        part = attention.inner_cross_attn
        first = torch.exp((part.lambda_q1 * part.lambda_k1).sum())
        second = torch.exp((part.lambda_q2 * part.lambda_k2).sum())
        self._weight = float(first - second + part.initial)
        self._norm = (part.subln.weight.float() * (1 - part.initial)).contiguous()
        self._eps = float(part.subln.eps or 0.0)

    def __call__(self, x_ND: Tensor, where: Blocks, threads: int) -> Tensor:
        """[N, D], after the norm of the pairs, before the output projection."""
        attention = self.attention
        rest = product(self._library, attention.Wqkv, x_ND)
        e, k, n = attention.kv_heads, attention.head_dim, len(x_ND)
        width = rest.shape[1] - (0 if attention.cross else 2 * e * k)
        shape = _DifferShape(
            e, width // (e * k), k, where.size, where.table_NJ.shape[1], attention.cross,
            self._weight, self._eps,
        )  # fmt: skip
        out = rest.new_empty(n, width)
        library = self._library
        attend = (
            library.phikit_differ_rows_8 if len(where.stores) > 2 else library.phikit_differ_rows
        )
        attend(
            ctypes.addressof(shape), _pointers([t.data_ptr() for t in where.stores]),
            _pointers([t.data_ptr() for t in (where.table_NJ, where.length_N, where.put_N)]),
            rest.data_ptr(), self._norm.data_ptr(), out.data_ptr(), n, threads,
        )  # fmt: skip
        return out


class FlashStep:
    """The model's step on its very weights; the small ones are copied when this is made.

    Raises:
        PhikitError: the model is none that the kernels run; says why.
    """

    @torch.no_grad()
    def __init__(self, model: Flash, library: ctypes.CDLL) -> None:
        if reason := obstacle(model):
            raise PhikitError(f"the step in C does not run this model: {reason}")
        self.model, self._library = model, library
        self._mixers: list[_Scan | _Attend | None] = []
        for layer in model.layers():
            made: _Scan | _Attend | None = None
            if isinstance(layer.attn, Mamba):
                made = _Scan(library, layer.attn)
            elif isinstance(layer.attn, Attention):
                made = _Attend(library, layer.attn)
            self._mixers.append(made)

    def __call__(
        self, token_N: Tensor, position_N: Tensor, slot_N: Tensor, slots: Slots, full: Blocks
    ) -> Tensor:
        """Logits [N, V] after feeding one token to each of the rows; slots and blocks move on."""
        model, config, threads = self.model, self.model.config, torch.get_num_threads()
        slot_N, position_N = slot_N.to(torch.int32), position_N.to(torch.int32)
        window = config.sliding_window
        held_N, put_N = (position_N + 1).clamp(max=window), position_N % window
        x_ND, add_ND = model.model.embed_tokens(token_N).float(), None
        memory_NI = x_ND
        for index, (layer, mixer) in enumerate(zip(model.layers(), self._mixers, strict=True)):
            inner_ND, at = self._norm(x_ND, add_ND, layer.input_layernorm), index // 2
            if isinstance(mixer, _Scan):
                out, memory_NI = mixer(inner_ND, slot_N, slots.conv[at], slots.ssm[at], threads)
            elif isinstance(mixer, _Attend):
                where = full
                if layer.kind is Kind.WINDOW:
                    rings = (slots.k[at], slots.v[at])
                    where = Blocks(rings, window, slot_N[:, None], held_N, put_N)
                out = mixer(inner_ND, where, threads)
            else:
                assert isinstance(layer.attn, GMU)
                out = memory_NI * F.silu(product(self._library, layer.attn.in_proj, inner_ND))
            mixed_ND = product(self._library, layer.attn.out_proj, out)
            inner_ND = self._norm(x_ND, mixed_ND, layer.post_attention_layernorm)
            add_ND = self._mlp(layer.mlp, inner_ND)
        last_ND = self._norm(x_ND, add_ND, model.model.final_layernorm)
        few = type(model.lm_head) is nn.Linear and len(last_ND) <= products.MOST_ROWS
        # from float32 to float32: logits are not rounded
        return product(self._library, model.lm_head, last_ND.float() if few else last_ND)

    def _norm(self, x_ND: Tensor, add_ND: Tensor | None, norm: nn.LayerNorm) -> Tensor:
        """Adds to x in place, and returns the norm of it in bfloat16."""
        n, d = x_ND.shape
        out_ND = torch.empty(n, d, dtype=torch.bfloat16)
        self._library.phikit_layer_norm_rows(
            x_ND.data_ptr(), None if add_ND is None else add_ND.data_ptr(),
            norm.weight.data_ptr(), norm.bias.data_ptr(), out_ND.data_ptr(), n, d, norm.eps,
        )  # fmt: skip
        return out_ND

    def _mlp(self, mlp: MLP, x_ND: Tensor) -> Tensor:
        """`MLP.forward`, the gate in one pass."""
        both = product(self._library, mlp.fc1, x_ND)
        n, f = both.shape[0], both.shape[1] // 2
        gated_NF = both.new_empty(n, f)
        self._library.phikit_gate_rows(
            both.data_ptr(), gated_NF.data_ptr(), n, f, torch.get_num_threads()
        )  # fmt: skip
        return product(self._library, mlp.fc2, gated_NF)


def weighed(library: ctypes.CDLL, weight_OI: Tensor, x_NI: Tensor) -> Tensor:
    """x · wᵀ in x's precision."""
    if len(x_NI) > products.MOST_ROWS or not weight_OI.is_contiguous():
        return F.linear(x_NI, weight_OI)
    matrix = products.matrix("bf16", weight_OI.shape[0], weight_OI.shape[1], weight_OI.detach())
    return products.linear(library, matrix, x_NI, torch.get_num_threads())


def product(library: ctypes.CDLL, module: nn.Module, x_NK: Tensor) -> Tensor:
    """The module's product, contiguous; a plain matrix by the kernel for few rows."""
    if type(module) is not nn.Linear or len(x_NK) > products.MOST_ROWS:
        made: Tensor = module(x_NK)
        return made
    if module.bias is None:
        return weighed(library, module.weight, x_NK)
    # rounded once, after the bias
    wide = weighed(library, module.weight, x_NK.float())
    return (wide + module.bias).to(x_NK.dtype)


def _pointers(addresses: list[int]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(addresses))(*addresses)
