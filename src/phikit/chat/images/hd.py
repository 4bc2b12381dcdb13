"""phi-4-multimodal's pictures: crops of 448 × 448 that tile an image, and one that shows it whole.

Shapes: N crops, S side of a crop in pixels, P patches on a side of a crop.

The image is enlarged until it fills a grid of crops one way, keeping its shape, and padded with
white on the right or below; the grid is the smallest that it does not exceed, or, where that has
more crops than allowed, the one whose shape is nearest to the image's (on a tie the larger one,
for an image with pixels enough to fill half of it). The view of the whole is the padded image
shrunk to one crop, without smoothing, as in training.

Resizing is Pillow's bilinear filter on 8-bit samples, as in the published processor; transformers
resizes with torch, whose result differs by a grey level, seldom two, in a few pixels of a thousand.

Source: Phi-4-Mini report (arXiv 2503.01743) §2.2.1; the grid's rule is InternVL2's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from phikit.chat.images.read import normalised, pillow
from phikit.errors import PhikitError
from phikit.models.vision.hd import image_tokens

if TYPE_CHECKING:
    from PIL.Image import Image

_SMALLEST_SIDE = 10  # pixels that must be left of either side after resizing


@dataclass(frozen=True, slots=True)
class HdRule:
    """How an image is cut: side of a crop and of a patch in pixels, and the most crops."""

    crop: int = 448
    patch: int = 14
    most_crops: int = 36


@dataclass(frozen=True)
class HdImage:
    """One image, cut.

    Attributes:
        crops_NCSS: float32, from -1 (black) to 1; the whole view first, then the tiles by rows.
        valid_NPP: boolean; false for patches that are padding throughout.
        grid: rows and columns of tiles.
        tokens: how many tokens of the prompt it takes.
    """

    crops_NCSS: Tensor
    valid_NPP: Tensor
    grid: tuple[int, int]
    tokens: int


@dataclass(frozen=True)
class HdBatch:
    """The images of one prompt or of a batch, as `models.vision.hd.ImageEmbedding` takes them."""

    crops_NCSS: Tensor
    valid_NPP: Tensor
    grids: list[tuple[int, int]]
    tokens: list[int]


def choose_grid(width: int, height: int, rule: HdRule) -> tuple[int, int]:
    """Rows and columns of crops for an image of that many pixels."""
    columns, rows = math.ceil(width / rule.crop), math.ceil(height / rule.crop)
    if rows * columns <= rule.most_crops:
        return rows, columns
    best, nearest = (1, 1), math.inf
    for columns, rows in _grids(rule.most_crops):
        distance = abs(width / height - columns / rows)
        fills = width * height > 0.5 * rule.crop**2 * columns * rows
        if distance < nearest or (distance == nearest and fills):
            best, nearest = (rows, columns), distance
    return best


@cache
def _grids(most: int) -> list[tuple[int, int]]:
    """(columns, rows) of every grid, smaller ones first."""
    every = [(c, r) for c in range(1, most + 1) for r in range(1, most + 1) if c * r <= most]
    return sorted(every, key=lambda grid: grid[0] * grid[1])


def cut(image: Image, rule: HdRule | None = None) -> HdImage:
    """Cuts an RGB image.

    Raises:
        PhikitError: it is so long and narrow that resizing leaves fewer than 10 pixels.
    """
    rule = rule or HdRule()
    rows, columns = choose_grid(image.width, image.height, rule)
    padded, valid_YX = _fit(image, rows, columns, rule)
    pixels_CHW = normalised(padded).permute(2, 0, 1).contiguous()
    side, patches = rule.crop, rule.crop // rule.patch
    whole = F.interpolate(pixels_CHW[None], (side, side), mode="bicubic", align_corners=False)
    tiles = pixels_CHW.reshape(3, rows, side, columns, side).permute(1, 3, 0, 2, 4)
    valid_tiles = valid_YX.reshape(rows, patches, columns, patches).transpose(1, 2)
    valid_NPP = torch.cat(
        (
            torch.ones(1, patches, patches, dtype=torch.bool),
            valid_tiles.reshape(-1, patches, patches),
        )
    )
    return HdImage(
        torch.cat((whole, tiles.reshape(-1, 3, side, side))),
        valid_NPP,
        (rows, columns),
        image_tokens(valid_NPP, (rows, columns)),
    )


def batch(images: Sequence[HdImage]) -> HdBatch:
    """Several cut images, of one rule, together."""
    return HdBatch(
        torch.cat([image.crops_NCSS for image in images]),
        torch.cat([image.valid_NPP for image in images]),
        [image.grid for image in images],
        [image.tokens for image in images],
    )


def _fit(image: Image, rows: int, columns: int, rule: HdRule) -> tuple[Image, Tensor]:
    """The image resized into the grid and padded, and which of its patches are more than padding.

    The products and their rounding are those of the published processor, to the last pixel.
    """
    pil = pillow()
    width, height = columns * rule.crop, rows * rule.crop
    across, down = width / image.width, height / image.height
    if across < down:
        size = (width, int(image.height * across))
    else:
        size = (int(image.width * down), height)
    if min(size) < _SMALLEST_SIDE:
        raise PhikitError(
            f"a picture of {image.width} × {image.height} pixels is too long and narrow: it would "
            f"be resized to {size[0]} × {size[1]}",
            "cut it into pieces, or pad it",
        )
    resized = image.resize(size, pil.Image.Resampling.BILINEAR)
    padded = pil.Image.new("RGB", (width, height), (255, 255, 255))
    padded.paste(resized, (0, 0))
    patches = rule.crop // rule.patch
    valid_YX = torch.zeros(rows * patches, columns * patches, dtype=torch.bool)
    valid_YX[
        : rows * patches - (height - size[1]) // rule.patch,
        : columns * patches - (width - size[0]) // rule.patch,
    ] = True
    return padded, valid_YX
