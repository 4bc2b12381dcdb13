"""Pictures of any kind as 8-bit RGB, upright, on white.

What is done with each kind:

- Transparency (RGBA, LA, palettes with a transparent colour) is laid on white.
- Palettes, greys, bi-level, CMYK, YCbCr and Lab become RGB.
- 16-bit greys are scaled to 8 bits: 65535 is white. (Pillow's own conversion cuts at 255, which
  makes nearly everything white.) Integer greys of 32 bits are scaled the same way when they are
  16-bit values, as those of PNG files are, and refused when they are larger.
- Floating-point samples are refused: nobody says what white is.
- A photograph's orientation mark (EXIF) is obeyed.
- Of an animation or a file of several pages, the first picture is taken.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from phikit.errors import PhikitError, how_to_install
from phikit.files import explain_os_errors

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_PIXELS = 178_956_970  # where Pillow refuses a file as a decompression bomb


def pillow() -> Any:
    """The imaging library.

    Raises:
        PhikitError: it is not installed.
    """
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError as e:
        raise PhikitError("reading pictures needs Pillow", how_to_install("multimodal")) from e
    return PIL


def read_image(source: str | Path | bytes | Image) -> Image:
    """A picture as 8-bit RGB.

    Args:
        source: a file, the bytes of one, or an open Pillow image.

    Raises:
        PhikitError: it is no readable picture, is too large, or has samples of unknown scale.
    """
    pil = pillow()
    name = str(source) if isinstance(source, str | Path) else "the picture"
    try:
        if isinstance(source, pil.Image.Image):
            return _to_rgb(source, name)
        file = io.BytesIO(source) if isinstance(source, bytes) else name
        with explain_os_errors(Path(name), "reading"), pil.Image.open(file) as image:
            return _to_rgb(image, name)
    except pil.UnidentifiedImageError as e:
        raise PhikitError(
            f"{name}: no picture in a format that Pillow knows", "give a PNG, JPEG or WebP file"
        ) from e
    except pil.Image.DecompressionBombError as e:
        raise PhikitError(
            f"{name}: the picture has more than {MOST_PIXELS:,} pixels", "make it smaller first"
        ) from e
    except (OSError, SyntaxError, ValueError) as e:  # Pillow's words for a damaged file
        raise PhikitError(f"{name}: the picture is damaged or cut short ({e})") from e


def normalised(image: Image) -> Tensor:
    """Float32 from -1 to 1, [H, W, C]: mean and standard deviation 0.5 of samples from 0 to 1."""
    return (torch.from_numpy(np.array(image, dtype=np.float32)) - 127.5) / 127.5


def _to_rgb(image: Image, name: str) -> Image:
    pil = pillow()
    image.load()
    image = pil.ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise PhikitError(
            f"{name}: the samples are floating-point numbers, of which nobody says what white is",
            "scale them to 0 ... 255 and save the picture with 8 bits",
        )
    if image.mode.startswith("I"):
        image = _eight_bits(image, name)
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = pil.Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = pil.Image.alpha_composite(white, image)
    return image.convert("RGB")


def _eight_bits(image: Image, name: str) -> Image:
    """A 16-bit grey picture in 8 bits."""
    samples = np.asarray(image).astype(np.int64)
    if samples.min() < 0 or samples.max() > 65535:
        raise PhikitError(
            f"{name}: the samples go from {samples.min()} to {samples.max()}, beyond 16 bits",
            "scale them to 0 ... 255 and save the picture with 8 bits",
        )
    scaled = ((samples * 255 + 32767) // 65535).astype(np.uint8)
    return pillow().Image.fromarray(scaled)
