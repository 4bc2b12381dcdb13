"""Linear layers in the matrix unit, and gradients that are added up where they lie."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from phikit.models.decoder import Decoder
from phikit.models.decoder_config import DecoderConfig
from phikit.models.lora import LoraLinear
from phikit.train import losses
from phikit.train.attention import confined
from phikit.train.fast import embedding, fast_layers
from phikit.train.gradients import added_up
from phikit.train.held import weights_held
from phikit.train.native import products
from phikit.train.native.build import library

in_tiles = pytest.mark.skipif(
    library() is None or not library().phikit_products_run(), reason="needs a matrix unit (AMX)"
)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layer_of(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=False)
    layer.weight = nn.Parameter(randn(outputs, inputs, seed=1))
    return layer


def near(got: Tensor, want: Tensor, bound: float) -> None:
    assert (got.double() - want).norm() <= bound * want.norm()


@in_tiles
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 200), inputs=st.sampled_from([32, 96, 576, 1536]),
    outputs=st.sampled_from([32, 64, 960, 2112]), count=st.integers(1, 2), wide=st.booleans(),
)  # fmt: skip
def test_products_and_gradients_are_those_of_float64(rows, inputs, outputs, count, wide) -> None:
    layer = layer_of(inputs, outputs)
    x = randn(2, rows, 2 * inputs).bfloat16()
    x = x[..., ::2] if wide else x[..., :inputs].clone()  # whatever way it lies
    x = x.detach().requires_grad_()
    up = randn(2, rows, outputs, seed=2).bfloat16()
    with threads(count):
        got = products.NativeLinear.apply(x, layer.weight)
        d_x, d_weight = torch.autograd.grad(got, [x, layer.weight], up)
    x64 = x.detach().double().requires_grad_()
    w64 = layer.weight.detach().bfloat16().double().requires_grad_()
    want = x64 @ w64.T
    want_x, want_weight = torch.autograd.grad(want, [x64, w64], up.double())
    assert got.dtype == d_x.dtype == torch.bfloat16 and d_weight.dtype == torch.float32
    near(got, want.detach(), 2e-3)  # rounded once, to 2⁻⁹ of a number
    near(d_x, want_x, 2e-3)
    near(d_weight, want_weight, 1e-5)  # not rounded


@in_tiles
@settings(max_examples=20, deadline=None)
@given(first=st.integers(0, 60), count=st.integers(1, 60))
def test_a_row_is_the_same_whatever_goes_with_it(first: int, count: int) -> None:
    layer, x = layer_of(576, 960), randn(120, 576).bfloat16()
    with threads(2):
        whole = products.linear(layer, x)
    with threads(1):
        part = products.linear(layer, x[first : first + count])
    assert torch.equal(part, whole[first : first + count])


@in_tiles
def test_only_plain_and_wide_layers_of_whole_tiles_go_through_it() -> None:
    x = randn(4, 256).bfloat16()
    hooked, called = layer_of(256, 256), []
    hooked.register_forward_hook(lambda *_: called.append(1))
    others = (
        hooked, nn.Linear(256, 256), LoraLinear(layer_of(256, 256)), layer_of(256, 264),
        layer_of(256, 224),
    )  # fmt: skip
    with torch.autocast("cpu", torch.bfloat16):
        for other in others:
            torch.testing.assert_close(products.linear(other, x), other(x))
    assert len(called) == 2
    assert not any(products.linear_runs(other, x) for other in others)
    assert products.linear_runs(layer_of(256, 256), x)
    assert not products.linear_runs(layer_of(256, 256), x.float())


CONFIG = DecoderConfig(
    vocab_size=96, hidden_size=256, intermediate_size=288, layers=2, heads=4, kv_heads=2,
    head_dim=64, max_positions=64, tied=True,
)  # fmt: skip


def summed(hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor) -> Tensor:
    return losses.cross_entropy(hidden_ND, head_VD, targets_N).loss


def by_token(hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor) -> Tensor:
    found = losses.token_logprobs(hidden_ND, head_VD, targets_N)
    return -(found.logprobs_N + 0.1 * found.entropy_N).sum()


def gradients(
    model: Decoder, in_place: bool, told: float = 0.25, loss: Any = summed
) -> list[Tensor]:
    """Of two microbatches whose losses count a quarter."""
    model.zero_grad()
    for seed in (0, 1):
        ids = torch.randint(96, (2, 24), generator=torch.Generator().manual_seed(seed))
        with (
            torch.autocast("cpu", torch.bfloat16), fast_layers(model), weights_held(),
            added_up(told, in_place),
        ):  # fmt: skip
            hidden = model.hidden(ids, attend=confined(torch.ones_like(ids)))
            found = loss(hidden[:, :-1].flatten(0, 1), model.lm_head.weight, ids[:, 1:].flatten())
            with torch.autocast("cpu", enabled=False):
                (found / 4).backward()
    return [p.grad for p in model.parameters()]


def model_of(config: DecoderConfig) -> Decoder:
    torch.manual_seed(0)
    return Decoder(config).train()


@pytest.mark.parametrize("loss", [summed, by_token])
def test_gradients_in_place_are_those_of_autograd(loss: Any) -> None:
    ours, theirs = (gradients(model_of(CONFIG), in_place, loss=loss) for in_place in (True, False))
    for a, b in zip(ours, theirs, strict=True):
        near(a, b.double(), 1e-6)  # a tied head's and its embedding's come in another order


def test_a_loss_is_differentiated_with_another_slope_than_was_announced() -> None:
    for a, b in zip(
        gradients(model_of(CONFIG), True), gradients(model_of(CONFIG), True, 1.0), strict=True
    ):
        near(a, b.double(), 1e-2)  # its slopes were rounded to bfloat16 elsewhere


@pytest.mark.parametrize("in_place", [False, True])
def test_an_embeddings_gradient_goes_to_the_rows_looked_up(in_place: bool) -> None:
    layer = nn.Embedding(50, 8)
    ids = torch.randint(50, (3, 40), generator=torch.Generator().manual_seed(0))
    up = randn(3, 40, 8)
    wanted = torch.autograd.grad(F.embedding(ids, layer.weight), layer.weight, up)[0]
    with added_up(1.0, in_place):
        for _ in range(2):
            embedding(layer, ids).backward(up)
    torch.testing.assert_close(layer.weight.grad, 2 * wanted)
