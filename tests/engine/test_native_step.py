"""The decoding step in C against the model's own forward pass, alone and inside the engine."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from engine_fixtures import CONFIGS, make
from torch import nn

from phikit.engine.base import Request, Sampling, collect
from phikit.engine.dense import DenseRunner
from phikit.engine.local import LocalEngine
from phikit.engine.native import build
from phikit.engine.native.build import Compiler
from phikit.engine.native.runner import NativeRunner
from phikit.engine.native.step import DecodeStep, obstacle
from phikit.engine.quant.linear import QuantLinear
from phikit.engine.quant.packing import Scheme
from phikit.engine.runner import Piece, Rows
from phikit.errors import PhikitError
from phikit.models.decoder import Decoder
from phikit.models.decoder_config import LongRope

WIDE = {"hidden_size": 96, "intermediate_size": 64, "head_dim": 32, "max_positions": 64}


def model_of(name: str, kind: str = "bf16") -> Decoder:
    config = replace(CONFIGS[name], **WIDE)
    if config.long_rope is not None:
        pairs = config.rotary_dim // 2
        factors = tuple(1 + i / pairs for i in range(pairs))
        config = replace(config, long_rope=LongRope(factors, factors[::-1], 20))
    model = make(config, sharpness=3.0)
    with torch.no_grad():
        for parameter in model.parameters():  # the fixture's sizes are for heads of 8
            if parameter.dim() > 1:
                parameter.mul_(0.4)
    model = model.to(torch.bfloat16)
    if kind != "bf16":
        for module in list(model.modules()):
            for leaf, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    scheme = Scheme(kind, 32 if kind == "int4" else 0)
                    setattr(module, leaf, QuantLinear.of(child.weight.detach(), scheme))
    return model


def rows(tokens: list[int], positions: list[int], tables: list[list[int]], long: bool) -> Rows:
    n = len(tokens)
    return Rows(
        np.array(tokens), np.array(positions), np.array(tables), np.full(n, int(long)),
        np.full(n, -1),
    )  # fmt: skip


def run(runner: DenseRunner, ids: list[int], known: int, chunk: int, long: bool) -> torch.Tensor:
    """Logits of all tokens after the first `known`, which are computed as a prompt."""
    runner.allocate(12)
    table = [3, 7, 2, 9, 5, 4, 8, 6]
    runner.prefill([Piece(ids[:known], 0, table, long)])
    out = []
    for at in range(known, len(ids), chunk):
        part = ids[at : at + chunk]
        positions = list(range(at, at + len(part)))
        out.append(runner.step(rows(part, positions, [table] * len(part), long)).float())
    return torch.cat(out)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("kind", ["bf16", "packed", "int8", "int4"])
@pytest.mark.parametrize("portable", [False, True], ids=["native", "portable"])
@torch.inference_mode()
def test_the_step_is_the_forward_pass(name: str, kind: str, portable: bool) -> None:
    pack, kind = (8, "bf16") if kind == "packed" else (0, kind)
    model = model_of(name, kind)
    ids = torch.randint(0, 97, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    long = model.config.long_rope is not None
    runner = NativeRunner(model, 8, pack, Compiler(portable=portable))
    assert runner._kernels is not None and runner.most_rows >= (31 if pack else 16)
    mine = run(runner, ids, 9, 1, long).log_softmax(-1)
    whole = model(torch.tensor([ids]), rope_length=21 if long else None)[0, 9:].float()
    wide = model_of(name, kind).float()
    exact = wide(torch.tensor([ids]), rope_length=21 if long else None)[0, 9:].log_softmax(-1)
    # as far from float32 as torch's bfloat16 forward pass is, within its own scatter
    theirs = (whole.log_softmax(-1) - exact).abs().mean()
    assert (mine - exact).abs().mean() < 1.5 * theirs + 1e-3
    assert theirs < 0.5, "a test of noise only"
    # tokens of one sequence fed together give the same bits as one after another
    again = NativeRunner(model, 8, pack, Compiler(portable=portable))
    assert torch.equal(run(again, ids, 9, 31 if pack else 16, long).log_softmax(-1), mine)


@torch.inference_mode()
def test_threads_do_not_change_a_bit() -> None:
    model, before = model_of("phi", "int4"), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run(NativeRunner(model, block_size=8), list(range(30)), 1, 4, False))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("kind", ["bf16", "int4"])
def test_the_engine_draws_the_same_alone_and_in_company(kind: str) -> None:
    """Up to 16 rows a row's logits do not depend on the others, so neither do its tokens."""
    engine = LocalEngine(model_of("phi", kind), max_batch=8)
    request = Request((5, 6, 7), Sampling(max_tokens=20), n=1, seed=3)
    others = [Request((9, 9, i), Sampling(max_tokens=20), seed=i) for i in range(5)]
    alone = collect(engine, [request])[0][0]
    assert collect(engine, [request, *others])[0][0] == alone
    assert tuple(engine.stream(request)) == alone.completion_ids


def test_a_missing_compiler_leaves_torch_to_it() -> None:
    missing = Compiler(program="there-is-no-such-compiler")
    runner = NativeRunner(model_of("phi"), block_size=8, compiler=missing)
    assert runner._kernels is None
    with torch.inference_mode():
        ids = list(range(20))
        expected = run(DenseRunner(runner.model, block_size=8), ids, 4, 1, False)
        assert torch.equal(run(runner, ids, 4, 1, False), expected)


def test_what_the_step_cannot_run_is_said() -> None:
    kernels = build.library()
    assert kernels is not None
    assert "float32" in obstacle(make(CONFIGS["phi"]))
    with pytest.raises(PhikitError, match="float32"):
        DecodeStep(make(CONFIGS["phi"]), kernels)
    adapted = model_of("phi")
    adapted.model.layers[0].mlp.down_proj = nn.Sequential(nn.Dropout())  # type: ignore[assignment]
    assert "Dropout" in obstacle(adapted)
    assert "no dense decoder" in obstacle(nn.Linear(2, 2))
