import torch

from modules.ops.images import from_uint8, image_grid, luma, resize, to_uint8


def test_bytes_are_clamped_and_rounded():
    images = torch.tensor([-1.5, -1.0, -0.999, 0.0, 0.999, 1.0, 1.2])
    assert to_uint8(images).tolist() == [0, 0, 0, 128, 255, 255, 255]


def test_every_byte_survives_the_round_trip():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(levels)), levels)


def test_grid_places_images_row_by_row_with_white_between():
    images = torch.stack([torch.full((3, 4, 5), -0.2 * i) for i in range(3)])
    grid = image_grid(images, columns=2, gap=2)
    assert grid.shape == (3, 10, 12)
    assert (grid[:, :4, 7:] == -0.2).all() and (grid[:, 6:, :5] == -0.4).all()
    assert (grid[:, 6:, 7:] == 1).all() and (grid[:, 4:6] == 1).all()


def test_resize_keeps_constants_and_range_and_returns_the_same_size_untouched():
    images = torch.rand(1, 3, 9, 7) * 2 - 1
    assert resize(images, (9, 7)) is images
    assert resize(torch.full((1, 3, 9, 7), 0.25), (4, 20)).sub(0.25).abs().max() < 1e-6
    stripes = torch.ones(1, 3, 16, 16)
    stripes[..., ::2] = -1
    assert resize(stripes, (40, 40)).abs().max() <= 1


def test_shrinking_is_antialiased():
    stripes = torch.ones(1, 3, 16, 64)
    stripes[..., ::2] = -1
    assert resize(stripes, (4, 16)).abs().mean() < 0.1


def test_luma_weights():
    colors = torch.eye(3).view(3, 3, 1, 1)
    assert torch.allclose(luma(colors).flatten(), torch.tensor([0.299, 0.587, 0.114]))
