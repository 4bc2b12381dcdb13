"""The shape of phi-4-reasoning-vision, read from and written to its `config.json`.

Published keys: the decoder's beside each other, as phi-4's; `vision_config` for the tower, of which
the published file gives only some values and the rest is SigLIP 2's; `min_num_patches` and
`max_num_patches` for how large an image becomes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from phikit.errors import PhikitError
from phikit.models import decoder_config
from phikit.models.decoder_config import DecoderConfig
from phikit.models.vision.config import SIGLIP2_NAFLEX, VisionConfig

ARCHITECTURE = "Phi4ForCausalLMV"
PROJECTOR = "mlp2x_gelu"
TOWER = "google/siglip2-so400m-patch16-naflex"


@dataclass(frozen=True, slots=True)
class ReasoningVisionConfig(DecoderConfig):
    """A dense decoder with a SigLIP 2 tower before it.

    Attributes:
        vision: the tower.
        least_patches, most_patches: an image has no fewer and no more.
        image_id: the token that stands, once for each patch, where an image is. Its embedding is
            never used. (The published code marks the place by the number -200, which is no token;
            this is `<|dummy_0|>`, which vLLM takes.)
        bidirectional_images: whether patches of one image attend to each other both ways in the
            decoder. The model card says that this is so; the published code and vLLM's attend
            causally, and the published scores come from such code. So it is off unless asked for.
    """

    vision: VisionConfig = SIGLIP2_NAFLEX
    least_patches: int = 256
    most_patches: int = 3600
    image_id: int = 100_256
    bidirectional_images: bool = False
    architecture: str = ARCHITECTURE

    @property
    def decoder(self) -> DecoderConfig:
        """The decoder alone."""
        own = {f.name: getattr(self, f.name) for f in fields(DecoderConfig)}
        return DecoderConfig(**{**own, "architecture": "Phi3ForCausalLM"})

    @property
    def parameters(self) -> int:
        """Exact number of parameters: decoder, tower and projector."""
        d = self.hidden_size
        projector = self.vision.hidden_size * d + d + d * d + d
        return self.decoder.parameters + self.vision.parameters + projector

    def flops_per_token(self, context: int) -> float:
        """Forward operations of the decoder for one token (2 per MAC)."""
        return self.decoder.flops_per_token(context)


def from_hf(raw: Mapping[str, Any], where: str = "config.json") -> ReasoningVisionConfig:
    """Reads the published configuration.

    Raises:
        PhikitError: a needed key is missing, or the tower or projector is of another kind.
    """
    projector = raw.get("mm_projector_type", PROJECTOR)
    if projector != PROJECTOR:
        raise PhikitError(f"{where}: the projector {projector!r} is not {PROJECTOR!r}")
    tower = str(raw.get("mm_vision_tower") or TOWER)
    if "naflex" not in tower.lower():
        raise PhikitError(f"{where}: the vision tower {tower!r} is not a SigLIP 2 NaFlex tower")
    vision = _vision_from_hf(raw.get("vision_config") or {}, tower, where)
    if int(raw.get("mm_hidden_size", vision.hidden_size)) != vision.hidden_size:
        raise PhikitError(
            f"{where}: the projector takes {raw['mm_hidden_size']} values "
            f"but the vision tower gives {vision.hidden_size}"
        )
    base = decoder_config.from_hf(raw, where)
    own = {f.name: getattr(base, f.name) for f in fields(DecoderConfig)}
    return ReasoningVisionConfig(
        **{**own, "architecture": ARCHITECTURE},
        vision=vision,
        least_patches=int(raw.get("min_num_patches", 256)),
        most_patches=int(raw.get("max_num_patches", 3600)),
        image_id=int(raw.get("image_token_id", 100_256)),
        bidirectional_images=bool(raw.get("bidirectional_images", False)),
    )


def to_hf(config: ReasoningVisionConfig, dtype: str = "bfloat16") -> dict[str, Any]:
    """The `config.json` that the published code, vLLM and phikit read as the same model."""
    vision = config.vision
    return {
        **decoder_config.to_hf(config, dtype),
        "architectures": [ARCHITECTURE],
        "model_type": "phi4-siglip",
        "mm_vision_tower": TOWER,
        "mm_projector_type": PROJECTOR,
        "mm_hidden_size": vision.hidden_size,
        "min_num_patches": config.least_patches,
        "max_num_patches": config.most_patches,
        "image_token_id": config.image_id,
        "bidirectional_images": config.bidirectional_images,
        "vision_config": {
            "model_type": "siglip2_vision_model",
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.heads,
            "num_channels": vision.channels,
            "num_patches": vision.table_side**2,
            "patch_size": vision.patch_size,
            "layer_norm_eps": vision.norm_eps,
            "vision_use_head": vision.pooling_head,
        },
    }


def _vision_from_hf(raw: Mapping[str, Any], tower: str, where: str) -> VisionConfig:
    full = SIGLIP2_NAFLEX
    places = int(raw.get("num_patches", full.table_side**2))
    side = round(places**0.5)
    if side * side != places:
        raise PhikitError(f"{where}: a position table of {places} places is no square")
    return VisionConfig(
        hidden_size=int(raw.get("hidden_size", full.hidden_size)),
        intermediate_size=int(raw.get("intermediate_size", full.intermediate_size)),
        layers=int(raw.get("num_hidden_layers", full.layers)),
        heads=int(raw.get("num_attention_heads", full.heads)),
        patch_size=int(raw.get("patch_size", 14 if "patch14" in tower.lower() else 16)),
        table_side=side,
        channels=int(raw.get("num_channels", full.channels)),
        norm_eps=float(raw.get("layer_norm_eps", full.norm_eps)),
        pooling_head=bool(raw.get("vision_use_head", True)),
    )
