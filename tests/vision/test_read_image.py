"""Pictures in every mode that files have, and files that are none."""

import io

import numpy as np
import pytest
from picture_files import scene
from PIL import Image

from phikit.chat.images.hd import cut
from phikit.chat.images.read import read_image
from phikit.errors import PhikitError

# EXIF's mark → how an upright picture is stored under it (its line 0 is the visual ... side)
STORED = {
    1: lambda x: x,
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: x.swapaxes(0, 1),  # left, from the top
    6: lambda x: np.rot90(x, 1),  # right, from the top
    7: lambda x: np.rot90(x, 2).swapaxes(0, 1),  # right, from below
    8: lambda x: np.rot90(x, 3),  # left, from below
}
RED, WHITE = (200, 30, 40), (255, 255, 255)


def through_file(image: Image.Image, path, **options) -> np.ndarray:
    image.save(path, **options)
    got = read_image(path)
    assert got.mode == "RGB"
    return np.asarray(got)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "YCbCr", "LAB"])
def test_colour_modes_become_rgb(tmp_path, mode):
    image = Image.fromarray(scene(50, 40)).convert(mode)
    suffix = "png" if mode in ("RGB", "L", "1", "P") else "tif"
    got = through_file(image, tmp_path / f"x.{suffix}")
    assert np.array_equal(got, np.asarray(image.convert("RGB")))


def test_transparency_is_laid_on_white(tmp_path):
    """Under full transparency files hold arbitrary colours, which must not show."""
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (*RED, 255)
    rgba[0, 1] = (*RED, 0)
    rgba[1, 0] = (0, 0, 0, 0)
    rgba[1, 1] = (0, 0, 0, 51)  # a fifth black
    got = through_file(Image.fromarray(rgba), tmp_path / "x.png")
    assert got.reshape(4, 3).tolist() == [list(RED), [255] * 3, [255] * 3, [204] * 3]
    grey = np.asarray(read_image(Image.fromarray(rgba).convert("LA")))
    assert grey[0, 1].tolist() == [255] * 3
    assert grey[1, 1].tolist() == [204] * 3


def test_palettes_with_a_transparent_colour(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, 0, 0, 255])
    image.putpixel((1, 0), 1)
    for suffix in ("png", "gif"):
        got = through_file(image, tmp_path / f"x.{suffix}", transparency=1)
        assert got[0].tolist() == [list(RED), list(WHITE)]


def test_sixteen_bits_are_scaled_not_cut(tmp_path):
    wide = np.array([[0, 128, 257, 32768, 65535]], np.uint16)
    for suffix in ("png", "tif"):
        got = through_file(Image.fromarray(wide), tmp_path / f"x.{suffix}")
        assert got[0, :, 0].tolist() == [0, 0, 1, 128, 255]
        assert (got == got[..., :1]).all()


def test_samples_of_unknown_scale_are_refused(tmp_path):
    Image.fromarray(np.array([[0.5, 2.0]], np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(PhikitError, match=r"f\.tif: the samples are floating-point"):
        read_image(tmp_path / "f.tif")
    Image.fromarray(np.array([[0, 70000]], np.int32)).save(tmp_path / "i.tif")
    with pytest.raises(PhikitError, match=r"i\.tif: the samples go from 0 to 70000"):
        read_image(tmp_path / "i.tif")


@pytest.mark.parametrize("mark", range(1, 9))
def test_photographs_are_set_upright(tmp_path, mark):
    upright = scene(60, 30)
    stored = STORED[mark](upright)
    exif = Image.Exif()
    exif[0x0112] = mark
    got = through_file(Image.fromarray(np.ascontiguousarray(stored)), tmp_path / "x.png", exif=exif)
    assert np.array_equal(got, upright)
    assert cut(read_image(tmp_path / "x.png")).grid == (1, 1)


def test_the_first_of_several_pictures(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, (0, 0, 0))]
    got = through_file(frames[0], tmp_path / "x.webp", save_all=True, append_images=frames[1:],
                       lossless=True)  # fmt: skip
    assert (got == RED).all()


def test_bytes_and_open_images_are_taken_too():
    image = Image.fromarray(scene(20, 10))
    held = io.BytesIO()
    image.save(held, "PNG")
    assert np.array_equal(np.asarray(read_image(held.getvalue())), np.asarray(image))
    assert np.array_equal(np.asarray(read_image(image)), np.asarray(image))


def test_what_is_no_picture_is_said_so(tmp_path):
    whole = tmp_path / "whole.jpg"
    Image.fromarray(scene(300, 200)).save(whole)
    (tmp_path / "cut.jpg").write_bytes(whole.read_bytes()[:1500])
    with pytest.raises(PhikitError, match=r"cut\.jpg: the picture is damaged or cut short"):
        read_image(tmp_path / "cut.jpg")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(PhikitError, match=r"text\.png: no picture in a format"):
        read_image(tmp_path / "text.png")
    with pytest.raises(PhikitError, match=r"no such file: .*absent\.png"):
        read_image(tmp_path / "absent.png")
    with pytest.raises(PhikitError, match="reading"):
        read_image(tmp_path)


def test_a_bomb_is_refused(tmp_path, monkeypatch):
    Image.new("1", (3000, 3000)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    with pytest.raises(PhikitError, match=r"bomb\.png: the picture has more than"):
        read_image(tmp_path / "bomb.png")


def test_without_pillow_the_way_out_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(PhikitError, match=r"(?s)needs Pillow.*\[multimodal\]"):
        read_image("x.png")
