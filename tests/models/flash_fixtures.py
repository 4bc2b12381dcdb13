"""A small flash model with every kind of layer, and grouped heads."""

from __future__ import annotations

import torch

from phikit.models.flash.config import FlashConfig
from phikit.models.flash.model import Flash

CONFIG = FlashConfig(
    vocab_size=61, hidden_size=32, intermediate_size=48, layers=8, heads=8, kv_heads=4,
    sliding_window=6, max_positions=64, dt_rank=5, inner_size=64, state_size=3, conv_width=4,
    bos_id=0, eos_ids=(1,), pad_id=0, init_std=0.3,
)  # fmt: skip
SIZES = {
    "layers": 8, "heads": 8, "kv_heads": 4, "head_dim": 4, "window": 6, "dt_rank": 5, "states": 3,
}  # fmt: skip


def made(dtype: torch.dtype, seed: int = 0) -> Flash:
    """Random weights; biases, norms and λ too, so that none can be forgotten unseen."""
    generator = torch.Generator().manual_seed(seed)
    model = Flash(CONFIG).double()
    model.init_weights(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(0.3 * noise)
    return model.to(dtype).eval()


def random_ids(rows: int, length: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, CONFIG.vocab_size, (rows, length), generator=generator)
