"""For every patch of an image the index of a patch among key images: exactly, or by PatchMatch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from modules.ops.nearest import extract
from modules.ops.noise import randint
from modules.patches.mosaic import PatchGrid
from modules.patches.neighbor_index import Projection, nearest_keys
from modules.patches.patchmatch import patchmatch

FAR = 1e4  # a coordinate that keeps a patch from being near any other
STRIP = 64  # rows of an image whose patches are held at a time
SPREAD_SAMPLE = 2**16  # patches that suffice for the main axes


class ExactSearch:
    """Nearest patch of `keys` [3, H, W], which `grid` indexes, among the `allowed` ones: by squared distance, or with `alpha`,
    in units of images in [0, 1], by distance / (alpha + the key's least distance to any query) (GPNN)."""

    def __init__(
        self, keys: Sequence[Tensor], grid: PatchGrid, allowed: Tensor | None = None, alpha: float | None = None
    ) -> None:
        self.patch, self.alpha, self.allowed = grid.patch, alpha, allowed
        patches = torch.cat([extract(key.unsqueeze(0), grid.patch)[0] for key in keys])
        self.keys = patches if allowed is None else patches[allowed]
        self.nearest = nearest_keys(self.keys)

    def __call__(self, image: Tensor, start: Tensor | None = None) -> Tensor:
        """Indices [h, w] for the patches of an image; `start` is not needed."""
        queries = extract(image.unsqueeze(0), self.patch)[0]
        scale = None
        if self.alpha is not None:
            scale = 1 / (4 * queries.shape[1] * self.alpha + nearest_keys(queries)(self.keys)[0])
        matches = self.nearest(queries, scale)[1]
        matches = matches if self.allowed is None else self.allowed[matches]
        return matches.view(image.shape[-2] - self.patch + 1, -1)


class PatchMatchSearch:
    """Nearly nearest keys by PatchMatch on projected patches, 25 values each: for large images; see `ExactSearch`."""

    def __init__(self, keys: Sequence[Tensor], grid: PatchGrid, allowed: Tensor | None = None, sweeps: int = 4) -> None:
        self.grid, self.sweeps = grid, sweeps
        stride = max(1, round((grid.num_patches / SPREAD_SAMPLE) ** 0.5))
        self.project = Projection(torch.cat([extract(key.unsqueeze(0), grid.patch, stride)[0] for key in keys]))
        self.keys = torch.cat([self._features(key).flatten(0, 1) for key in keys])
        self.possible = torch.arange(grid.num_patches, device=self.keys.device) if allowed is None else allowed
        self.allowed = torch.zeros(grid.num_patches, dtype=torch.bool, device=self.keys.device)
        self.allowed[self.possible] = True
        self.keys[~self.allowed] = FAR

    def _features(self, image: Tensor) -> Tensor:
        """Projected patches [h, w, F], a strip of rows at a time."""
        rows, overlap = image.shape[-2] - self.grid.patch + 1, self.grid.patch - 1
        strips = [image[:, top : min(top + STRIP, rows) + overlap] for top in range(0, rows, STRIP)]
        features = [self.project(extract(strip.unsqueeze(0), self.grid.patch)[0]) for strip in strips]
        return torch.cat(features).view(rows, -1, features[0].shape[1])

    def __call__(self, image: Tensor, start: Tensor | None = None) -> Tensor:
        """Like `ExactSearch`; begins with the matches `start` [h, w], or with random ones and twice the sweeps."""
        queries = self._features(image)
        sweeps = self.sweeps if start is not None else 2 * self.sweeps
        chance = randint(0, self.grid.num_patches, tuple(queries.shape[:2]), device=image.device)
        chance = self.possible[chance % len(self.possible)]
        start = chance if start is None else torch.where(self.allowed[start], start, chance)
        return patchmatch(queries, self.keys, self.grid, start, sweeps)[1]
