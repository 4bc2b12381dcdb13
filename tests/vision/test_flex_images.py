"""Patches for phi-4-reasoning-vision against transformers' SigLIP 2 processor."""

import numpy as np
import pytest
import torch
from picture_files import figure, photograph, rendered_page, scene
from PIL import Image

from phikit.chat.images.naflex import FlexRule, batch, choose_grid, cut
from phikit.chat.images.read import read_image

transformers = pytest.importorskip("transformers")


def wanted_patches(width: int, height: int) -> int:
    """The published processor's rule, which it gives to SigLIP 2's as the number of patches."""
    return min(max((height // 16) * (width // 16), 1, 256), 3600)


def check(image: Image.Image) -> None:
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    got = cut(image)
    out = Siglip2ImageProcessorPil(
        patch_size=16, max_num_patches=wanted_patches(*image.size)
    )(image, return_tensors="pt")  # fmt: skip
    assert out["spatial_shapes"].tolist() == [list(got.grid)]
    count = got.tokens
    assert out["pixel_attention_mask"].sum() == count == got.grid[0] * got.grid[1] <= 3600
    torch.testing.assert_close(got.patches_LV, out["pixel_values"][0, :count].float(), rtol=0,
                               atol=2e-7)  # fmt: skip


def test_a_rendered_page_and_figures(tmp_path):
    for path in (rendered_page(tmp_path), figure(tmp_path), figure(tmp_path, 12, 2.1)):
        check(read_image(path))


@pytest.mark.parametrize(
    "width, height",
    [(256, 256), (255, 257), (100, 90), (1, 1), (333, 517), (1200, 800), (20, 900), (3000, 40),
     (960, 960), (961, 959)],
)  # fmt: skip
def test_sizes_and_shapes(tmp_path, width, height):
    check(read_image(photograph(tmp_path, width, height)))


@pytest.mark.slow
@pytest.mark.parametrize("width, height", [(4000, 3000), (300, 9000)])
def test_large_pictures(tmp_path, width, height):
    image = read_image(photograph(tmp_path, width, height))
    check(image)
    assert 3300 < cut(image).tokens <= 3600


def test_grids_are_the_references_for_every_shape():
    from transformers.models.siglip2 import image_processing_pil_siglip2 as reference

    rng = np.random.default_rng(0)
    sizes = [tuple(map(int, pair)) for pair in np.exp(rng.uniform(0, 10, (3000, 2)))]
    sizes += [(16 * c + d, 16 * r + e) for c in (1, 16, 17, 60, 61, 225) for r in (1, 16, 60, 225)
              for d in (-1, 0, 1) for e in (-1, 0, 1)]  # fmt: skip
    for width, height in sizes:
        expected = reference.get_image_size_for_max_num_patches(
            height, width, 16, wanted_patches(width, height)
        )
        rows, columns = choose_grid(width, height, FlexRule())
        assert (rows * 16, columns * 16) == expected, (width, height)


def test_several_pictures_are_filled_up_to_the_longest():
    images = [cut(Image.fromarray(scene(w, h))) for w, h in ((300, 200), (640, 400), (10, 10))]
    together = batch(images)
    assert list(together.grids) == [image.grid for image in images]
    longest = max(image.tokens for image in images)
    assert together.patches_NLV.shape == (3, longest, 768)
    for n, image in enumerate(images):
        assert together.valid_NL[n].sum() == image.tokens
        assert torch.equal(together.patches_NLV[n, together.valid_NL[n]], image.patches_LV)


def test_patches_hold_lines_of_pixels_of_colours():
    """The order within a patch, by hand: from it the tower's matrix was learned."""
    picture = np.zeros((256, 256, 3), np.uint8)
    picture[16:32, 48:64] = np.arange(768).reshape(16, 16, 3) % 251
    got = cut(Image.fromarray(picture))
    assert got.grid == (16, 16)
    values = (got.patches_LV * 127.5 + 127.5).round()
    assert torch.equal(values[16 + 3], torch.arange(768) % 251.0)
    assert values.sum() == values[16 + 3].sum()
