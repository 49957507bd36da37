"""Images as mosaics of patches of other images: indexing of patches, painting, and where every pixel came from."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class PatchGrid:
    """Indexes all `patch` x `patch` patches of images of `sizes`, none below a patch, in the order of `extract`."""

    def __init__(self, sizes: Sequence[tuple[int, int]], patch: int, device: torch.device | str = "cpu") -> None:
        self.patch = patch
        self.sizes = torch.tensor([tuple(size) for size in sizes], device=device)
        self.rows, self.columns = (self.sizes - patch + 1).T
        counts = self.rows * self.columns
        self.starts = counts.cumsum(0) - counts
        self.num_patches = int(counts.sum())

    def locate(self, indices: Tensor) -> Tensor:
        image = torch.searchsorted(self.starts, indices, right=True) - 1
        offset = indices - self.starts[image]
        return torch.stack([image, offset // self.columns[image], offset % self.columns[image]])

    def index(self, coordinates: Tensor) -> Tensor:
        """The inverse of `locate`; tops and lefts outside of an image mean its nearest patch."""
        image, top, left = coordinates
        top = top.clamp(min=0).minimum(self.rows[image] - 1)
        left = left.clamp(min=0).minimum(self.columns[image] - 1)
        return self.starts[image] + top * self.columns[image] + left

    def untouched(self, holes: Sequence[Tensor]) -> Tensor:
        """Indices of the patches without a pixel in their image's hole; `holes` are [H, W], above 0 in the hole."""
        whole = [hole.unfold(0, self.patch, 1).unfold(1, self.patch, 1).amax((2, 3)).flatten() <= 0 for hole in holes]
        return torch.cat(whole).nonzero()[:, 0]


def center_weights(patch: int, spread: float = 1.7) -> Tensor:
    """Gaussian weights [patch, patch] of a patch's pixels, `spread` in halves of its side (1.7: GPNN's code, corner 0.71)."""
    axis = torch.linspace(-1, 1, patch) if patch > 1 else torch.zeros(1)
    return torch.exp(-(axis.square().unsqueeze(1) + axis.square()) / (2 * spread**2))


def paint(matches: Tensor, images: Sequence[Tensor], grid: PatchGrid, weights: Tensor) -> Tensor:
    """The image [3, h + p - 1, w + p - 1] whose patch at (y, x) is patch `matches`[y, x] of the `images` [3, H, W]; where
    patches overlap, their mean weighted by `weights` [p, p]."""
    pixels = torch.cat([image.flatten(1) for image in images], 1)
    image, top, left = grid.locate(matches)
    areas = grid.sizes.prod(1)
    width = grid.sizes[:, 1][image]
    corner = (areas.cumsum(0) - areas)[image] + top * width + left
    height, breadth = matches.shape
    canvas = pixels.new_zeros(4, height + grid.patch - 1, breadth + grid.patch - 1)  # colors and the sum of weights
    for dy in range(grid.patch):
        for dx in range(grid.patch):
            part, weight = canvas[:, dy : dy + height, dx : dx + breadth], float(weights[dy, dx])
            part[:3].add_(pixels[:, (corner + dy * width + dx).flatten()].view(3, height, breadth), alpha=weight)
            part[3].add_(weight)
    return canvas[:3] / canvas[3]


def pixel_sources(matches: Tensor, grid: PatchGrid) -> Tensor:
    """Image, row and column [3, H, W] that every pixel of a mosaic has in the patch most centered on it."""
    axes = (torch.arange(cells + grid.patch - 1, device=matches.device) for cells in matches.shape)
    pixels = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    last = torch.tensor(matches.shape, device=matches.device).view(2, 1, 1) - 1
    cells = (pixels - grid.patch // 2).clamp(min=0).minimum(last)
    coordinates = grid.locate(matches[*cells])
    coordinates[1:] += pixels - cells
    return coordinates


def source_picture(sources: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Pictures [..., 3, H, W] of `pixel_sources`: each image a range of hues from left to right, darker towards its bottom;
    black where the image's number is negative."""
    image, row, column = sources.unbind(-3)
    height, width = torch.tensor([tuple(size) for size in sizes], device=sources.device).T
    hue = (image + 0.8 * column / width[image]) / len(sizes)
    value = 1 - 0.7 * row / height[image]
    turns = (torch.tensor([5.0, 3.0, 1.0], device=sources.device).view(3, 1, 1) + 6 * hue.unsqueeze(-3)) % 6
    value = (value * (image >= 0)).unsqueeze(-3)
    return 2 * value * (1 - 0.85 * torch.minimum(turns, 4 - turns).clamp(0, 1)) - 1


def surroundings(image: Tensor, hole: Tensor) -> Tensor:
    """An image [N, C, H, W] whose hole [N, 1, H, W] (1 = hole) is filled smoothly with the colors around it: means of the
    pixels outside at half the size, filled in the same way, give those inside (pull and push)."""
    outside = 1 - hole
    half = tuple(-(-side // 2) for side in image.shape[-2:])
    if half == tuple(image.shape[-2:]) or not hole.any():
        return image * outside
    share = F.adaptive_avg_pool2d(outside, half)
    colors = F.adaptive_avg_pool2d(image * outside, half) / share.clamp(min=1e-6)
    smooth = F.interpolate(surroundings(colors, (share == 0).to(image)), image.shape[-2:], mode="bilinear")
    return torch.where(hole > 0, smooth, image)
