"""phi-4-reasoning-vision: phi-4-reasoning's decoder with a SigLIP 2 tower before it.

Shapes: N images, B rows, L sequence, D model width.

An image's features, projected into the decoder's width, take the places of its placeholder tokens,
one for each patch; all else is the dense decoder. Names are those of the published checkpoint:
`model.vision_tower.vision_tower.vision_model.*`, `model.mm_projector.0` and `.2`, else phi-4's.

Source: model card of Phi-4-reasoning-vision-15B and the code published with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phikit.errors import PhikitError
from phikit.models.decoder import Attend, Decoder
from phikit.models.vision.encoder import Projector
from phikit.models.vision.naflex import FlexTower
from phikit.models.vision.reasoning_config import ReasoningVisionConfig


@dataclass(frozen=True)
class FlexImages:
    """Images as the tower takes them, in the order of their places in the rows of token ids.

    Attributes:
        patches_NLV: normalised patches, filled up to the longest image.
        valid_NL: boolean; false for what was filled up.
        grids: rows and columns of patches of each image.
    """

    patches_NLV: Tensor
    valid_NL: Tensor
    grids: Sequence[tuple[int, int]]


class _Holder(nn.Module):
    """Modules under one name."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


class ReasoningVision(Decoder):
    """A dense decoder that sees. Called without images it is the decoder alone."""

    config: ReasoningVisionConfig

    def __init__(self, config: ReasoningVisionConfig) -> None:
        super().__init__(config)
        self.model.vision_tower = _Holder(
            vision_tower=_Holder(vision_model=FlexTower(config.vision))
        )
        self.model.mm_projector = Projector(config.vision.hidden_size, config.hidden_size)

    @property
    def tower(self) -> FlexTower:
        tower = self.model.get_submodule("vision_tower.vision_tower.vision_model")
        assert isinstance(tower, FlexTower)
        return tower

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """As the decoder's; biases begin at zero."""
        super().init_weights(generator)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()

    def image_rows(self, images: FlexImages) -> list[Tensor]:
        """What the decoder sees of each image: [rows × columns of its patches, D]."""
        features = self.tower.features(images.patches_NLV, images.valid_NL, images.grids)
        projected = self.model.get_submodule("mm_projector")(torch.cat(features))
        return list(projected.split([len(part) for part in features]))

    def embed(self, ids_BL: Tensor, images: FlexImages | None = None) -> Tensor:
        """The decoder's input [B, L, D]: tokens' embeddings, and images in their places.

        Raises:
            PhikitError: the placeholders are not as many as the images' patches.
        """
        x_BLD = self.model.embed_tokens(ids_BL)
        place_BL = ids_BL == self.config.image_id
        rows = [] if images is None else self.image_rows(images)
        have, wanted = int(place_BL.sum()), sum(map(len, rows))
        if have != wanted:
            raise PhikitError(
                f"the prompt has {have} places for images' patches, the images have {wanted}",
                f"put the token {self.config.image_id} once for each patch of each image",
            )
        if not rows:
            return x_BLD
        return x_BLD.masked_scatter(place_BL[..., None], torch.cat(rows).to(x_BLD.dtype))

    def attend_to(self, ids_BL: Tensor, images: FlexImages | None) -> Attend:
        """What each position of a prompt attends to: earlier ones, and perhaps its own image."""
        if images is None or not self.config.bidirectional_images:
            return self.attend
        place_BL = ids_BL == self.config.image_id
        sizes = torch.tensor([rows * columns for rows, columns in images.grids])
        image_BL = torch.full_like(ids_BL, -1)
        image_BL[place_BL] = torch.repeat_interleave(sizes).to(ids_BL.device)
        index_L = torch.arange(ids_BL.shape[1], device=ids_BL.device)
        same_BLL = (image_BL[:, :, None] == image_BL[:, None, :]) & place_BL[:, :, None]
        seen_B1LL = (same_BLL | (index_L[:, None] >= index_L))[:, None]

        def attend(_: int, q_BHLK: Tensor, k_BGLK: Tensor, v_BGLK: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(
                q_BHLK, k_BGLK, v_BGLK, attn_mask=seen_B1LL,
                enable_gqa=q_BHLK.shape[1] != k_BGLK.shape[1],
            )  # fmt: skip

        return attend

    def see(self, ids_BL: Tensor, images: FlexImages | None = None) -> Tensor:
        """Logits [B, L, V] of rows of token ids with images in them; errors as for `embed`."""
        x_BLD = self.embed(ids_BL, images)
        attend = self.attend_to(ids_BL, images)
        return self.lm_head(self.hidden(ids_BL, attend=attend, inputs_embeds_BLD=x_BLD))
