"""The C kernels between the products of training, for this processor, in plain C, and without."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from phikit.compiled import Compiler
from phikit.errors import PhikitError
from phikit.models.decoder import RMSNorm
from phikit.train import fast, logits
from phikit.train.native import build, passes


def kernels_of(kind: str):
    if kind == "torch":
        return None
    try:
        return build.open_library(Compiler(portable=kind == "portable"))
    except PhikitError:
        pytest.skip("needs a C compiler")


@pytest.fixture(scope="module", params=["native", "portable", "torch"])
def kernels(request: pytest.FixtureRequest):
    """The kernels, or None: torch's own operations."""
    held = kernels_of(request.param)
    with pytest.MonkeyPatch.context() as patch:
        for module in (passes, logits):
            patch.setattr(module, "library", lambda: held)
        yield held


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def near(got: Tensor, want: Tensor, bound: float = 4e-3) -> None:
    """As near as rounding to bfloat16 allows: 2⁻⁹ of each number."""
    assert (got.double() - want.double()).norm() <= bound * want.double().norm()


@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 150), width=st.sampled_from([16, 96, 576]), delta=st.booleans(),
    threads=st.integers(1, 2),
)  # fmt: skip
def test_sum_and_norm(kernels, rows: int, width: int, delta: bool, threads: int) -> None:
    before = torch.get_num_threads()
    x = randn(2, rows, width).requires_grad_()
    d = randn(2, rows, width, seed=1).bfloat16().requires_grad_() if delta else None
    norm = RMSNorm(width, 1e-5)
    nn.init.normal_(norm.weight, 1.0)
    ups = randn(2, rows, width, seed=2), randn(2, rows, width, seed=3).bfloat16()
    inputs = [t for t in (x, d, norm.weight) if t is not None]
    torch.set_num_threads(threads)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            got = fast.add_norm(x, d, norm)
        got_grads = torch.autograd.grad(got, inputs, ups)
    finally:
        torch.set_num_threads(before)
    wide = [t.detach().double().requires_grad_() for t in inputs]
    total = wide[0] + wide[1] if delta else wide[0]
    want = total, F.rms_norm(total, (width,), wide[-1], 1e-5)
    assert got[1].dtype == torch.bfloat16
    near(got[0], want[0], 1e-6)
    near(got[1], want[1])
    want_grads = torch.autograd.grad(want, wide, [u.double() for u in ups])
    for g, w, like in zip(got_grads, want_grads, inputs, strict=True):
        near(g, w, 4e-3 if like.dtype == torch.bfloat16 else 1e-5)


@settings(max_examples=10, deadline=None)
@given(rows=st.integers(1, 60), inner=st.sampled_from([8, 96, 384]))
def test_swiglu(kernels, rows: int, inner: int) -> None:
    x = (randn(2, rows, 2 * inner) * 3).bfloat16()
    x[0, 0, 0], x[0, 0, 1] = 200.0, -200.0  # far out, where the exponential ends
    x.requires_grad_()
    up = randn(2, rows, inner, seed=1).bfloat16()
    got = fast.swiglu(x)
    (got_grad,) = torch.autograd.grad(got, x, up)
    wide = x.detach().double().requires_grad_()
    gate, value = wide.chunk(2, dim=-1)
    want = F.silu(gate) * value
    (want_grad,) = torch.autograd.grad(want, wide, up.double())
    near(got, want, 6e-3)
    near(got_grad, want_grad, 6e-3)


@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 40), vocabulary=st.sampled_from([40, 1000]),
    temperature=st.sampled_from([1.0, 0.7]), everywhere=st.sampled_from([0.0, -1e-3]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]), seed=st.integers(0, 9),
)  # fmt: skip
def test_logits(
    kernels, rows: int, vocabulary: int, temperature: float, everywhere: float, dtype, seed: int
) -> None:
    given_CV = (randn(rows, vocabulary, seed=seed) * 4).to(dtype)
    targets = torch.randint(vocabulary, (rows,), generator=torch.Generator().manual_seed(seed))
    y = given_CV.double() / temperature
    log_p = y.log_softmax(1)
    got = logits.sums(given_CV, targets, temperature)
    want = (y.logsumexp(1), y.gather(1, targets[:, None])[:, 0], (log_p.exp() * y).sum(1), y.sum(1))
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g.double(), w, rtol=1e-5, atol=1e-3 if w is want[3] else 1e-5)
    a, c, there = randn(3, rows, seed=seed + 1)
    slopes = given_CV if dtype == torch.bfloat16 else given_CV.bfloat16()
    logits.write_slopes(
        given_CV, slopes, targets, temperature, got.log_z_C, a, there, c, everywhere
    )
    expected = log_p.exp() * (a[:, None] + c[:, None] * log_p) + everywhere
    expected.scatter_add_(1, targets[:, None], there[:, None].double())
    near(slopes, expected / temperature)


def test_what_is_no_number_stays_so(kernels) -> None:
    """A broken weight shows in the loss, which the loop looks at."""
    x = randn(1, 4, 32)
    x[0, 1, 5] = float("nan")
    with torch.autocast("cpu", torch.bfloat16):
        total, out = fast.add_norm(x, None, RMSNorm(32, 1e-5))
    assert out[0, 1].isnan().all() and not out[0, [0, 2, 3]].isnan().any()
    assert fast.swiglu(x.bfloat16())[0, 1].isnan().any()
    found = logits.sums(x[0].bfloat16(), torch.zeros(4, dtype=torch.int64), 1.0)
    assert found.log_z_C.isnan().tolist() == [False, True, False, False]
    assert total.isnan().sum() == 1
