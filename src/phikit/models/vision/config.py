"""The shape of a vision tower."""

from __future__ import annotations

from dataclasses import dataclass

from phikit.errors import PhikitError


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """A SigLIP vision transformer.

    Attributes:
        patch_size: side of a square patch, in pixels.
        table_side: the learned position table is `table_side` × `table_side`.
        feature_layer: whose output the decoder sees: -1 is the last block's, -2 the one's before.
        pooling_head: whether the checkpoint has the head that makes one vector of an image. It
            and the blocks after `feature_layer` are loaded and saved, but play no part here.
    """

    hidden_size: int = 1152
    intermediate_size: int = 4304
    layers: int = 27
    heads: int = 16
    patch_size: int = 14
    table_side: int = 32
    channels: int = 3
    norm_eps: float = 1e-6
    feature_layer: int = -2
    pooling_head: bool = True

    def __post_init__(self) -> None:
        if self.hidden_size % self.heads:
            raise PhikitError(
                f"a vision tower of width {self.hidden_size} cannot have {self.heads} heads",
                "choose a width that is a multiple of the heads",
            )
        if not -self.layers <= self.feature_layer <= -1:
            raise PhikitError(
                f"feature_layer {self.feature_layer}: the vision tower has {self.layers} blocks",
                f"choose one from {-self.layers} to -1",
            )

    @property
    def patch_values(self) -> int:
        """Numbers in one patch: colours × pixels."""
        return self.channels * self.patch_size**2

    @property
    def parameters(self) -> int:
        """Exact number of parameters, with the pooling head if there is one."""
        d, f = self.hidden_size, self.intermediate_size
        mlp = 2 * d * f + f + d
        attention = 4 * (d * d + d)
        embeddings = self.patch_values * d + d + self.table_side**2 * d
        head = d + attention + 2 * d + mlp
        return (
            embeddings
            + self.layers * (attention + mlp + 4 * d)
            + 2 * d
            + (head if self.pooling_head else 0)
        )


# SigLIP-so400m, as phi-4-multimodal (patch 14, 448 × 448 pixels) and phi-4-reasoning-vision
# (patch 16, NaFlex) have it. Published config.json of either.
SIGLIP_448 = VisionConfig()
SIGLIP2_NAFLEX = VisionConfig(patch_size=16, table_side=16)
