"""The flash model's step in C beside the model's own."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "models"))

from flash_fixtures import CONFIG

from phikit.engine.flash import FlashRunner
from phikit.engine.native.build import Compiler, library
from phikit.engine.runner import Piece, Rows
from phikit.models.flash.model import Flash

pytestmark = pytest.mark.skipif(library() is None, reason="needs a C compiler")

# heads and channels as wide as the vector kernels want them, and odd ones
WIDE = replace(
    CONFIG, vocab_size=300, hidden_size=512, heads=8, kv_heads=4, intermediate_size=160,
    inner_size=1024, state_size=16, sliding_window=37, max_positions=400, dt_rank=24, init_std=0.05,
)  # fmt: skip
NARROW = replace(CONFIG, hidden_size=48, heads=12, kv_heads=4, init_std=0.2)


def model_of(config):
    model = Flash(config).float()
    generator = torch.Generator().manual_seed(0)
    model.init_weights(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.to(torch.bfloat16).eval()


def run(model, size, compiler, lengths, steps=4, **options):
    """Logits of some steps after prompts of these lengths; every second row in a higher slot."""
    runner = FlashRunner(model, block_size=size, compiler=compiler, **options)
    runner.allocate(200)
    runner.states.allocate(2 * len(lengths))
    slots = [runner.states.take() for _ in range(2 * len(lengths))][::2]
    generator = torch.Generator().manual_seed(1)
    width = max(lengths) // size + 2
    table = np.arange(1, 1 + len(lengths) * width).reshape(width, len(lengths)).T.copy()
    for i, length in enumerate(lengths):
        ids = torch.randint(0, model.config.vocab_size, (length,), generator=generator)
        runner.prefill([Piece(ids.tolist(), 0, table[i].tolist(), state=slots[i])])
    position, found = np.array(lengths), []
    for _ in range(steps):
        token = torch.randint(0, model.config.vocab_size, (len(lengths),), generator=generator)
        rows = Rows(token.numpy(), position, table, np.zeros_like(position), np.array(slots))
        found.append(runner.step(rows).float())
        position = position + 1
    return runner, torch.stack(found)


@pytest.mark.parametrize("portable", [False, True], ids=["fast", "portable"])
@pytest.mark.parametrize(("config", "size"), [(WIDE, 32), (WIDE, 5), (NARROW, 3)])
@torch.inference_mode()
def test_the_step_in_c_is_the_models_own(config, size, portable):
    lengths = [1, 36, 38, 150, 7] if config is WIDE else [1, 5, 7, 40]
    model, kernels = model_of(config), Compiler(portable=portable)
    fast, mine = run(model, size, kernels, lengths)
    slow, theirs = run(model, size, Compiler(program="no-such-compiler"), lengths)
    _, exact = run(model.float(), size, None, lengths)
    assert fast._kernels is not None and slow._kernels is None
    # as near to float32 as torch's bfloat16 is
    error, usual = (mine - exact).abs().mean(), (theirs - exact).abs().mean()
    assert error < 1.15 * usual and (mine - exact).abs().max() < 1.5 * (theirs - exact).abs().max()
    for a, b in zip(fast.states.slots.tensors(), slow.states.slots.tensors(), strict=True):
        assert (a.float() - b.float()).abs().mean() < 0.02 * b.float().abs().mean() + 1e-3


@pytest.mark.parametrize("portable", [False, True], ids=["fast", "portable"])
@torch.inference_mode()
def test_a_cache_in_8_bits_is_nearly_as_good(portable):
    lengths, model = [1, 36, 38, 150, 7], model_of(WIDE)
    kernels, none = Compiler(portable=portable), Compiler(program="no-such-compiler")
    _, mine = run(model, 16, kernels, lengths, int8_cache=True)
    runner, theirs = run(model, 16, none, lengths, int8_cache=True)
    _, wide = run(model, 16, kernels, lengths)
    _, exact = run(model.float(), 16, None, lengths)
    error, usual = (mine - exact).abs().mean(), (wide - exact).abs().mean()
    assert error < 1.15 * (theirs - exact).abs().mean() and error < 1.5 * usual
    assert FlashRunner(model, 16, int8_cache=True).block_bytes < 0.55 * 2 * 16 * 512
    # a position comes back as it went in, to a 254th of its head's largest
    generator = torch.Generator().manual_seed(2)
    k, v = torch.randn(3, 4, 64, generator=generator), torch.randn(3, 2, 128, generator=generator)
    runner.pool.write(torch.tensor([7, 7, 8]), torch.tensor([0, 13, 5]), k, v)
    found_k, found_v = runner.pool.read(torch.tensor([[7, 8]]))
    for found, new in ((found_k, k), (found_v, v)):
        apart = (found[0][:, [0, 13, 21]].transpose(0, 1) - new).abs()
        assert (apart <= new.abs().amax(-1, keepdim=True) * (1 / 254 + 1 / 250)).all()
