"""phi-4-reasoning-vision's sight: SigLIP 2 over one image at its own shape (NaFlex).

Shapes: B images, L patches (of the longest image), V numbers in a patch, D width of the tower,
E width of the decoder.

An image is cut into rows and columns of patches, as many of either as its shape asks for, read
line by line; images of a batch are filled up to the longest, with `valid_BL` false there. The
learned position table is resized to each image's own rows and columns.

Source: Tschannen et al. 2025 (SigLIP 2, arXiv 2502.14786) §2.4.2; transformers' `siglip2`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phikit.errors import PhikitError
from phikit.models.vision.config import VisionConfig
from phikit.models.vision.encoder import Tower


class FlexEmbeddings(nn.Module):
    """Patches through one matrix, plus the position table at the image's own shape."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.side = config.table_side
        self.patch_embedding = nn.Linear(config.patch_values, config.hidden_size)
        self.position_embedding = nn.Embedding(config.table_side**2, config.hidden_size)

    def forward(self, patches_BLV: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
        length = patches_BLV.shape[1]
        places = [self.positions(*grid) for grid in grids]
        filled = [F.pad(place_LD, (0, 0, 0, length - len(place_LD))) for place_LD in places]
        return self.patch_embedding(patches_BLV) + torch.stack(filled)

    def positions(self, rows: int, columns: int) -> Tensor:
        """The table resized (bilinear, smoothed where it shrinks; in float32), line by line."""
        table = self.position_embedding.weight
        square_1DYX = table.float().reshape(1, self.side, self.side, -1).permute(0, 3, 1, 2)
        resized = F.interpolate(
            square_1DYX, (rows, columns), mode="bilinear", align_corners=False, antialias=True
        )
        return resized[0].flatten(1).transpose(0, 1).to(table.dtype)


class FlexTower(Tower):
    """SigLIP 2 for images of any shape."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__(config, FlexEmbeddings(config))

    def features(
        self, patches_BLV: Tensor, valid_BL: Tensor, grids: Sequence[tuple[int, int]]
    ) -> list[Tensor]:
        """The features of each image's patches, [rows × columns, D].

        Args:
            patches_BLV: normalised patches; what stands where `valid_BL` is false does not matter.
            valid_BL: boolean; the first rows × columns of each image.
            grids: rows and columns of patches of each image.

        Raises:
            PhikitError: an image's patches are not as many as its grid has.
        """
        x_BLD = self._embed(patches_BLV, valid_BL, grids)
        features_BLD = self.features_of(x_BLD, valid_BL)
        return [features_BLD[n, : r * c] for n, (r, c) in enumerate(grids)]

    def pooled(
        self, patches_BLV: Tensor, valid_BL: Tensor, grids: Sequence[tuple[int, int]]
    ) -> Tensor:
        """One vector for each image, [B, D]; arguments and errors as for `features`."""
        return self.pooled_of(self._embed(patches_BLV, valid_BL, grids), valid_BL)

    def _embed(
        self, patches_BLV: Tensor, valid_BL: Tensor, grids: Sequence[tuple[int, int]]
    ) -> Tensor:
        counts = [rows * columns for rows, columns in grids]
        if valid_BL.sum(1).tolist() != counts:
            raise PhikitError(
                f"images of {valid_BL.sum(1).tolist()} patches do not make the grids {list(grids)}",
                "each image has rows × columns patches",
            )
        dtype = self.embeddings.get_parameter("patch_embedding.weight").dtype
        return self.embeddings(patches_BLV.to(dtype), grids)
