"""Files of every mode, masks, working sizes: what tasks do before they ask a model."""

import math
import os
import warnings

import pytest
import torch
from PIL import Image

from modules.base import GenerativeModule
from tasks.inputs import (
    blend,
    blending_mask,
    dilate,
    feathered_mask,
    read_image,
    read_masked,
    working_size,
)


class Model(GenerativeModule):
    image_size = (24, 32)


def saved(folder, image: Image.Image, name: str = "image.png", **options) -> str:
    image.save(folder / name, **options)
    return str(folder / name)


def gray16(values: list[int]) -> Image.Image:
    return Image.frombytes("I;16", (len(values), 1), b"".join(v.to_bytes(2, "little") for v in values))


def rgba() -> Image.Image:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (255, 0, 0, 0))
    return image


def palette_with_transparency() -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    image.info["transparency"] = 1
    return image


@pytest.mark.parametrize(
    ("image", "name", "first", "second"),
    [
        (rgba(), "a.png", (1, -1, -1), (1, 1, 1)),
        (palette_with_transparency(), "a.png", (1, -1, -1), (1, 1, 1)),
        (palette_with_transparency(), "a.gif", (1, -1, -1), (1, 1, 1)),
        (Image.frombytes("L", (2, 1), bytes([0, 255])), "a.bmp", (-1, -1, -1), (1, 1, 1)),
        (Image.frombytes("LA", (2, 1), bytes([0, 255, 0, 0])), "a.png", (-1, -1, -1), (1, 1, 1)),
        (Image.frombytes("1", (2, 1), bytes([0b01000000])), "a.png", (-1, -1, -1), (1, 1, 1)),
        (Image.new("CMYK", (2, 1), (0, 255, 255, 0)), "a.tif", (1, -1, -1), (1, -1, -1)),
        (gray16([0, 65535]), "a.png", (-1, -1, -1), (1, 1, 1)),
        (gray16([16384, 65535]), "a.tif", (-0.49999, -0.49999, -0.49999), (1, 1, 1)),
        (Image.new("F", (2, 1), 0.75), "a.tif", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ],
)
def test_every_mode(tmp_path, image, name, first, second):
    pixels = read_image(saved(tmp_path, image, name))
    assert pixels.shape == (1, 3, 1, 2) and pixels.dtype == torch.float32
    torch.testing.assert_close(pixels[0, :, 0].T, torch.tensor([first, second], dtype=torch.float32), rtol=0, atol=1e-4)


def test_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90° clockwise
    image = Image.new("RGB", (4, 2), "black")
    image.putpixel((0, 0), (255, 255, 255))
    pixels = read_image(saved(tmp_path, image, exif=exif))
    assert pixels.shape == (1, 3, 4, 2)
    assert pixels[0, :, 0, 1].tolist() == [1, 1, 1] and pixels.sum() == 3 - 3 * 7


def test_unreadable_files(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    good = saved(tmp_path, Image.new("RGB", (64, 64)))
    (tmp_path / "cut.png").write_bytes(open(good, "rb").read()[:-30])
    beyond = saved(tmp_path, Image.frombytes("I", (1, 1), (70000).to_bytes(4, "little")), "beyond.tif")
    with pytest.raises(FileNotFoundError, match=r"task.image=.*imag.png: no such file. Did you mean .*image.png"):
        read_image(str(tmp_path / "imag.png"))
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_image(str(tmp_path / "nowhere" / "imag.png"))
    for path, message in (
        (tmp_path, "is a folder"),
        (tmp_path / "text.png", "task.image=.*text.png: not an image"),
        (tmp_path / "cut.png", "cut.png: not an image that can be read"),
        (beyond, "gray values 70000 to 70000 are outside the supported range 0 to 65535"),
    ):
        with pytest.raises(ValueError, match=message):
            read_image(str(path))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((480, 640), (24, 32)),
        ((640, 480), (32, 24)),
        ((10, 40), (24, 96)),
        ((1000, 999), (24, 24)),
        ((300, 455), (24, 36)),
    ],
)
def test_working_size_gives_the_shorter_side_of_the_model_and_keeps_the_aspect(given, expected):
    assert working_size(given, (24, 32)) == expected


def test_working_size_on_demand():
    assert working_size((480, 640), (24, 32), [30, 20]) == (30, 20)
    assert working_size((5, 500), (24, 32), [30, 20]) == (30, 20)
    with pytest.raises(ValueError, match=r"500×5 pixels .* aspect of 16:1"):
        working_size((5, 500), (24, 32))


def mask_file(folder, width: int, height: int, box=(0, 0, 0, 0), value=255, mode="L", name="mask.png") -> str:
    image = Image.new(mode, (width, height), 0)
    image.paste(value, box)
    return saved(folder, image, name)


def test_mask_follows_the_image(tmp_path):
    image = saved(tmp_path, Image.new("RGB", (64, 48)))
    prepared, mask = read_masked(image, mask_file(tmp_path, 64, 48, (16, 8, 32, 24)), Model(), None)
    expected = torch.zeros(24, 32)
    expected[4:12, 8:16] = 1
    assert prepared.shape == (1, 3, 24, 32) and torch.equal(mask, expected[None, None])
    for width, height in ((128, 96), (32, 24), (130, 96)):  # another size of the same aspect, or nearly
        box = (width // 4, height // 6, width // 2, height // 2)
        _, resized = read_masked(image, mask_file(tmp_path, width, height, box), Model(), None)
        assert (resized - mask).abs().mean() < 0.04 and set(resized.unique().tolist()) == {0.0, 1.0}
    with pytest.raises(ValueError, match="mask.png is 48×64 pixels .*image.png is 64×48"):
        read_masked(image, mask_file(tmp_path, 48, 64, (0, 0, 9, 9)), Model(), None)


def test_a_thin_line_survives_shrinking(tmp_path):
    image = saved(tmp_path, Image.new("RGB", (640, 480)))
    _, mask = read_masked(image, mask_file(tmp_path, 640, 480, (100, 0, 101, 480)), Model(), None)
    assert mask[0, 0].sum(0).tolist() == [24.0 if column == 5 else 0.0 for column in range(32)]


@pytest.mark.filterwarnings("ignore:.*gray")
@pytest.mark.parametrize(
    ("mode", "value"), [("RGB", (255, 255, 255)), ("RGBA", (255, 255, 255, 255)), ("1", 1), ("L", 128)]
)
def test_mask_modes(tmp_path, mode, value):
    image = saved(tmp_path, Image.new("RGB", (32, 24)))
    _, mask = read_masked(image, mask_file(tmp_path, 32, 24, (0, 0, 16, 24), value, mode), Model(), None)
    assert mask[0, 0, :, :16].eq(1).all() and mask[0, 0, :, 16:].eq(0).all()  # nothing painted (transparent) is black


def test_mask_warnings(tmp_path):
    image = saved(tmp_path, Image.new("RGB", (32, 24)))
    with pytest.warns(UserWarning, match="nothing is masked, its brightest value is 1 of 255"):
        _, mask = read_masked(image, mask_file(tmp_path, 32, 24, (0, 0, 16, 24), value=1), Model(), None)
    assert mask.sum() == 0
    with pytest.warns(UserWarning, match="97% of the image is masked.*invert"):
        read_masked(image, mask_file(tmp_path, 32, 24, (0, 0, 31, 24)), Model(), None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_masked(image, mask_file(tmp_path, 32, 24, (0, 0, 28, 24)), Model(), None)


def test_a_photograph_given_as_mask_gets_a_warning_with_the_share_of_gray(tmp_path):
    image = saved(tmp_path, Image.new("RGB", (32, 24)))
    ramp = Image.frombytes("L", (32, 24), bytes(range(0, 256, 8)) * 24)
    for mode in ("L", "RGB"):
        mask = saved(tmp_path, ramp.convert(mode), "ramp.png")
        with pytest.warns(UserWarning, match="task.mask=.*ramp.png: 91% of its pixels are gray, as in a photograph"):
            read_masked(image, mask, Model(), None)
    soft = Image.new("L", (32, 24))
    soft.paste(255, (8, 8, 16, 16))
    soft.paste(128, (8, 8, 9, 16))  # smooth edges are no photograph
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_masked(image, saved(tmp_path, soft, "soft.png"), Model(), None)


def test_names_that_are_not_utf8(tmp_path):
    """Linux names are bytes; Python stands for one that is not UTF-8 by a surrogate."""
    path = tmp_path / os.fsdecode(b"a\xe9.png")
    Image.new("RGB", (2, 1), "red").save(str(path))
    assert read_image(str(path))[0, :, 0, 0].tolist() == [1, -1, -1]
    with pytest.raises(FileNotFoundError, match="no such file. Did you mean a"):
        read_image(str(tmp_path / os.fsdecode(b"a\xea.png")))


def reference_blend(mask: torch.Tensor, radius: int, sigma: float) -> torch.Tensor:
    """Disk, Gaussian and stretch by loops over pixels; borders repeated."""
    height, width = mask.shape
    inside = [(y, x) for y in range(height) for x in range(width) if mask[y, x]]
    grown = [
        [any((y - a) ** 2 + (x - b) ** 2 <= radius**2 for a, b in inside) for x in range(width)] for y in range(height)
    ]
    reach = math.ceil(3 * sigma)
    offsets = [(dy, dx) for dy in range(-reach, reach + 1) for dx in range(-reach, reach + 1)]
    weights = [math.exp(-(dy * dy + dx * dx) / (2 * sigma**2)) for dy, dx in offsets]
    soft = torch.zeros(height, width)
    for y in range(height):
        for x in range(width):
            near = [grown[min(max(y + dy, 0), height - 1)][min(max(x + dx, 0), width - 1)] for dy, dx in offsets]
            soft[y, x] = sum(w for w, hit in zip(weights, near, strict=True) if hit) / sum(weights)
    return (soft - soft.min()) / (soft.max() - soft.min())


@pytest.mark.parametrize(("dilation", "blur", "radius", "sigma"), [(70.0, 15.0, 7, 1.5), (20.0, 10.0, 2, 1.0)])
def test_blending_mask(dilation, blur, radius, sigma):
    mask = torch.zeros(1, 1, 20, 25)  # a tenth of the side for which radius and sigma are stated
    mask[0, 0, 3:5, 2:4] = 1
    mask[0, 0, 15, 6] = 1
    soft = blending_mask(mask, dilation, blur)
    torch.testing.assert_close(soft[0, 0], reference_blend(mask[0, 0], radius, sigma), rtol=0, atol=1e-5)
    assert soft.max() == 1 and (soft == 0).any()


def test_blending_mask_of_nothing_and_of_everything():
    assert blending_mask(torch.zeros(1, 1, 20, 25), 20, 5).sum() == 0
    assert blending_mask(torch.ones(1, 1, 20, 25), 20, 5).min() == 1
    mask = torch.zeros(1, 1, 20, 25)
    mask[0, 0, 4, 4] = 1
    assert torch.equal(blending_mask(mask, 0, 0), mask)
    assert torch.equal(dilate(mask, 0), mask)


def test_feathered_mask_is_whole_inside_and_exactly_zero_far_away():
    mask = torch.zeros(1, 1, 50, 50)
    mask[0, 0, 20:25, 20:25] = 1
    soft = feathered_mask(mask, 10.0)  # sigma 2 here: six pixels of full cover and six of falling
    assert (soft[mask > 0] == 1).all()
    assert (soft[0, 0, 22, :8] == 0).all() and (soft[0, 0, 22, 38:] == 0).all()
    assert (soft[0, 0, 22, 12:20].diff() >= 0).all() and 0 < soft[0, 0, 22, 14] < 1


def test_blend_is_exact_at_both_ends():
    image, changed = torch.rand(1, 3, 4, 4), torch.rand(2, 3, 4, 4)
    assert torch.equal(blend(torch.zeros(1, 1, 4, 4), changed, image), image.expand(2, -1, -1, -1))
    assert torch.equal(blend(torch.ones(1, 1, 4, 4), changed, image), changed)
