"""Bit-identical results whatever else is in the batch, in the cache, or comes and goes."""

import random
from dataclasses import replace

import pytest
import torch
from crowd import COMPILERS, WIDE, WORDS, Crowd, model_of, request_of
from engine_fixtures import CONFIGS
from hypothesis import given, settings
from hypothesis import strategies as st

from phikit.engine.base import Request, Sampling, collect
from phikit.engine.invariant import InvariantRunner
from phikit.engine.local import LocalEngine
from phikit.engine.native import products
from phikit.engine.native.build import Compiler, library
from phikit.engine.quant.linear import QuantLinear
from phikit.engine.quant.packing import Scheme
from phikit.engine.rowwise import blockwise
from phikit.engine.scheduler import Scheduler
from phikit.errors import PhikitError
from phikit.models import lora
from phikit.models.decoder import Decoder


def alone(model: Decoder, request: Request, size: int, compiler: Compiler) -> list[object]:
    """Each sample in an engine of its own."""
    found = []
    for i in range(request.n):
        scheduler = Scheduler(InvariantRunner(model, size, compiler), max_rows=1)
        scheduler.submit(replace(request, n=1, first_sample=request.first_sample + i))
        tops = []
        while scheduler.busy:
            events = scheduler.step()
            tops += [t.top for t in events.tokens()]
            for done in events.finished:
                found.append((done.rollout, tops))
    return found


def hectic(
    model: Decoder, todo: list[Request], draw: random.Random, size: int, compiler: Compiler
) -> dict[int, list[object]]:
    """They come at any time, some are cancelled, blocks run out, prompts are cut anywhere."""
    need = -(-(max(len(r.prompt_ids) + r.sampling.max_tokens for r in todo)) // size)
    runner = InvariantRunner(model, size, compiler)
    scheduler = Scheduler(
        runner, cache_bytes=(need + draw.randint(0, 12)) * runner.block_bytes,
        max_rows=draw.randint(1, 12), prefill_tokens=draw.choice([1, 5, 64]),
        keep=draw.random() < 0.7,
    )  # fmt: skip
    crowd = Crowd(scheduler, todo, draw)
    tops: dict[tuple[int, int], list[object]] = {}
    for events in crowd.events:
        for token in events.tokens():
            tops.setdefault((token.ticket.number, token.sample), []).append(token.top)
    return {
        i: [(r, tops[ticket.number, k]) for k, r in enumerate(crowd.rollouts(i))]
        for i, ticket in crowd.tickets.items()
        if i not in crowd.cancelled
    }


def held_alike(
    seed: int, kind: str, shape: str, name: str, size: int, compiler: Compiler, most: int = 8
) -> None:
    draw = random.Random(seed)
    model = model_of(kind, shape, name)
    for module in model.modules():
        if isinstance(module, QuantLinear):
            module.compiler = compiler
    todo = [request_of(draw) for _ in range(draw.randint(1, most))]
    for index, got in hectic(model, todo, draw, size, compiler).items():
        assert got == alone(model, todo[index], size, compiler)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["float32", "bfloat16", "int8", "int4"]),
    shape=st.sampled_from(sorted(WIDE)),
    name=st.sampled_from(sorted(CONFIGS)),
    size=st.sampled_from([3, 16]),
    how=st.sampled_from(["native", "no tiles", "portable"]),
)
def test_every_bit_is_that_of_an_engine_of_its_own(seed, kind, shape, name, size, how):
    held_alike(seed, kind, shape, name, size, COMPILERS[how])


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["float32", "bfloat16", "int8", "int4"]),
    shape=st.sampled_from(sorted(WIDE)),
    name=st.sampled_from(sorted(CONFIGS)),
)
def test_and_without_a_compiler(seed, kind, shape, name):
    held_alike(seed, kind, shape, name, 4, COMPILERS["torch"], most=3)


def test_the_ordinary_engine_does_not_hold_it() -> None:
    """So the tests above can fail: neighbours change the ordinary engine's bits, where a step's
    kernels depend on the number of rows."""
    model = model_of("int8", "even")
    request = Request(WORDS[0], Sampling(max_tokens=64), n=4, seed=1)
    mates = [Request(WORDS[1], Sampling(max_tokens=64), n=40, seed=i) for i in range(2)]
    for invariant in (False, True):
        engine = LocalEngine(model, invariant=invariant)
        same = collect(engine, [request])[0] == collect(engine, [request, *mates])[0]
        assert same == invariant


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_same_model(dtype: torch.dtype) -> None:
    model = model_of("float32", "even").to(dtype)
    prompt, sampling = WORDS[0], Sampling(temperature=0, max_tokens=12)
    mine, ours = (
        collect(LocalEngine(model, invariant=i), [Request(prompt, sampling)])[0][0]
        for i in (True, False)
    )
    error = 1e-4 if dtype == torch.float32 else 0.15
    assert mine.raw_logprobs[0] == pytest.approx(ours.raw_logprobs[0], abs=error)
    if dtype == torch.float32:
        assert mine.completion_ids == ours.completion_ids
        assert mine.raw_logprobs == pytest.approx(ours.raw_logprobs, abs=error)


def test_adapters_and_threads_change_nothing_either() -> None:
    model = model_of("bfloat16", "even")
    for number, name in enumerate(("a", "b")):
        lora.add(model, name, lora.LoraSpec(4 + number, 8, r".*(qkv|down)_proj"))
        for _, parameter in lora.parameters(model, name):
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(1))
    asked = [
        Request(WORDS[0], Sampling(max_tokens=6), n=9, seed=i, adapter=name)
        for i, name in enumerate(("", "a", "b", "a"))
    ]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        single = [collect(LocalEngine(model, invariant=True), [r])[0] for r in asked]
        torch.set_num_threads(2)
        assert collect(LocalEngine(model, invariant=True), asked) == single
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("how", ["native", "no tiles", "portable"])
@pytest.mark.parametrize("shape", [(37, 96), (64, 576), (130, 1024), (33, 100)])
def test_a_product_of_packed_weights(how: str, shape: tuple[int, int]) -> None:
    built = library(COMPILERS[how])
    assert built is not None
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator).bfloat16()
    x = torch.randn(70, shape[1], generator=generator).bfloat16()
    product = products.PackedRows(built, weight)
    y = product(x)
    right = x.double() @ weight.double().T
    assert (y.double() - right).abs().max() < 1e-4 * shape[1] ** 0.5
    for rows in (
        slice(0, 1),
        slice(3, 20),
        slice(66, 70),
        slice(1, 70),
        slice(0, 32),
        slice(1, 34),
    ):
        assert torch.equal(product(x[rows]), y[rows])


@pytest.mark.parametrize("how", ["native", "portable"])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("shape", [(37, 96), (64, 576), (5, 1024), (33, 100)])
def test_a_product_of_rows(how: str, kind: str, shape: tuple[int, int]) -> None:
    built = library(COMPILERS[how])
    assert built is not None
    generator = torch.Generator().manual_seed(0)
    n, k = shape
    if kind.startswith("int") and k % 32:
        pytest.skip("not a size that is quantised")
    weight = torch.randn(n, k, generator=generator)
    x = torch.randn(70, k, generator=generator)
    if kind != "float32":
        x, weight = x.bfloat16(), weight.bfloat16()
    if kind.startswith("int"):
        layer = QuantLinear.of(weight, Scheme(kind, 0 if kind == "int8" else 32))
        matrix, weight = layer.matrix(), layer.dense()
    else:
        matrix = products.matrix("f32" if kind == "float32" else "bf16", n, k, weight)
    y = products.rows(built, matrix, x, 2)
    right = x.double() @ weight.double().T
    assert (y.double() - right).abs().max() < (1e-3 if kind == "float32" else 0.02 * k**0.5)
    for rows in (slice(0, 1), slice(3, 20), slice(66, 70), slice(1, 70)):
        assert torch.equal(products.rows(built, matrix, x[rows], 1), y[rows])


def test_a_product_whose_rows_depend_on_their_place_is_taken_row_by_row() -> None:
    class Odd(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.arange(len(x))[:, None]

    x = torch.zeros(20, 3)
    assert torch.equal(blockwise(Odd())(x), x)


def test_what_cannot_be_invariant_is_refused() -> None:
    with pytest.raises(PhikitError, match="float16"):
        InvariantRunner(model_of("float32", "even").half())
