"""PatchMatch (Barnes et al. 2009): approximate nearest patches in time linear in the number of pixels."""

import torch
from torch import Tensor

from modules.ops.noise import randint
from modules.patches.mosaic import PatchGrid

STRIDES = (1, 4)  # distances of the neighbors whose match is tried; the longer one stands in for the serial scan


def patchmatch(queries: Tensor, keys: Tensor, grid: PatchGrid, matches: Tensor, sweeps: int = 10) -> tuple[Tensor, Tensor]:
    """Squared distances [h, w] and improved `matches` [h, w] of patches with features `queries` [h, w, F] among `keys` [M, F].
    A sweep tries for all patches at once the matches of their neighbors, shifted as the neighbors lie, then random patches
    around the match in windows that halve from the image's size to one pixel, and one anywhere."""
    distances = (queries - keys[matches]).square().sum(2)
    reach = int(grid.sizes.max())
    windows = [reach >> step for step in range(reach.bit_length())]
    for sweep in range(sweeps):
        sign = 1 if sweep % 2 == 0 else -1
        for stride in STRIDES:
            for shift in ((sign * stride, 0), (0, sign * stride)):
                distances, matches = _try(queries, keys, distances, matches, _from_neighbor(grid, matches, shift))
        for window in windows:
            coordinates = grid.locate(matches)
            coordinates[1:] += randint(-window, window + 1, tuple(coordinates[1:].shape), device=coordinates.device)
            distances, matches = _try(queries, keys, distances, matches, grid.index(coordinates))
        anywhere = randint(0, grid.num_patches, tuple(matches.shape), device=matches.device)
        distances, matches = _try(queries, keys, distances, matches, anywhere)
    return distances, matches


def _from_neighbor(grid: PatchGrid, matches: Tensor, shift: tuple[int, int]) -> Tensor:
    """The match of each patch that continues the match of its neighbor at `shift` (circularly at borders)."""
    offset = torch.tensor([0, *shift], device=matches.device).view(3, 1, 1)
    return grid.index(grid.locate(matches).roll(shift, (1, 2)) + offset)


def _try(queries: Tensor, keys: Tensor, distances: Tensor, matches: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    tried = (queries - keys[candidates]).square().sum(2)
    better = tried < distances
    return torch.where(better, tried, distances), torch.where(better, candidates, matches)


def carry_over(matches: Tensor, grid: PatchGrid, finer: PatchGrid, shape: tuple[int, int]) -> Tensor:
    """Matches [h, w] in `grid` as a start for `shape` (height, width) patches in the `finer` grid of the same images
    enlarged: every patch keeps its source, shifted by its position between two of the coarser patches."""
    ratios = ((coarse - 1) / max(1, length - 1) for length, coarse in zip(shape, matches.shape, strict=True))
    axes = (torch.arange(length, device=matches.device) * ratio for length, ratio in zip(shape, ratios, strict=True))
    exact = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    cells = exact.round().long()
    coordinates = grid.locate(matches[*cells])
    factor = (finer.sizes - finer.patch).clamp(min=1) / (grid.sizes - grid.patch).clamp(min=1)
    moved = (coordinates[1:] + (exact - cells)) * factor[coordinates[0]].movedim(-1, 0)
    return finer.index(torch.cat([coordinates[:1], moved.round().long()]))
