"""Random weights for parity, and what counts as equal."""

import torch
from torch import nn


def close(a, b):
    return float((a - b).abs().max()) <= 1e-4 * float(b.abs().max())


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Weights large enough that every part makes itself felt."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if "norm" in name and name.endswith("weight"):
                p.copy_(1 + 0.3 * torch.randn(p.shape, generator=generator))
            elif p.dim() > 1:
                p.copy_(torch.randn(p.shape, generator=generator) * 1.5 / p[0].numel() ** 0.5)
            else:
                p.copy_(0.3 * torch.randn(p.shape, generator=generator))
