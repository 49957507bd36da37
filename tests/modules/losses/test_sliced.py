import pytest
import torch

from modules.losses.sliced import patch_directions, sliced_wasserstein


def by_hand(image, references, directions):
    """Mean over directions of the 1-Wasserstein distance between the projections, by loops over patches."""

    def projections(images, direction):
        p = direction.shape[-1]
        return sorted(
            float((image[:, y : y + p, x : x + p] * direction).sum())
            for image in images
            for y in range(image.shape[1] - p + 1)
            for x in range(image.shape[2] - p + 1)
        )

    distances = []
    for direction in directions:
        own, others = projections(image.unsqueeze(0), direction), projections(references, direction)
        distances.append(sum(abs(a - b) for a, b in zip(own, others, strict=True)) / len(own))
    return sum(distances) / len(distances)


def noise(*shape):
    return torch.rand(*shape) * 2 - 1


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_directions_are_unit_vectors():
    directions = patch_directions(50, 3)
    assert directions.shape == (50, 3, 3, 3)
    torch.testing.assert_close(directions.flatten(1).square().sum(1), torch.ones(50))


def test_it_equals_sorting_by_hand():
    images, reference, directions = noise(2, 3, 6, 7), noise(1, 3, 6, 7), patch_directions(4, 3)
    found = sliced_wasserstein(images, reference, directions)
    assert found.tolist() == pytest.approx([by_hand(image, reference, directions) for image in images], rel=1e-4)


def test_identical_images_have_distance_zero():
    images = noise(1, 3, 8, 8)
    assert sliced_wasserstein(images, images, patch_directions(8, 3)) == 0


def test_the_order_of_patches_does_not_matter():
    pixels, directions = noise(1, 3, 1, 40), patch_directions(8, 1)
    assert sliced_wasserstein(pixels[..., torch.randperm(40)], pixels, directions) < 1e-6
    assert sliced_wasserstein(pixels.flip(1), pixels, directions) > 0.05  # other patches, the same numbers


def test_other_images_are_farther_than_the_same():
    base = noise(1, 3, 12, 12) * 0.1
    directions = patch_directions(16, 3)
    assert sliced_wasserstein(base + 0.5, base, directions) > sliced_wasserstein(base + 0.1, base, directions) > 0.05


@pytest.mark.parametrize(("own", "others"), [((12, 9), (1, 5, 8)), ((5, 6), (2, 9, 9)), ((6, 6), (1, 7, 6))])
def test_unequal_numbers_of_patches(own, others):
    """A constant image is at the same distance whatever the numbers are."""
    directions = patch_directions(6, 3)
    image, references = torch.full((1, 3, *own), 0.4), torch.full((others[0], 3, *others[1:]), 0.1)
    expected = 0.3 * directions.sum((1, 2, 3)).abs().mean()
    torch.testing.assert_close(sliced_wasserstein(image, references, directions)[0], expected)


def test_the_gradient_leads_down():
    image, reference = noise(1, 3, 8, 8).requires_grad_(), noise(1, 3, 10, 9) * 0.2
    directions = patch_directions(16, 3)
    before = sliced_wasserstein(image, reference, directions)
    (gradient,) = torch.autograd.grad(before, image)
    after = sliced_wasserstein((image - 5 * gradient).detach(), reference, directions)
    assert after < before
