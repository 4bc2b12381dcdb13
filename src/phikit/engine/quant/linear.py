"""A linear layer whose weights are packed in 8 or 4 bits.

Shapes: M rows of activations, N output features, K input features, S scales per row.

A few rows go through a kernel that reads the packed weights once; many rows are worth unpacking the
weights to bfloat16 for one dense product. On other devices than the CPU the weights are unpacked by
torch for every product, which saves their memory and no time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phikit.engine.native import products
from phikit.engine.native.build import Compiler, Matrix, library
from phikit.engine.quant.packing import (
    LANES,
    Scheme,
    dequantise,
    pack,
    quantise,
    unpack_integers,
    unpack_scales,
)
from phikit.errors import PhikitError

#: From more rows than this on, the weights are unpacked once. Measured in turns, two threads,
#: unpacking took this many times the kernel's time: with a matrix unit at 64, 96 and 128 rows from
#: 576 to 1536 features int4 1.5, 1.2, 1.0 and int8 1.7, 1.3, 1.1, and more from 3072 to 8192; on
#: two busy Zen 4 cores at 64 and 128 rows 1.1, 0.8 and 1.05, 0.8, from 3072 to 8192 3.8, 2.3 and
#: 1.4, 1.05.
FEW_ROWS = 96


class QuantLinear(nn.Module):
    """x · wᵀ, and a bias if there is one; for inference: no gradient reaches the weights.

    Attributes:
        data, scales: the packed weights (see `packing`), with the bias the only things saved.
        compiler: makes the kernels; where it cannot, torch's kernels serve.
    """

    def __init__(self, in_features: int, out_features: int, scheme: Scheme) -> None:
        super().__init__()
        if not scheme.fits(in_features):
            raise PhikitError(
                f"{in_features} input features do not divide into groups of {scheme.group or 32}",
                "choose a smaller group",
            )
        self.in_features, self.out_features, self.scheme = in_features, out_features, scheme
        self.compiler = Compiler()
        self.data: Tensor
        self.scales: Tensor
        shapes = self.packed_shapes(in_features, out_features, scheme)
        for name, (shape, dtype) in zip(("data", "scales"), shapes, strict=True):
            self.register_buffer(name, torch.zeros(shape, dtype=dtype))
        self.bias: nn.Parameter | None = None
        self._torch_form: tuple[Tensor, Tensor] | None = None

    @staticmethod
    def packed_shapes(
        in_features: int, out_features: int, scheme: Scheme
    ) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
        """Shape and type of `data` and of `scales`."""
        units, word = -(-out_features // LANES), 8 if scheme.kind == "int4" else 4
        scales = (units, scheme.scale_groups(in_features), LANES)
        return ((units, in_features // word, LANES, 4), torch.uint8), (scales, torch.bfloat16)

    @classmethod
    def of(
        cls, weight_NK: Tensor, scheme: Scheme, quantised: tuple[Tensor, Tensor] | None = None
    ) -> QuantLinear:
        """The layer of a dense matrix, rounded to nearest unless integers and scales are given."""
        n, k = weight_NK.shape
        with torch.device("meta"):
            layer = cls(k, n, scheme)
        q_NK, scale_NS = quantised if quantised is not None else quantise(weight_NK, scheme)
        layer.take(*pack(q_NK, scale_NS, scheme.kind))
        return layer

    @classmethod
    def like(cls, model: nn.Module, name: str, scheme: Scheme, where: str) -> QuantLinear:
        """Puts a layer without memory in the place of a model's linear layer, whose bias it takes
        over, and returns it.

        Raises:
            PhikitError: there is no linear layer of that name.
        """
        owner, _, leaf = name.rpartition(".")
        try:
            parent = model.get_submodule(owner)
            old = getattr(parent, leaf)
        except AttributeError as e:
            raise PhikitError(f"{where}: the model has no layer {name}") from e
        if not isinstance(old, nn.Linear):
            raise PhikitError(f"{where}: {name} is a {type(old).__name__}, not linear")
        with torch.device("meta"):
            layer = cls(old.in_features, old.out_features, scheme)
        if old.bias is not None:
            layer.bias = nn.Parameter(old.bias.detach(), requires_grad=False)
        setattr(parent, leaf, layer)
        return layer

    def take(self, data: Tensor, scales: Tensor) -> None:
        """Uses these packed weights, without copying them.

        Raises:
            PhikitError: they have other shapes or types.
        """
        for name, mine, given in (("data", self.data, data), ("scales", self.scales, scales)):
            if mine.shape != given.shape or mine.dtype != given.dtype:
                raise PhikitError(
                    f"packed {name} {tuple(given.shape)} {given.dtype}, not "
                    f"{tuple(mine.shape)} {mine.dtype}"
                )
        self.data, self.scales, self._torch_form = data, scales, None

    def matrix(self) -> Matrix:
        """What the C kernels take; valid as long as the layer's tensors are."""
        return products.matrix(
            self.scheme.kind, self.out_features, self.in_features, self.data, self.scales,
            self.scheme.activation_group(self.in_features),
        )  # fmt: skip

    def dense(self) -> Tensor:
        """The weights in bfloat16: [N, K]."""
        q_NK = unpack_integers(self.data, self.scheme.kind, self.out_features)
        scale_NS = unpack_scales(self.scales, self.out_features)
        return dequantise(q_NK, scale_NS).to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        y_MN = self._product(x.reshape(-1, self.in_features))
        if self.bias is not None:
            y_MN = y_MN + self.bias
        return y_MN.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        group = self.scheme.group or "whole rows"
        return f"{self.in_features}, {self.out_features}, {self.scheme.kind}, groups of {group}"

    def _product(self, x_MK: Tensor) -> Tensor:
        if x_MK.device.type != "cpu" or x_MK.dtype not in (torch.bfloat16, torch.float32):
            return F.linear(x_MK, self.dense().to(x_MK.dtype))
        kernels, threads, rows = library(self.compiler), torch.get_num_threads(), x_MK.shape[0]
        if kernels is None:
            return self._by_torch(x_MK)
        if rows > FEW_ROWS:
            return x_MK @ products.unpack(kernels, self.matrix(), threads).to(x_MK.dtype)
        return products.linear(kernels, self.matrix(), x_MK, threads)

    # --- without a compiler ----------------------------------------------------------------------

    def _by_torch(self, x_MK: Tensor) -> Tensor:
        """torch's packed kernels, which want an order of their own; it is kept beside ours.

        They have none for 8 bits in groups: those weights are unpacked every time.
        """
        narrow = x_MK.to(torch.bfloat16)
        grouped = self.scheme.kind == "int8" and self.scheme.group != 0
        if x_MK.shape[0] > FEW_ROWS or grouped or self.out_features % LANES:
            return F.linear(narrow, self.dense()).to(x_MK.dtype)
        if self._torch_form is None:
            self._torch_form = self._reordered()
        weights, scales = self._torch_form
        if self.scheme.kind == "int8":
            return torch._weight_int8pack_mm(narrow, weights, scales).to(x_MK.dtype)
        y_MN = torch.ops.aten._weight_int4pack_mm_for_cpu(
            narrow, weights, self.scheme.group, scales
        )
        return y_MN.to(x_MK.dtype)

    def _reordered(self) -> tuple[Tensor, Tensor]:
        q_NK = unpack_integers(self.data, self.scheme.kind, self.out_features)
        scale_NS = unpack_scales(self.scales, self.out_features)
        if self.scheme.kind == "int8":
            return q_NK.contiguous(), scale_NS[:, 0].contiguous()
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q_NK.to(torch.int32) + 8, 1)
        # (scale, zero) pairs, groups first; the zero is that of an offset of 8
        pairs_SN2 = torch.stack((scale_NS.T, torch.zeros_like(scale_NS.T)), dim=-1)
        return packed, pairs_SN2.contiguous()
