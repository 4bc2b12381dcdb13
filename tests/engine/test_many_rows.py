"""Steps of many rows: what lies between the products in C, and packed weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from crowd import COMPILERS
from engine_fixtures import CONFIGS, make
from torch import nn

from phikit.engine import packed as packing
from phikit.engine.base import Request, Sampling, collect
from phikit.engine.dense import DenseRunner
from phikit.engine.invariant import InvariantRunner
from phikit.engine.local import LocalEngine
from phikit.engine.native.between import Attending, Between
from phikit.engine.native.build import library
from phikit.engine.native.runner import NativeRunner
from phikit.engine.pool import Pool
from phikit.engine.runner import Piece, Rows
from phikit.models.decoder import Decoder

N = 24  # rows, more than the step in C takes
SHAPES = {
    "three": {"heads": 6, "kv_heads": 2, "head_dim": 32},
    "many": {"heads": 7, "kv_heads": 1, "head_dim": 64},
    "odd": {"heads": 4, "kv_heads": 2, "head_dim": 24},
}


def model_of(name: str, shape: str) -> Decoder:
    config = replace(CONFIGS[name], **SHAPES[shape], hidden_size=96, max_positions=128)
    if config.long_rope is not None:  # the fixture's factors are for heads of 8
        config = replace(config, long_rope=None, rope_fraction=1.0)
    model = make(config, sharpness=3.0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(0.4)
    return model.to(torch.bfloat16)


def logits_of(runner: DenseRunner, steps: int = 3) -> torch.Tensor:
    """Rows of two prompts, whose blocks are shared, each going on with tokens of its own."""
    runner.allocate(2 * N + 16)
    size = runner.block_size
    shared = 2 * size  # two full blocks
    ids = [[(7 * i + p) % 97 for i in range(shared)] for p in (0, 1)]
    runner.prefill([Piece(ids[p], 0, [1 + 2 * p, 2 + 2 * p]) for p in (0, 1)])
    table = np.array([[1 + 2 * (r % 2), 2 + 2 * (r % 2), 8 + r] for r in range(N)])
    out = []
    for step in range(steps):
        tokens = (np.arange(N) * 5 + step) % 97
        still = np.zeros(N, np.int64)
        rows = Rows(tokens, np.full(N, shared + step), table, still, still - 1, step > 0)
        out.append(runner.step(rows).float())
    return torch.stack(out)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [8, 16])
@pytest.mark.parametrize("how", ["native", "no tiles", "portable"])
@torch.inference_mode()
def test_the_rows_are_those_of_torch(name: str, shape: str, size: int, how: str) -> None:
    model = model_of(name, shape)
    runner = NativeRunner(model, size, compiler=COMPILERS[how])
    assert runner._between is not None
    mine = logits_of(runner).log_softmax(-1)
    theirs = logits_of(DenseRunner(model, size)).log_softmax(-1)
    exact = logits_of(DenseRunner(model_of(name, shape).float(), size)).log_softmax(-1)
    scatter = (theirs - exact).abs().mean()
    assert (mine - exact).abs().mean() < 1.5 * scatter + 1e-3
    assert scatter < 0.5, "a test of noise only"


@torch.inference_mode()
def test_attention_of_a_row_does_not_depend_on_the_others() -> None:
    config, built = model_of("phi", "three").config, library()
    assert built is not None
    generator = torch.Generator().manual_seed(0)
    results = []
    for rows in (slice(0, N), slice(5, 6)):
        pool = Pool(config, N * 3 + 1, 16, torch.bfloat16, torch.device("cpu"))
        generator.manual_seed(1)
        for store in (*pool.k, *pool.v):
            store.copy_(torch.randn(store.shape, generator=generator))
        table = torch.arange(1, N * 3 + 1, dtype=torch.int32).view(N, 3)
        position = torch.arange(20, 20 + N, dtype=torch.int32)
        angle = torch.rand(N, config.rotary_dim, generator=generator)
        qkv = torch.randn(N, 10 * config.head_dim, generator=generator).bfloat16()
        attend = Attending(
            Between(built, config), pool, table[rows].contiguous(), position[rows].contiguous(),
            (angle.cos()[rows], angle.sin()[rows]),
        )  # fmt: skip
        results.append(attend(0, qkv[rows].contiguous()))
    assert torch.equal(results[0][5:6], results[1])


@torch.inference_mode()
def test_packed_products_are_the_modules() -> None:
    layer = nn.Linear(96, 160, bias=False).bfloat16()
    product = packing.packed(layer, 24)
    assert product is not layer
    for rows in (1, 7, 24, 100):
        x = torch.randn(rows, 96).bfloat16()
        torch.testing.assert_close(product(x), layer(x), rtol=2**-7, atol=2**-7)


def test_only_plain_bfloat16_matrices_are_packed() -> None:
    other = nn.Linear(8, 8).float()
    assert packing.packed(other, 24) is other
    adapted = nn.Sequential(nn.Linear(8, 8).bfloat16())
    assert packing.packed(adapted, 24) is adapted
    model = model_of("phi", "three")
    assert packing.worth_packing(model, packing.ROWS, packing.STEPS)
    assert not packing.worth_packing(model, packing.ROWS, packing.STEPS - 1)
    assert not packing.worth_packing(model, packing.ROWS - 1, packing.STEPS)
    assert not packing.worth_packing(model.float(), packing.ROWS, packing.STEPS)


def test_training_between_two_calls_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    packings = []
    pack = packing.packed
    monkeypatch.setattr(
        "phikit.engine.dense.packed", lambda m, rows: packings.append(rows) or pack(m, rows)
    )
    monkeypatch.setattr("phikit.engine.local.shard_count", lambda *_: 1)  # as for a large model
    model = model_of("phi", "three")
    engine = LocalEngine(model, max_batch=N)
    request = [Request((5, 6, 7), Sampling(max_tokens=30), n=N, seed=3)]
    first = collect(engine, request)
    assert packings and set(packings) == {N}
    assert collect(engine, request) == first
    with torch.no_grad():
        model.lm_head.weight.copy_(model.lm_head.weight.flip(0))
    changed = collect(engine, request)
    assert changed != first
    assert changed == collect(LocalEngine(model, max_batch=N), request)


@pytest.mark.parametrize("how", ["native", "no tiles", "portable"])
def test_what_is_no_number_is_not_taken_for_one(how: str) -> None:
    """A broken model must not look whole: one such key spoils what attends to it."""
    config = model_of("phi", "three").config
    built = library(COMPILERS[how])
    assert built is not None
    h, g, k = config.heads, config.kv_heads, config.head_dim
    pool = Pool(config, 8, 16, torch.bfloat16, torch.device("cpu"))
    for store in (*pool.k, *pool.v):
        store.normal_(generator=torch.Generator().manual_seed(0))
    pool.k[0][2, 0, 3] = float("nan")  # position 19 of the first row's first head
    table = torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.int32)
    position = torch.tensor([40, 40], dtype=torch.int32)
    still = torch.ones(2, 1, config.rotary_dim), torch.zeros(2, 1, config.rotary_dim)
    qkv = torch.randn(2, (h + 2 * g) * k, generator=torch.Generator().manual_seed(1)).bfloat16()
    out = Between(built, config).attending(pool, table, position, still)(0, qkv).view(2, h, k)
    assert out[0, : h // g].isnan().all()
    assert out[0, h // g :].isfinite().all() and out[1].isfinite().all()


@pytest.mark.parametrize("how", ["native", "no tiles", "portable"])
@pytest.mark.parametrize("kind", [NativeRunner, InvariantRunner])
@torch.inference_mode()
def test_a_step_takes_pieces_of_prompts_along(
    how: str, kind: type[NativeRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("phi", "three")
    model = make(replace(model.config, intermediate_size=128), sharpness=3.0).to(torch.bfloat16)
    size, settings = 16, {} if kind is InvariantRunner else {"pack": N}
    tokens = [(7 * i) % 97 for i in range(40)]
    # the second builds on the first, a row on both; another row is at a place of its own
    pieces = [Piece(tokens[:16], 0, [1]), Piece(tokens[16:37], 16, [1, 2, 3])]
    still = np.zeros(2, np.int64)
    rows = Rows(
        np.array([3, 5]), np.array([37, 0]), np.array([[1, 2, 3], [4, 0, 0]]), still, still - 1
    )
    found = []
    for how_late in ("at once", "with the step", "settled", "copied"):
        runner = kind(model, size, compiler=COMPILERS[how], **settings)  # type: ignore[arg-type]
        runner.allocate(8)
        calls: list[int] = []
        in_one = runner._in_one
        monkeypatch.setattr(
            runner, "_in_one",
            lambda k, r, wanted=None, run=in_one, calls=calls: (
                calls.append(len(r.token_N)), run(k, r, wanted))[1],
        )  # fmt: skip
        for piece in pieces:
            runner.prefill([piece], late=how_late != "at once")
        if how_late == "settled":
            runner.settle()
        elif how_late == "copied":
            runner.copy_blocks([3], [7])
        logits = runner.step(rows)
        assert calls == {"at once": [16, 21, 2], "with the step": [39]}.get(how_late, [37, 2])
        assert logits.shape[0] == 2 and runner.prefilled == 37
        found.append((logits, [store[1:5].clone() for store in (*runner.pool.k, *runner.pool.v)]))
    for logits, stores in found[1:]:
        assert torch.equal(logits, found[0][0])
        assert all(map(torch.equal, stores, found[0][1]))
