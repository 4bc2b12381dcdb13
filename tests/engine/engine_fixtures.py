"""Tiny models of every kind that the engine must run."""

from dataclasses import replace

import torch

from phikit.models.decoder import Decoder
from phikit.models.decoder_config import DecoderConfig, LongRope

PLAIN = DecoderConfig(
    vocab_size=97, hidden_size=32, intermediate_size=48, layers=2, heads=4, kv_heads=2,
    head_dim=8, max_positions=64, eos_ids=(3,), pad_id=0,
)  # fmt: skip
LONG = LongRope((1.0, 1.1, 1.3), (1.5, 2.5, 4.0), original_max_positions=20)
CONFIGS = {
    "phi": PLAIN,
    "llama": replace(PLAIN, kv_heads=4, norm_eps=1e-6, tied=True, rope_theta=500.0),
    "mini": replace(PLAIN, rope_fraction=0.75, long_rope=LONG, tied=True, kv_heads=1),
    "window": replace(PLAIN, sliding_window=7),
}


def make(config: DecoderConfig, seed: int = 0, sharpness: float = 8.0) -> Decoder:
    """A random model; `sharpness` scales the last norm, so that its choices are clear."""
    model = Decoder(config)
    model.init_weights(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:  # the layers weigh more than the last token's embedding
                parameter.mul_(6 if ".layers." in name else 3)
        model.model.norm.weight.mul_(sharpness / 3)
    return model.eval()
