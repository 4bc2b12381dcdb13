"""Keys and values in 8 bits: what is lost, what is kept apart, the memory."""

from dataclasses import replace

import pytest
import torch
from crowd import COMPILERS, WORDS, model_of

from phikit.engine.base import Request, Sampling, collect
from phikit.engine.invariant import InvariantRunner
from phikit.engine.local import LocalEngine
from phikit.engine.native.between import Between
from phikit.engine.native.build import library
from phikit.engine.native.runner import NativeRunner
from phikit.engine.pool8 import Pool8, narrow
from phikit.engine.scheduler import Scheduler
from phikit.errors import PhikitError
from phikit.models.decoder_config import DecoderConfig


def test_a_vector_keeps_seven_bits() -> None:
    x = torch.randn(50, 3, 64).bfloat16() * torch.logspace(-20, 20, 50)[:, None, None]
    x[7] = 0
    x = x.bfloat16()
    whole, scale = narrow(x)
    assert whole.min() >= 1
    back = (whole.float() - 128) * scale[..., None]
    assert ((back - x.float()).abs() <= 0.51 * scale[..., None]).all()
    assert (scale == x.float().abs().amax(-1) / 127).all()


def config_of(head_dim: int, window: int | None) -> DecoderConfig:
    config = model_of("bfloat16", "even", "window" if window else "phi").config
    return replace(config, head_dim=head_dim, sliding_window=window, max_positions=512)


def attended(how: str, config: DecoderConfig, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What seven rows attend to, and what they should: in float64 over the pool as it reads itself,
    after it was checked that the kernels stored the new position."""
    window = config.sliding_window
    built, h, g, k = library(COMPILERS[how]), config.heads, config.kv_heads, config.head_dim
    assert built is not None
    generator = torch.Generator().manual_seed(0)
    pool, rows, blocks = Pool8(config, 100, size), 7, -(-200 // size)
    table = torch.arange(1, rows * blocks + 1, dtype=torch.int32).view(rows, blocks)
    position = torch.tensor([0, 3, 15, 61, 63, 127, 190], dtype=torch.int32)
    every = torch.arange(blocks * size)
    for row in range(rows):
        keys, values = (torch.randn(len(every), g, k, generator=generator) for _ in range(2))
        places = pool.places(table[row].long()[every // size], every % size)
        pool.write(0, places, keys.bfloat16(), values.bfloat16())
    qkv = torch.randn(rows, h + 2 * g, k, generator=generator).bfloat16()
    still = torch.ones(rows, 1, config.rotary_dim), torch.zeros(rows, 1, config.rotary_dim)
    before = qkv.clone()
    between = Between(built, config)
    out = between.attending(pool, table, position, still)(0, qkv.view(rows, -1))
    stored_k, stored_v = pool.read(0, table.long())
    right = []
    for row, last in enumerate(position.tolist()):
        new = before[row, h : h + g].float()
        assert (stored_k[row, :, last].float() - new).abs().max() < 0.03
        first = max(0, last + 1 - window) if window else 0
        keys, values = (t[row, :, first : last + 1].double() for t in (stored_k, stored_v))
        q = before[row, :h].double().view(g, h // g, k)
        weight = torch.softmax(q @ keys.transpose(1, 2) * k**-0.5, -1)
        right.append((weight @ values).reshape(h * k))
    return out, torch.stack(right)


@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("window", [None, 9, 70])
@pytest.mark.parametrize("size", [16, 48, 64, 128])
def test_attention_is_that_of_the_stored_numbers(
    head_dim: int, window: int | None, size: int
) -> None:
    """Integer sums are exact, so processors with and without a matrix unit agree in every bit."""
    config = config_of(head_dim, window)
    found = {how: attended(how, config, size) for how in ("native", "no tiles", "portable")}
    for out, right in found.values():
        assert (out.double() - right).abs().max() < 0.02
    assert torch.equal(found["native"][0], found["no tiles"][0])


def test_what_does_not_fit_is_refused() -> None:
    config = config_of(64, None)
    with pytest.raises(PhikitError, match="blocks of 20 or heads of 64"):
        Pool8(config, 3, 20)
    with pytest.raises(PhikitError, match="blocks of 16 or heads of 24"):
        Pool8(replace(config, head_dim=24), 3, 16)


@pytest.mark.parametrize("rows", [2, 24])
def test_the_model_is_nearly_the_same(rows: int) -> None:
    model = model_of("bfloat16", "even")

    def logprobs(**options: str) -> torch.Tensor:
        runner = NativeRunner(model, 16, **options)  # type: ignore[arg-type]
        scheduler = Scheduler(runner, max_rows=rows)
        scheduler.submit(Request(WORDS[0], Sampling(max_tokens=1, top_logprobs=301), n=rows))
        lines = [[raw for _, _, raw in sorted(t.top)] for t in scheduler.step().tokens()]
        return torch.tensor(lines)

    plain, narrowed = logprobs(), logprobs(cache="int8")
    assert 1e-4 < (plain - narrowed).abs().mean() < 0.1


def test_half_the_memory() -> None:
    model = model_of("bfloat16", "even")
    wide, narrowed = NativeRunner(model, 16), NativeRunner(model, 16, cache="int8")
    assert narrowed.block_bytes / wide.block_bytes == (32 + 4) / 64
    narrowed.allocate(10)
    stores = [t for layer in narrowed.pool.layers for t in layer]
    assert sum(t.numel() * t.element_size() for t in stores) == 10 * narrowed.block_bytes


def test_prefixes_are_shared_and_gone_on_from() -> None:
    """Pieces, cached heads and part-filled blocks that are copied: all of the same cache."""
    model = model_of("bfloat16", "even")
    runner = InvariantRunner(model, cache="int8")
    scheduler = Scheduler(runner, max_rows=8, prefill_tokens=5)
    found = []
    for prompt in (WORDS[0], WORDS[1], WORDS[0]):
        scheduler.submit(Request(prompt, Sampling(max_tokens=6), n=3))
        while scheduler.busy:
            found += [(d.sample, d.rollout) for d in scheduler.step().finished]
    alone = LocalEngine(model, invariant=True, cache="int8")
    expected = [collect(alone, [Request(p, Sampling(max_tokens=6), n=3)])[0] for p in WORDS[:2]]
    for part, group in (
        (found[:3], expected[0]),
        (found[3:6], expected[1]),
        (found[6:], expected[0]),
    ):
        assert [r for _, r in sorted(part, key=lambda x: x[0])] == group
    assert scheduler.stats().reused > 40


def test_without_kernels_it_is_refused() -> None:
    with pytest.raises(PhikitError, match="8 bits needs the C kernels: there is no compiler"):
        NativeRunner(model_of("bfloat16", "even"), compiler=COMPILERS["torch"], cache="int8")
    with pytest.raises(PhikitError, match=r"8 bits needs the C kernels: the weights are torch\.f"):
        NativeRunner(model_of("float32", "even"), cache="int8")
    with pytest.raises(PhikitError, match="'int4'"):
        collect(LocalEngine(model_of("float32", "even"), cache="int4"), [
            Request((1, 2), Sampling(max_tokens=1))
        ])  # fmt: skip
