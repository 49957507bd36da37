import pytest
import torch

from modules.ops.nearest import extract
from modules.patches.mosaic import PatchGrid, center_weights, paint, pixel_sources, source_picture, surroundings

SIZES = [(6, 8), (5, 5), (9, 4)]


def images():
    torch.manual_seed(0)
    return [torch.rand(3, *size) * 2 - 1 for size in SIZES]


def test_numbers_follow_extract_and_locate_inverts_index():
    grid, patches = PatchGrid(SIZES, 3), torch.cat([extract(image.unsqueeze(0), 3)[0] for image in images()])
    assert grid.num_patches == len(patches)
    positions = grid.locate(torch.arange(grid.num_patches))
    for number, (image, top, left) in enumerate(positions.T.tolist()):
        assert torch.equal(patches[number], images()[image][:, top : top + 3, left : left + 3].flatten())
    assert torch.equal(grid.index(positions), torch.arange(grid.num_patches))


def test_places_outside_mean_the_nearest_patch():
    grid = PatchGrid(SIZES, 3)
    outside = torch.tensor([[0, 0, 1, 2], [-4, 99, 1, 7], [2, 99, -1, 0]])
    assert grid.locate(grid.index(outside)).T.tolist() == [[0, 0, 2], [0, 3, 5], [1, 1, 0], [2, 6, 0]]


def test_untouched_patches_have_no_pixel_in_a_hole():
    grid, holes = PatchGrid(SIZES, 3), [torch.zeros(size) for size in SIZES]
    holes[0][2, 3] = 1
    holes[2][8, 0] = 1
    expected = [
        number
        for number, (image, top, left) in enumerate(grid.locate(torch.arange(grid.num_patches)).T.tolist())
        if holes[image][top : top + 3, left : left + 3].sum() == 0
    ]
    assert grid.untouched(holes).tolist() == expected and len(expected) == grid.num_patches - 9 - 1


def test_weights_are_those_of_the_released_code():
    weights = center_weights(7)
    assert weights[3, 3] == 1 and weights[0, 3] == pytest.approx(0.84, abs=0.005)
    assert weights[6, 0] == pytest.approx(0.71, abs=0.005)
    assert center_weights(1).tolist() == [[1.0]]


def test_painting_is_the_weighted_mean_of_overlapping_patches():
    grid, given, weights = PatchGrid(SIZES, 3), images(), center_weights(3)
    matches = torch.randint(grid.num_patches, (4, 5), generator=torch.Generator().manual_seed(1))
    total, mass = torch.zeros(3, 6, 7), torch.zeros(6, 7)
    for y in range(4):
        for x in range(5):
            image, top, left = grid.locate(matches[y, x]).tolist()
            total[:, y : y + 3, x : x + 3] += weights * given[image][:, top : top + 3, left : left + 3]
            mass[y : y + 3, x : x + 3] += weights
    torch.testing.assert_close(paint(matches, given, grid, weights), total / mass)


def test_a_mosaic_of_its_own_patches_is_the_image_and_every_pixel_its_own_source():
    grid = PatchGrid(SIZES, 3)
    own = grid.starts[1] + torch.arange(9).view(3, 3)
    torch.testing.assert_close(paint(own, images(), grid, center_weights(3)), images()[1])
    sources = pixel_sources(own, grid)
    rows, columns = torch.meshgrid(torch.arange(5), torch.arange(5), indexing="ij")
    assert torch.equal(sources, torch.stack([torch.ones(5, 5, dtype=torch.long), rows, columns]))


def test_pixel_sources_are_those_of_the_patch_centred_on_the_pixel():
    grid = PatchGrid([(9, 9)], 3)
    matches = torch.randint(grid.num_patches, (4, 6), generator=torch.Generator().manual_seed(1))
    sources = pixel_sources(matches, grid)
    assert sources.shape == (3, 6, 8)
    assert sources[:, 2, 5].tolist() == [0, int(matches[1, 4]) // 7 + 1, int(matches[1, 4]) % 7 + 1]
    assert sources[:, 0, 0].tolist() == [0, int(matches[0, 0]) // 7, int(matches[0, 0]) % 7]


def test_the_source_picture_has_a_hue_for_each_image_and_is_in_range():
    sources = torch.zeros(3, 4, 8, dtype=torch.long)
    sources[0, :, 4:] = 2
    picture = source_picture(sources, SIZES)
    assert picture.shape == (3, 4, 8) and picture.min() >= -1 and picture.max() <= 1
    assert (picture[:, 0, 0] - picture[:, 0, 7]).abs().max() > 0.5


def test_surroundings_keep_what_is_known_and_fill_smoothly():
    torch.manual_seed(0)
    image, hole = torch.rand(2, 3, 11, 14), torch.zeros(2, 1, 11, 14)
    hole[:, :, 3:8, 2:9] = 1
    filled = surroundings(image, hole)
    assert torch.equal(filled * (1 - hole), image * (1 - hole))
    inside = filled[hole.expand_as(filled) > 0]
    assert inside.min() >= image.min() and inside.max() <= image.max() and inside.std() < image.std() / 2
    flat = surroundings(torch.full_like(image, 0.3) + hole, hole)  # what was in the hole does not matter
    torch.testing.assert_close(flat, torch.full_like(image, 0.3))
    assert torch.equal(surroundings(image, torch.zeros_like(hole)), image)
    assert surroundings(image, torch.ones_like(hole)).isfinite().all()
