"""The C kernels against float64, compiled for this processor and in plain C; and without them."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from phikit.compiled import Compiler, compiled
from phikit.engine.native import build, products
from phikit.engine.quant.linear import FEW_ROWS, QuantLinear
from phikit.engine.quant.packing import (
    Scheme,
    dequantise,
    pack,
    quantise,
    unpack_integers,
    unpack_scales,
)
from phikit.errors import PhikitError

SCHEMES = [Scheme("int4", 32), Scheme("int4", 64), Scheme("int4", 128),
           Scheme("int8", 0), Scheme("int8", 32), Scheme("int8", 128)]  # fmt: skip
MISSING = Compiler(program="there-is-no-such-compiler")


@pytest.fixture(scope="session", params=[False, True], ids=["native", "portable"])
def kernels(request: pytest.FixtureRequest):
    return build.open_library(Compiler(portable=request.param))


def weights(n: int, k: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed)) * 0.05


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("m", [1, 2, 5, 6, 11, 16])
def test_a_row_is_the_same_with_others_and_without_a_matrix_unit(scheme: Scheme, m: int) -> None:
    """Integer sums are exact and used in one order, so every bit is the same."""
    layer, x = QuantLinear.of(weights(80, 256), scheme), weights(m, 256, 1) * 20
    native, plain = (build.open_library(Compiler(tiles=tiles)) for tiles in (True, False))
    together = products.linear(native, layer.matrix(), x, 1)
    alone = [products.linear(native, layer.matrix(), x[i : i + 1], 1) for i in range(m)]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(together, products.linear(plain, layer.matrix(), x, 2))


@settings(max_examples=25, deadline=None)
@given(
    scheme=st.sampled_from(SCHEMES),
    n=st.integers(1, 70),
    columns=st.integers(1, 4),
    m=st.integers(1, products.MOST_ROWS),
    wide=st.booleans(),
    scale=st.sampled_from([1e-3, 1.0, 300.0]),
    threads=st.integers(1, 3),
)
def test_packed_products(kernels, scheme, n, columns, m, wide, scale, threads) -> None:
    k = columns * 128
    q_NK, scale_NS = quantise(weights(n, k), scheme)
    data, scales = pack(q_NK, scale_NS, scheme.kind)
    matrix = products.matrix(scheme.kind, n, k, data, scales, scheme.activation_group(k))
    x = weights(m, k, seed=1) * scale
    x = x if wide else x.to(torch.bfloat16)
    y = products.linear(kernels, matrix, x, threads)
    assert y.dtype == x.dtype
    w = dequantise(q_NK, scale_NS).double()
    exact = x.double() @ w.T
    # activations have 16 bits of their group's range; the result is rounded to its type
    size = x.double().abs() @ w.abs().T
    bound = (2**-14 * size) + (0 if wide else 2**-8) * exact.abs() + 1e-12
    assert ((y.double() - exact).abs() <= bound).all()
    assert torch.equal(products.linear(kernels, matrix, x[:1], 1), y[:1])


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("rows", [1, 5, 20])
@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_so(kernels, scheme: Scheme, rows: int, odd: float) -> None:
    """In its own row; and what is next to nothing, or nothing, is no trouble."""
    layer, x = QuantLinear.of(weights(40, 256), scheme), weights(rows, 256, 1)
    plain = products.linear(kernels, layer.matrix(), x, 1)
    x[0, 70] = odd
    y = products.linear(kernels, layer.matrix(), x, 1)
    assert not y[0].isfinite().any()
    assert torch.equal(y[1:], plain[1:])
    for tiny in (0.0, 1e-38, 1e-42):
        nothing = products.linear(kernels, layer.matrix(), torch.full((rows, 256), tiny), 1)
        assert (nothing == 0).all()


@settings(max_examples=15, deadline=None)
@given(n=st.integers(1, 50), k=st.integers(1, 200), m=st.integers(1, products.MOST_ROWS))
def test_bf16_products(kernels, n, k, m) -> None:
    w, x = weights(n, k).to(torch.bfloat16), weights(m, k, 1).to(torch.bfloat16)
    y = products.linear(kernels, products.matrix("bf16", n, k, w), x.float(), 2)
    size = x.double().abs() @ w.double().abs().T
    assert ((y.double() - x.double() @ w.double().T).abs() <= 1e-6 * size + 1e-12).all()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_packing_and_unpacking(kernels, scheme: Scheme) -> None:
    n, k = 37, 384
    q_NK, scale_NS = quantise(weights(n, k), scheme)
    data, scales = pack(q_NK, scale_NS, scheme.kind)
    assert torch.equal(unpack_integers(data, scheme.kind, n), q_NK)
    assert torch.equal(unpack_scales(scales, n), scale_NS)
    matrix = products.matrix(scheme.kind, n, k, data, scales, scheme.activation_group(k))
    dense = dequantise(q_NK, scale_NS).to(torch.bfloat16)
    assert torch.equal(products.unpack(kernels, matrix, 2).T, dense)


@pytest.mark.parametrize(("scheme", "most"), [(SCHEMES[0], 0.09), (SCHEMES[2], 0.11),
                                              (SCHEMES[3], 0.009), (SCHEMES[4], 0.0065)],
                         ids=str)  # fmt: skip
def test_rounding_errors(scheme: Scheme, most: float) -> None:
    """Of normal weights: relative to their size, and no weight by more than its step."""
    w = weights(64, 1024)
    q, scale = quantise(w, scheme)
    error = dequantise(q, scale) - w
    assert error.norm() / w.norm() < most
    step = scale.float().abs().repeat_interleave(w.shape[1] // scale.shape[1], dim=1)
    inside = q.abs() < (127 if scheme.kind == "int8" else 7)
    assert (error.abs()[inside] <= 0.501 * step[inside]).all()


def test_weights_of_zero_and_a_row_of_extremes() -> None:
    w = torch.zeros(16, 64)
    w[3, :32] = torch.tensor([-1.0, 1.0]).repeat(16)
    for scheme in (Scheme("int4", 32), Scheme("int8", 0)):
        restored = dequantise(*quantise(w, scheme))
        assert torch.isfinite(restored).all()
        assert (restored[3, :32] - w[3, :32]).abs().max() < 0.15
        assert not restored[4].any()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("rows", [1, 5, FEW_ROWS, FEW_ROWS + 9])
@pytest.mark.parametrize("compiler", [Compiler(), MISSING], ids=["kernels", "torch"])
def test_the_layer_with_and_without_a_compiler(
    scheme: Scheme, rows: int, compiler: Compiler
) -> None:
    layer = QuantLinear.of(weights(48, 384), scheme)
    layer.compiler = compiler
    x = weights(2 * rows, 384, 1).view(2, rows, 384)[:1].to(torch.bfloat16)
    exact = x.double() @ layer.dense().double().T
    y = layer(x)
    assert y.shape == (1, rows, 48) and y.dtype == torch.bfloat16
    assert (y.double() - exact).norm() / exact.norm() < 0.006


def test_no_compiler_is_said_once_and_plainly(caplog: pytest.LogCaptureFixture) -> None:
    broken = Compiler(program="no-such-compiler-either")
    for _ in range(3):
        assert build.library(broken) is None
    said = [r.message for r in caplog.records if "no-such-compiler-either" in r.message]
    assert len(said) == 1 and "torch's kernels" in said[0]


def test_a_compiler_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(PhikitError, match="cannot compile"):
        build.open_library(Compiler(program="false", folder=tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_library_is_compiled_once(tmp_path: Path) -> None:
    compiler = Compiler(folder=tmp_path, portable=True)
    made = compiled(build.SOURCES, compiler)
    stamp = made.stat().st_mtime_ns
    assert compiled(build.SOURCES, compiler) == made and made.stat().st_mtime_ns == stamp
    assert list(tmp_path.iterdir()) == [made]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(PhikitError, match="do not divide"):
        QuantLinear(100, 16, Scheme("int4", 32))
    with pytest.raises(PhikitError, match="groups of 48"):
        Scheme("int4", 48)
    with pytest.raises(PhikitError, match="int8, int4"):
        Scheme("int2", 32)
    layer = QuantLinear(128, 16, Scheme())
    with pytest.raises(PhikitError, match="packed data"):
        layer.take(layer.data[:, :1], layer.scales)
    with pytest.raises(PhikitError, match="no layer nowhere"):
        QuantLinear.like(nn.Sequential(), "nowhere", Scheme(), "here")


@pytest.mark.parametrize(("n", "k", "m"), [(64, 32, 6), (97, 66, 13), (1, 2, 1), (130, 576, 5)])
def test_packed_rows_are_not_rounded(kernels, n: int, k: int, m: int) -> None:
    w, x = weights(n, k).to(torch.bfloat16), weights(m, k, 1).to(torch.bfloat16)
    product = products.PackedRows(kernels, w)
    y = product(x)
    exact = x.double() @ w.double().T
    assert y.dtype == torch.float32 and (y - exact).abs().max() < 1e-5 * exact.abs().max()
    assert torch.equal(torch.cat([product(row) for row in x.split(1)]), y)


def test_what_cannot_be_packed_is_said(kernels) -> None:
    with pytest.raises(PhikitError, match=r"\[4, 3\].*cannot be packed"):
        products.PackedRows(kernels, torch.zeros(4, 3, dtype=torch.bfloat16))
    packed = products.PackedRows(kernels, torch.zeros(4, 2, dtype=torch.bfloat16))
    with pytest.raises(PhikitError, match="does not fit"):
        packed(torch.zeros(1, 4, dtype=torch.bfloat16))
