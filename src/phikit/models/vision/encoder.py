"""The vision transformer that both SigLIP towers are: pre-norm, attention in both directions.

Shapes: B images (or crops), L patches, D width, H heads, K head size, F inner width of the MLP.

Module and parameter names are those of the published checkpoints. What differs between the towers
is how patches get their position; `hd` and `naflex` bring the embeddings.

Source: Zhai et al. 2023 (SigLIP, arXiv 2303.15343), Tschannen et al. 2025 (SigLIP 2, arXiv
2502.14786).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phikit.models.vision.config import VisionConfig


class VisionAttention(nn.Module):
    """Multi-head attention in both directions, with biases."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.heads = config.heads
        self.k_proj = nn.Linear(d, d)
        self.v_proj = nn.Linear(d, d)
        self.q_proj = nn.Linear(d, d)
        self.out_proj = nn.Linear(d, d)

    def forward(self, x_BLD: Tensor, seen_B11L: Tensor | None) -> Tensor:
        b, n, d = x_BLD.shape

        def heads(projection: nn.Linear) -> Tensor:
            return projection(x_BLD).view(b, n, self.heads, -1).transpose(1, 2)

        out_BHLK = F.scaled_dot_product_attention(
            heads(self.q_proj), heads(self.k_proj), heads(self.v_proj), attn_mask=seen_B11L
        )
        return self.out_proj(out_BHLK.transpose(1, 2).reshape(b, n, d))


class VisionMLP(nn.Module):
    """Two matrices with GELU (tanh form) between them."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x_BLD), approximate="tanh"))


class VisionLayer(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.self_attn = VisionAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = VisionMLP(config)

    def forward(self, x_BLD: Tensor, seen_B11L: Tensor | None) -> Tensor:
        x_BLD = x_BLD + self.self_attn(self.layer_norm1(x_BLD), seen_B11L)
        return x_BLD + self.mlp(self.layer_norm2(x_BLD))


class VisionLayers(nn.Module):
    """The layers under the name that the checkpoints give them."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.layers))


class PoolingHead(nn.Module):
    """One vector of an image: a learned query attends to all patches. No part of the decoder's way.

    It was trained with the tower and is in the checkpoints, so it is read and written.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.attention = nn.MultiheadAttention(config.hidden_size, config.heads, batch_first=True)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = VisionMLP(config)

    def forward(self, x_BLD: Tensor, valid_BL: Tensor | None) -> Tensor:
        probe_B1D = self.probe.expand(x_BLD.shape[0], -1, -1)
        hidden = None if valid_BL is None else ~valid_BL
        y_B1D, _ = self.attention(
            probe_B1D, x_BLD, x_BLD, key_padding_mask=hidden, need_weights=False
        )
        return (y_B1D + self.mlp(self.layernorm(y_B1D)))[:, 0]


class Tower(nn.Module):
    """A vision transformer without its embeddings, which `embeddings` is set to by the subclass."""

    def __init__(self, config: VisionConfig, embeddings: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.embeddings = embeddings
        self.encoder = VisionLayers(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        if config.pooling_head:
            self.head = PoolingHead(config)

    def run(self, x_BLD: Tensor, valid_BL: Tensor | None, blocks: int | None = None) -> Tensor:
        """The output of the first `blocks` blocks, of all when left out, before the last norm.

        Args:
            x_BLD: embedded patches.
            valid_BL: false for patches that are padding, which no patch attends to; None for none.
        """
        # without padding there is no mask, which leaves the fastest attention free to be chosen
        padded = valid_BL is not None and not bool(valid_BL.all())
        seen_B11L = valid_BL[:, None, None, :] if padded and valid_BL is not None else None
        for layer in self.encoder.layers[:blocks]:
            x_BLD = layer(x_BLD, seen_B11L)
        return x_BLD

    def features_of(self, x_BLD: Tensor, valid_BL: Tensor | None) -> Tensor:
        """What the decoder sees: the output of the block `feature_layer`, [B, L, D]."""
        return self.run(x_BLD, valid_BL, self.config.layers + 1 + self.config.feature_layer)

    def pooled_of(self, x_BLD: Tensor, valid_BL: Tensor | None) -> Tensor:
        """One vector for each image, as the tower was trained to give beside a text's: [B, D]."""
        return self.head(self.post_layernorm(self.run(x_BLD, valid_BL)), valid_BL)


class Projector(nn.Sequential):
    """From the tower's width into the decoder's: matrix, GELU (exact), matrix. Names 0 and 2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.Linear(inputs, outputs), nn.GELU(), nn.Linear(outputs, outputs))
