"""Crops for phi-4-multimodal against transformers' processor and the published algorithm."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from picture_files import figure, photograph, rendered_page, scene
from PIL import Image
from reference_images import phi4_multimodal_processor

from phikit.chat.images.hd import HdRule, batch, choose_grid, cut
from phikit.chat.images.read import read_image
from phikit.errors import PhikitError

LEVEL = 1 / 127.5  # one grey level


def published_pixels(image: Image.Image, width: int, height: int, size: tuple[int, int]):
    """The published processor's steps, written down again: resize, pad, to tensor, normalise."""
    resized = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    canvas = np.full((height, width, 3), 255, np.uint8)
    canvas[: size[1], : size[0]] = resized
    pixels = torch.from_numpy(canvas).permute(2, 0, 1).float().div(255)
    return (pixels - 0.5) / 0.5


def check_against_both(reference, image: Image.Image) -> None:
    got = cut(image)
    theirs = reference([np.asarray(image)])
    rows, columns = got.grid
    assert theirs["image_sizes"].tolist() == [[rows * 448, columns * 448]]
    assert theirs["num_img_tokens"] == [got.tokens]
    assert torch.equal(theirs["image_attention_mask"][0].bool(), got.valid_NPP)
    off = (theirs["image_pixel_values"][0] - got.crops_NCSS).abs()
    # torch's and Pillow's 8-bit bilinear filters round in their own ways, in two passes
    assert off[1:].max() <= LEVEL * 2.001
    assert (off[1:] > LEVEL / 2).float().mean() < 0.01
    assert off[0].max() <= LEVEL * 3.2  # bicubic weights reach a sum of 1.56 in magnitude

    # the picture in the tiles, put together again, is the published algorithm's to the last bit
    side = 448
    whole = got.crops_NCSS[1:].reshape(rows, columns, 3, side, side).permute(2, 0, 3, 1, 4)
    whole = whole.reshape(3, rows * side, columns * side)
    if image.width * rows * side > image.height * columns * side:  # wider than the grid
        size = (columns * side, int(image.height * (columns * side / image.width)))
    else:
        size = (int(image.width * (rows * side / image.height)), rows * side)
    expected = published_pixels(image, columns * side, rows * side, size)
    torch.testing.assert_close(whole, expected, rtol=0, atol=2e-7)
    view = F.interpolate(expected[None], (side, side), mode="bicubic")[0]
    torch.testing.assert_close(got.crops_NCSS[0], view, rtol=0, atol=1e-6)


def test_a_rendered_page_and_a_figure(tmp_path, monkeypatch):
    reference = phi4_multimodal_processor(monkeypatch)
    for path in (rendered_page(tmp_path), figure(tmp_path), figure(tmp_path, 12, 2.1)):
        check_against_both(reference, read_image(path))


@pytest.mark.parametrize(
    "width, height",
    [(448, 448), (449, 447), (100, 90), (1, 1), (333, 517), (1200, 800), (37, 600), (2600, 90),
     (1000, 2777)],
)  # fmt: skip
def test_sizes_and_shapes(tmp_path, monkeypatch, width, height):
    image = read_image(photograph(tmp_path, width, height))
    assert image.size == (width, height)
    check_against_both(phi4_multimodal_processor(monkeypatch), image)


@pytest.mark.slow
@pytest.mark.parametrize("width, height", [(4000, 3000), (3100, 5000), (9000, 300), (400, 13000)])
def test_pictures_with_more_crops_than_allowed(tmp_path, monkeypatch, width, height):
    image = read_image(photograph(tmp_path, width, height))
    assert cut(image).valid_NPP.shape[0] <= 37
    check_against_both(phi4_multimodal_processor(monkeypatch), image)


def test_grids_are_the_references_for_every_shape(monkeypatch):
    """The grid alone, over thousands of sizes, ties among them."""
    from phikit.chat.images import hd

    reference = phi4_multimodal_processor(monkeypatch)
    rng = np.random.default_rng(0)
    sizes = [tuple(map(int, pair)) for pair in np.exp(rng.uniform(2.5, 10, (3000, 2)))]
    sizes += [(448 * c + d, 448 * r + e) for c in (1, 2, 5, 7, 8, 13, 36, 37)
              for r in (1, 2, 5, 7, 9, 36) for d in (-1, 0, 1) for e in (-1, 0, 1)]  # fmt: skip
    sizes += [(n * 1000, n * 1000) for n in range(1, 9)] + [(3000 * n, 2000 * n) for n in (1, 2, 3)]
    sizes += [(1250 * n, 1200 * n) for n in range(3, 9)]  # between 1:1 and 13:12, and such
    over = 0
    for width, height in sizes:
        rows, columns = choose_grid(width, height, HdRule())
        picture = torch.empty(3, height, width, dtype=torch.uint8, device="meta")
        over += -(-width // 448) * -(-height // 448) > 36
        try:
            resized, mask = reference.dynamic(picture, 448, 14, 32, max_num=36)
        except ValueError as e:
            assert "extreme" in str(e)
            with pytest.raises(PhikitError, match="too long and narrow"):
                hd._fit(FakeImage(width, height), rows, columns, HdRule())
            continue
        assert resized.shape[-2:] == (rows * 448, columns * 448)
        assert mask.shape == (rows * 32, columns * 32)
    assert over > 500


class FakeImage:
    """Has a size, and no pixels that could be resized."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height


def test_several_pictures_keep_their_own_crops(monkeypatch):
    pictures = [scene(448, 448), scene(900, 500), scene(60, 700)]
    cuts = [cut(Image.fromarray(p)) for p in pictures]
    together = batch(cuts)
    assert together.grids == [(1, 1), (2, 3), (2, 1)]
    theirs = phi4_multimodal_processor(monkeypatch)(pictures)
    assert together.tokens == theirs["num_img_tokens"]
    assert together.tokens[0] == 545
    start = 0
    for image, padded in zip(cuts, theirs["image_pixel_values"], strict=True):
        count = len(image.crops_NCSS)
        own = together.crops_NCSS[start : start + count]
        assert torch.equal(own, image.crops_NCSS)
        assert (own - padded[:count]).abs().max() <= LEVEL * 3.2
        start += count
    assert start == len(together.crops_NCSS)


def test_a_line_is_no_picture():
    with pytest.raises(PhikitError, match=r"1000 × 3 pixels is too long and narrow.*1344 × 4"):
        cut(Image.new("RGB", (1000, 3)))
