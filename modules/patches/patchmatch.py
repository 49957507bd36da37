"""PatchMatch (Barnes et al. 2009): approximate nearest patches in time linear in the number of pixels."""

import torch
from torch import Tensor

from modules.ops.noise import randint
from modules.patches.mosaic import PatchGrid

STRIDES = (1, 4)  # distances of the neighbours whose match is tried; the longer one stands in for the serial scan


def patchmatch(queries: Tensor, keys: Tensor, grid: PatchGrid, matches: Tensor, sweeps: int = 10) -> tuple[Tensor, Tensor]:
    """Squared distances [h, w] and improved `matches` [h, w], numbers in `grid`, of the patch around each query pixel.

    `queries` [h, w, F] and `keys` [M, F] are features of patches, `keys` in the order of `grid`. A sweep tries for all
    patches at once the matches of their neighbours, shifted as the neighbours lie (as images are piecewise continuous, so
    are good matches), then random patches around the present match in windows that halve from the image's size to one pixel,
    and one anywhere. A match is never exchanged for a worse one. Draws from the global generator.
    """
    distances = (queries - keys[matches]).square().sum(2)
    reach = int(grid.sizes.max())
    windows = [reach >> step for step in range(reach.bit_length())]
    for sweep in range(sweeps):
        sign = 1 if sweep % 2 == 0 else -1
        for stride in STRIDES:
            for shift in ((sign * stride, 0), (0, sign * stride)):
                distances, matches = _try(queries, keys, distances, matches, _from_neighbour(grid, matches, shift))
        for window in windows:
            places = grid.locate(matches)
            places[1:] += randint(-window, window + 1, tuple(places[1:].shape), device=places.device)
            distances, matches = _try(queries, keys, distances, matches, grid.index(places))
        anywhere = randint(0, grid.number, tuple(matches.shape), device=matches.device)
        distances, matches = _try(queries, keys, distances, matches, anywhere)
    return distances, matches


def _from_neighbour(grid: PatchGrid, matches: Tensor, shift: tuple[int, int]) -> Tensor:
    """What a patch would match if the match of the patch at `shift` before it went on (at a border: of one across)."""
    places = grid.locate(matches).roll(shift, (1, 2))
    places[1] += shift[0]
    places[2] += shift[1]
    return grid.index(places)


def _try(queries: Tensor, keys: Tensor, distances: Tensor, matches: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    tried = (queries - keys[others]).square().sum(2)
    better = tried < distances
    return torch.where(better, tried, distances), torch.where(better, others, matches)


def carry_over(matches: Tensor, grid: PatchGrid, finer: PatchGrid, shape: tuple[int, int]) -> Tensor:
    """Matches [h, w] in `grid` as a start for `shape` (height, width) patches in the `finer` grid of the same images
    enlarged: every patch keeps its source, moved on by its place between two of the coarser patches."""
    cells, offsets = [], []
    for length, coarse in zip(shape, matches.shape, strict=True):
        exact = torch.arange(length, device=matches.device) * ((coarse - 1) / max(1, length - 1))
        cells.append(exact.round().long())
        offsets.append(exact - cells[-1])
    image, top, left = grid.locate(matches[cells[0].unsqueeze(1), cells[1]])
    factor = (finer.sizes - finer.patch).clamp(min=1) / (grid.sizes - grid.patch).clamp(min=1)
    top = ((top + offsets[0].unsqueeze(1)) * factor[:, 0][image]).round().long()
    left = ((left + offsets[1]) * factor[:, 1][image]).round().long()
    return finer.index(torch.stack([image, top, left]))
