"""phi-4-multimodal's sight: crops of one size through SigLIP, put together row by row.

Shapes: N crops of all images, S side of a crop in pixels, P patches on a side of a crop, D width
of the tower, E width of the decoder, T tokens of one image.

An image comes as `rows` × `columns` crops that tile it, and one more that shows it whole, in this
order: [whole, crop (0, 0), crop (0, 1), ...]. Where an image was padded, on the right or below,
`valid_NPP` is false. What the decoder gets of it, T rows of width E:

    the tiles' features put together as one picture, padding cut off, `sub_GN` after each line;
    `glb_GN`; the whole view's features, `sub_GN` after each line.

Features are those of the block before the last, averaged over 2 × 2 patches, then projected. So a
448 × 448 image takes 16 × 17 + 1 + 16 × 17 = 545 tokens.

In the checkpoint `ImageEmbedding` is `model.embed_tokens_extend.image_embed`. Names and arithmetic
are those of the published model; transformers calls some parts otherwise, see `TRANSFORMERS_NAMES`.

Source: Phi-4-Mini report (arXiv 2503.01743) §2.2.1; transformers' `phi4_multimodal`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phikit.errors import PhikitError
from phikit.models.vision.config import VisionConfig
from phikit.models.vision.encoder import Projector, Tower

#: our name → transformers' name, both inside the image embedding
TRANSFORMERS_NAMES = {
    "img_projection.0": "img_projection_up",
    "img_projection.2": "img_projection_down",
    "glb_GN": "global_img_feature_extensor",
    "sub_GN": "sub_img_feature_extensor",
}

_CROPS_AT_ONCE = 16  # bounds the memory of a many-crop image


class PatchEmbeddings(nn.Module):
    """Patches of equal crops, with learned positions that stretch over what is not padding.

    A patch's row i of n unpadded rows takes row ⌊i × side / n⌋ of the position table, and columns
    likewise: NaViT's fractional coordinates (Dehghani et al. 2023, arXiv 2307.06304), in buckets.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.side = config.table_side
        self.patch_embedding = nn.Conv2d(
            config.channels, config.hidden_size, config.patch_size, config.patch_size
        )
        self.position_embedding = nn.Embedding(config.table_side**2, config.hidden_size)

    def forward(self, crops_NCSS: Tensor, valid_NPP: Tensor) -> Tensor:
        x_NLD = self.patch_embedding(crops_NCSS).flatten(2).transpose(1, 2)
        return x_NLD + self.position_embedding(self.positions(valid_NPP))

    def positions(self, valid_NPP: Tensor) -> Tensor:
        """Where each patch looks in the table, [N, L]; padding looks at place 0."""

        def bucket(count_N1: Tensor, places: int) -> Tensor:
            index_P = torch.arange(places, device=valid_NPP.device)
            return (index_P * self.side // count_N1).clamp(max=self.side - 1)

        _, rows, columns = valid_NPP.shape
        row_NP = bucket(valid_NPP[:, :, 0].sum(1, keepdim=True), rows)
        column_NP = bucket(valid_NPP[:, 0, :].sum(1, keepdim=True), columns)
        place_NPP = row_NP[:, :, None] * self.side + column_NP[:, None, :]
        return torch.where(valid_NPP, place_NPP, 0).flatten(1)


class CropTower(Tower):
    """SigLIP for crops of one size."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__(config, PatchEmbeddings(config))

    def features(self, crops_NCSS: Tensor, valid_NPP: Tensor) -> Tensor:
        """The features of each patch, [N, L, D]."""
        x_NLD = self.embeddings(crops_NCSS, valid_NPP)
        return self.features_of(x_NLD, valid_NPP.flatten(1))

    def pooled(self, crops_NCSS: Tensor, valid_NPP: Tensor) -> Tensor:
        """One vector for each crop, [N, D]."""
        return self.pooled_of(self.embeddings(crops_NCSS, valid_NPP), valid_NPP.flatten(1))


class ImageEmbedding(nn.Module):
    """Tower, compression, line separators and projector: from crops to rows for the decoder."""

    def __init__(self, config: VisionConfig, width: int) -> None:
        super().__init__()
        self.img_processor = CropTower(config)
        self.img_projection = Projector(config.hidden_size, width)
        self.glb_GN = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.sub_GN = nn.Parameter(torch.zeros(1, 1, 1, config.hidden_size))

    def forward(
        self, crops_NCSS: Tensor, valid_NPP: Tensor, grids: Sequence[tuple[int, int]]
    ) -> list[Tensor]:
        """The rows of each image, [T, E], which take the places of its placeholder tokens.

        Args:
            crops_NCSS: the crops of all images one after another, normalised; S = P × patch size.
            valid_NPP: boolean; false for padding.
            grids: rows and columns of tiles of each image.

        Raises:
            PhikitError: the number of crops is not that of the grids.
        """
        counts = [rows * columns + 1 for rows, columns in grids]
        if sum(counts) != crops_NCSS.shape[0]:
            raise PhikitError(
                f"{crops_NCSS.shape[0]} crops do not make the grids {list(grids)}",
                "each image has rows × columns + 1 crops, the whole view first",
            )
        crops_NCSS = crops_NCSS.to(self.glb_GN.dtype)
        parts = zip(crops_NCSS.split(_CROPS_AT_ONCE), valid_NPP.split(_CROPS_AT_ONCE), strict=True)
        squares_NQQD = torch.cat([self._squares(*part) for part in parts])
        images = zip(squares_NQQD.split(counts), valid_NPP.split(counts), grids, strict=True)
        lines = [self._lines(*image) for image in images]
        # one product for all images
        projected = self.img_projection(torch.cat(lines))
        return list(projected.split([len(rows) for rows in lines]))

    def _squares(self, crops_NCSS: Tensor, valid_NPP: Tensor) -> Tensor:
        """Features averaged over 2 × 2 patches, [N, P/2, P/2, D]."""
        x_NLD = self.img_processor.features(crops_NCSS, valid_NPP)
        n, side, _ = valid_NPP.shape
        x_NDPP = x_NLD.transpose(1, 2).reshape(n, -1, side, side)
        return F.avg_pool2d(x_NDPP, 2).permute(0, 2, 3, 1)

    def _lines(self, squares_NQQD: Tensor, valid_NPP: Tensor, grid: tuple[int, int]) -> Tensor:
        """One image's tiles and whole view with their separators, [T, D]."""
        (rows, columns), (_, q, _, d) = grid, squares_NQQD.shape
        tiles = squares_NQQD[1:].reshape(rows, columns, q, q, d).transpose(1, 2)
        tiles = tiles.reshape(rows * q, columns * q, d)
        # every other patch decides for its square, as in training
        valid = valid_NPP[1:, ::2, ::2].reshape(rows, columns, q, q).transpose(1, 2)
        valid = valid.reshape(rows * q, columns * q)
        tiles = tiles[: int(valid[:, 0].sum()), : int(valid[0].sum())]
        return torch.cat((self._separated(tiles), self.glb_GN[0], self._separated(squares_NQQD[0])))

    def _separated(self, picture_YXD: Tensor) -> Tensor:
        """A picture's lines one after another, `sub_GN` after each."""
        end = self.sub_GN[0].expand(picture_YXD.shape[0], -1, -1)
        return torch.cat((picture_YXD, end), dim=1).flatten(0, 1)


def image_tokens(valid_NPP: Tensor, grid: tuple[int, int]) -> int:
    """How many rows `ImageEmbedding` gives for one image, from its mask alone."""
    (rows, columns), (_, p, _) = grid, valid_NPP.shape
    valid = valid_NPP[1:, ::2, ::2].reshape(rows, columns, p // 2, p // 2).transpose(1, 2)
    valid = valid.reshape(rows * p // 2, columns * p // 2)
    height, width = int(valid[:, 0].sum()), int(valid[0].sum())
    return height * (width + 1) + 1 + (p // 2) * (p // 2 + 1)
