"""Augmentations: distributions, identities, gradients of gradients; the pipeline's matrices against images moved by hand."""

import math

import pytest
import torch

from core.errors import UserError
from modules.augment import ada as ada_module
from modules.augment.ada import ADA
from modules.augment.diffaugment import DiffAugment, color, cutout, translation
from modules.losses.penalties import r1_penalty


def test_ada_is_skipped_while_p_is_0():
    images = torch.randn(2, 3, 8, 8)
    assert ADA()(images) is images
    assert torch.equal(ADA()._color(images, 0.0), torch.eye(4).expand(2, 4, 4))


def test_ada_changes_about_as_many_images_as_p_says():
    torch.manual_seed(0)
    images, augment = torch.rand(400, 3, 8, 8), ADA(p=0.05)
    changed = (augment(images) - images).abs().amax((1, 2, 3)) > 1e-4
    unchanged = (1 - 0.05) ** 6 * (1 - 0.025) ** 2 * (1 - 0.05 * 0.75) * (1 - 0.025) ** 2  # of 12 operations, 3 half the time
    assert float((~changed).float().mean()) == pytest.approx(unchanged, abs=0.1)


def test_flips_of_half_of_p(monkeypatch):
    torch.manual_seed(0)
    signs = []
    scale = ada_module._scale
    monkeypatch.setattr(ada_module, "_scale", lambda x, y: signs.append(x) or scale(x, y))
    ADA()._geometry(torch.zeros(20_000, 3, 8, 8), 0.6)
    assert float((signs[0] < 0).float().mean()) == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("p", [0.3, 1.0])
def test_ada_is_differentiable_twice(p):
    augment, images = ADA(p=p), torch.rand(2, 3, 6, 6)
    weight = torch.randn(3, 6, 6, requires_grad=True)

    def critic(values):
        torch.manual_seed(1)
        return (augment(values).square() * weight).sum((1, 2, 3))[:, None]

    r1_penalty(critic, images).backward()
    assert weight.grad.isfinite().all() and weight.grad.any()

    def twice(values):
        torch.manual_seed(1)
        return ada_with_doubles(values).sin()

    def ada_with_doubles(values):
        torch.set_default_dtype(torch.float64)
        try:
            return ADA(p=p).double()(values)
        finally:
            torch.set_default_dtype(torch.float32)

    assert torch.autograd.gradgradcheck(twice, torch.rand(1, 3, 4, 4, dtype=torch.float64, requires_grad=True))


def test_colors_keep_gray_gray_and_have_the_published_distributions():
    """Gray g becomes ± contrast · (g + brightness); what is not gray is rotated, and scaled by contrast · saturation."""
    torch.manual_seed(0)
    matrices = ADA()._color(torch.zeros(20_000, 3, 1, 1), 1.0).double()
    assert torch.allclose(matrices[:, 3], torch.tensor([0.0, 0, 0, 1]).double().expand(20_000, 4), atol=1e-6)
    colors = torch.tensor([[0.0, 0, 0, 1], [1, 1, 1, 1], [1, -1, 0, 1]]).double()
    black, white, red_green = (matrices @ color for color in colors)
    assert torch.allclose(white[:, :1].expand(-1, 3), white[:, :3], atol=1e-5)
    contrast, color = (white - black)[:, 0], (red_green - black)[:, :3]
    angle = torch.atan2(color @ torch.tensor([1.0, 1, -2]).double() / 3**0.5, color @ torch.tensor([1.0, -1, 0]).double())
    saturation = color.norm(dim=1) / 2**0.5 / contrast.abs()
    assert float((contrast < 0).double().mean()) == pytest.approx(0.5, abs=0.02)
    for values, deviation in ((black[:, 0] / contrast, 0.2), (contrast.abs().log2(), 0.5), (saturation.log2(), 1.0)):
        assert float(values.mean()) == pytest.approx(0, abs=0.03) and float(values.std()) == pytest.approx(deviation, rel=0.03)
    assert torch.histc(angle, 8, -math.pi, math.pi).sub(2500).abs().max() < 200


def test_scales_have_the_published_distributions():
    """Rotations and flips leave the singular values: their product is the square of one scale, their ratio of the other."""
    torch.manual_seed(0)
    large, small = torch.linalg.svdvals(ADA()._geometry(torch.zeros(20_000, 3, 32, 32), 1.0)[:, :2, :2]).log2().T
    assert float(((large + small) / 2).std()) == pytest.approx(0.2, rel=0.03)
    assert float(((large - small) / 2).square().mean().sqrt()) == pytest.approx(0.2, rel=0.03)


def test_p_rises_while_the_discriminator_is_sure_and_falls_otherwise():
    augment = ADA(kimg=1.0, interval=2)
    for _ in range(4):
        augment.update(torch.full((5, 1), 3.0))
    assert augment.p == pytest.approx(0.02) and augment.overfitting == 1  # 20 images of 1,000
    for _ in range(2):
        augment.update(torch.tensor([[1.0], [-1.0], [1.0], [1.0], [-1.0]]))
    assert augment.overfitting == pytest.approx(0.2) and augment.p == pytest.approx(0.01)
    for _ in range(8):
        augment.update(torch.full((5, 1), -1.0))
    assert augment.p == 0


def test_p_counts_the_images_of_all_ranks():
    augment = ADA(kimg=1.0, interval=1)
    augment.update(torch.full((5, 1), 3.0), lambda values: values, ranks=3)
    assert augment.p == pytest.approx(0.015)


def test_images_count_and_not_their_logits():
    """Discriminators of patches give several logits for an image."""
    one, many = ADA(kimg=1.0, interval=1), ADA(kimg=1.0, interval=1)
    one.update(torch.full((5, 1), 3.0))
    many.update(torch.full((5, 2, 5), 3.0))
    assert float(one.p) == float(many.p) == pytest.approx(5 / 1000)
    many.update(torch.tensor([[1.0, 1, 1, -1], [-1.0, -1, -1, 1]]))
    assert float(many.overfitting) == 0


def test_state_of_the_controller_is_kept():
    first, second = ADA(kimg=1.0, interval=4), ADA(kimg=1.0, interval=4)
    for _ in range(6):
        first.update(torch.full((5, 1), 3.0))
    second.load_state_dict(first.state_dict())
    for augment in (first, second):
        for _ in range(2):
            augment.update(torch.full((5, 1), 3.0))
    assert first.p == second.p == pytest.approx(0.04)


def test_geometry_moves_images_as_whole_pixels_do(monkeypatch):
    """With only the flip, the quarter turn and the whole shift the pipeline permutes pixels, without blur."""
    torch.manual_seed(0)
    augment, images = ADA(p=1.0), torch.rand(30, 3, 16, 16)
    monkeypatch.setattr(augment, "_color", lambda images, p: torch.eye(4).repeat(len(images), 1, 1))
    plain = augment._geometry

    def whole(images, p):
        monkeypatch.setattr(torch, "randn", lambda *size, **options: torch.zeros(*size, **options))
        rotation = ada_module._rotation
        quarter = lambda angles: rotation((angles / (math.pi / 2)).round() * (math.pi / 2))  # noqa: E731
        monkeypatch.setattr(ada_module, "_rotation", quarter)
        return plain(images, p)

    monkeypatch.setattr(augment, "_geometry", whole)
    moved = augment(images)
    values = images.flatten(1)
    inside = (moved.flatten(1)[:, :, None] - values[:, None]).abs().amin(2)
    assert inside.max() < 1e-4


def test_diffaugment_color_written_out():
    torch.manual_seed(0)
    images = torch.rand(3, 3, 4, 4)
    torch.manual_seed(1)
    b, s, c = torch.rand(3, 3, 1, 1, 1)
    torch.manual_seed(1)
    result = color(images)
    for n in range(3):
        image = images[n] + (b[n] - 0.5)
        gray = (image[0] + image[1] + image[2]) / 3
        image = (image - gray) * (2 * s[n]) + gray
        assert torch.allclose(result[n], (image - image.mean()) * (0.5 + c[n]) + image.mean(), atol=1e-6)


def test_translation_moves_by_up_to_an_eighth_and_fills_with_zeros():
    torch.manual_seed(0)
    image = torch.arange(1.0, 257).view(1, 1, 16, 16).expand(200, 3, -1, -1)
    moved, shifts = translation(image), set()
    for picture in moved[:, 0]:
        row, column = (picture == 120).nonzero()[0].tolist()  # the pixel (7, 7)
        dy, dx = row - 7, column - 7
        expected = torch.zeros(16, 16)
        source = image[0, 0][max(0, -dy) : 16 - max(0, dy), max(0, -dx) : 16 - max(0, dx)]
        expected[max(0, dy) : 16 - max(0, -dy), max(0, dx) : 16 - max(0, -dx)] = source
        assert torch.equal(picture, expected)
        shifts |= {dy, dx}
    assert shifts == {-2, -1, 0, 1, 2}


def test_cutout_is_one_square_of_half_the_side():
    torch.manual_seed(0)
    holes = cutout(torch.ones(300, 3, 16, 16))[:, 0] == 0
    full = holes.sum((1, 2))
    assert full.max() == 64 and full.min() >= 16
    for hole in holes[:50]:
        rows, columns = hole.any(1), hole.any(0)
        assert torch.equal(hole, rows[:, None] & columns[None])


@pytest.mark.parametrize("side", [20, 32])
def test_zeros_of_translation_and_cutout_are_as_many_as_expected(side):
    """Means over 10,000 draws against sums over all shifts and all centers."""
    torch.manual_seed(0)
    images, reach, size = torch.ones(10_000, 1, side, side), int(side / 8 + 0.5), side // 2
    kept = sum(side - abs(shift) for shift in range(-reach, reach + 1)) / (2 * reach + 1) / side
    lengths = [min(side, center + size // 2) - max(0, center - size // 2) for center in range(side + 1)]
    for operation, zeros in ((translation, 1 - kept**2), (cutout, (sum(lengths) / (side + 1) / side) ** 2)):
        assert float((operation(images) == 0).float().mean()) == pytest.approx(zeros, abs=0.005)
    if side == 32:  # published arithmetic: 0.134066 and 0.186467
        assert 1 - kept**2 == pytest.approx(0.134066, abs=1e-6)
        assert (sum(lengths) / (side + 1) / side) ** 2 == pytest.approx(0.186467, abs=1e-6)


def test_diffaugment_color_keeps_gray_constants_and_has_exact_gradients():
    torch.manual_seed(0)
    moved = color(torch.full((5, 3, 4, 4), 0.3))
    assert torch.allclose(moved, moved[:, :1, :1, :1].expand_as(moved), atol=1e-6)  # only the brightness acts
    assert (moved - 0.3).abs().max() <= 0.5 and moved[:, 0, 0, 0].unique().numel() == 5

    def repeated(images):
        torch.manual_seed(1)
        return color(images)

    assert torch.autograd.gradcheck(repeated, torch.rand(2, 3, 2, 2, dtype=torch.float64, requires_grad=True))


def test_policies():
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(DiffAugment("")(images), images)
    with pytest.raises(UserError, match="policy: unknown operation 'colour'; allowed are .*color"):
        DiffAugment("colour")
    weight = torch.randn(3, 8, 8, requires_grad=True)
    r1_penalty(lambda values: (DiffAugment()(values).square() * weight).sum((1, 2, 3))[:, None], images).backward()
    assert weight.grad.any()
