import pytest
import torch
from torch import Tensor

from core.errors import UserError
from metrics.copied_regions import copied_shares, largest_region, shrink


def flood(labels: list[list[int]]) -> int:
    """Largest region by flooding, cell by cell."""
    height, width, seen, largest = len(labels), len(labels[0]), set(), 0
    for start in [(y, x) for y in range(height) for x in range(width)]:
        stack, size = [start], 0
        while stack:
            y, x = stack.pop()
            if (y, x) in seen or labels[y][x] < 0:
                continue
            seen.add((y, x))
            size += 1
            near = [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
            stack += [(b, a) for b, a in near if 0 <= b < height and 0 <= a < width and labels[b][a] == labels[y][x]]
        largest = max(largest, size)
    return largest


def test_largest_region_equals_flooding() -> None:
    torch.manual_seed(0)
    labels = torch.randint(-1, 2, (30, 7, 9))
    assert largest_region(labels).tolist() == [flood(one.tolist()) for one in labels]
    snake = torch.tensor([[5, 5, 5, 5], [1, 2, 3, 5], [5, 5, 5, 5], [5, 1, 2, 3], [5, 5, 5, 5]])
    assert largest_region(snake[None]).tolist() == [14]
    assert largest_region(torch.full((1, 3, 3), -1)).tolist() == [0]


def picture(seed: int = 0, height: int = 24, width: int = 24) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def test_copies_moved_copies_and_mirrored_ones() -> None:
    image, other = picture(), picture(1)
    assert copied_shares(image, image).item() == 1
    assert copied_shares(image.flip(-1), image).item() == 1
    assert copied_shares(image, other).item() == 0
    pasted = other.clone()
    pasted[:, :, 2:18, 5:21] = image[:, :, 7:23, 1:17]
    # Patches of 5 at even places wholly inside: 2 to 12 down, 6 to 16 across, of 0 to 18 each.
    assert copied_shares(pasted, image).item() == pytest.approx(6 * 6 / 100)


def test_two_regions_with_different_offsets_do_not_add_up() -> None:
    image = picture()
    halves = torch.cat([image[:, :, 12:], image[:, :, :12]], 2)
    assert copied_shares(halves, image).item() == pytest.approx(4 * 10 / 100)  # places 0, 2, 4, 6; a seam; 12 to 18


def test_tolerance() -> None:
    image = picture()
    assert copied_shares(image + 0.03, image).item() == 1 and copied_shares(image + 0.08, image).item() == 0


def test_shrink_keeps_the_aspect_and_small_images() -> None:
    images = torch.full((2, 3, 64, 96), 51, dtype=torch.uint8)
    assert shrink(images).shape == (2, 3, 32, 48) and shrink(images).unique().tolist() == pytest.approx([0.2])
    assert shrink(images[:, :, :20]).shape == (2, 3, 20, 96)


def test_too_small_is_refused() -> None:
    with pytest.raises(UserError, match="needs at least 5 pixels on each side, got 4"):
        copied_shares(picture(height=4), picture())
