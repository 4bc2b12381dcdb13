"""phi-4-reasoning-vision's pictures: one image at its own shape, as rows and columns of patches.

Shapes: N images, L patches, V numbers in a patch (rows of pixels, their pixels, their colours).

An image keeps about the pixels it has: it gets as many patches as fit into it, but at least 256
and at most 3600, and is resized (each side to a multiple of the patch, so its shape may change a
little) to the largest size that has no more than those.

Source: the processor published with Phi-4-reasoning-vision-15B; SigLIP 2 (arXiv 2502.14786).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from phikit.chat.images.read import normalised, pillow
from phikit.models.vision.reasoning import FlexImages

if TYPE_CHECKING:
    from PIL.Image import Image

_FINEST, _LARGEST, _CLOSE = 1e-6, 100.0, 1e-5  # bounds of the scale, and how near it is found


@dataclass(frozen=True, slots=True)
class FlexRule:
    """Side of a patch in pixels, and the fewest and most patches of an image."""

    patch: int = 16
    least: int = 256
    most: int = 3600


@dataclass(frozen=True)
class FlexImage:
    """One image as patches, line by line.

    Attributes:
        patches_LV: float32, from -1 (black) to 1.
        grid: rows and columns of patches.
    """

    patches_LV: Tensor
    grid: tuple[int, int]

    @property
    def tokens(self) -> int:
        """How many tokens of the prompt it takes."""
        return len(self.patches_LV)


def choose_grid(width: int, height: int, rule: FlexRule) -> tuple[int, int]:
    """Rows and columns of patches for an image of that many pixels.

    The largest common scale of both sides is sought by halving an interval, to the same precision
    and with the same rounding as in the published processor, since the result depends on it.
    """
    fits = max((width // rule.patch) * (height // rule.patch), 1)
    wanted = min(max(fits, rule.least), rule.most)

    def grid(scale: float) -> tuple[int, int]:
        rows = max(1, math.ceil(height * scale / rule.patch))
        return rows, max(1, math.ceil(width * scale / rule.patch))

    low, high = _FINEST, _LARGEST
    while high - low >= _CLOSE:
        middle = (low + high) / 2
        rows, columns = grid(middle)
        if rows * columns <= wanted:
            low = middle
        else:
            high = middle
    return grid(low)


def cut(image: Image, rule: FlexRule | None = None) -> FlexImage:
    """Cuts an RGB image into patches."""
    rule = rule or FlexRule()
    rows, columns = choose_grid(image.width, image.height, rule)
    size = (columns * rule.patch, rows * rule.patch)
    resized = image.resize(size, pillow().Image.Resampling.BILINEAR)
    pixels_HWC = normalised(resized)
    patches = pixels_HWC.reshape(rows, rule.patch, columns, rule.patch, 3).transpose(1, 2)
    return FlexImage(patches.reshape(rows * columns, -1), (rows, columns))


def batch(images: Sequence[FlexImage]) -> FlexImages:
    """Several images together, filled up with zeros to the longest."""
    patches_NLV = torch.nn.utils.rnn.pad_sequence(
        [image.patches_LV for image in images], batch_first=True
    )
    length_N = torch.tensor([image.tokens for image in images])
    valid_NL = torch.arange(patches_NLV.shape[1]) < length_N[:, None]
    return FlexImages(patches_NLV, valid_NL, [image.grid for image in images])
