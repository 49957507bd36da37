"""GPNN (Granot, Feinstein, Shocher, Bagon & Irani, CVPR 2022, arXiv 2103.15545): new images from nearest patches, untrained."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from torch import Tensor
from torch.utils.data import Dataset

from core.errors import UserError
from core.types import ImageSize, NonNegativeFloat, OpenFraction, PositiveFloat, PositiveInt
from modules.bank import PatchBankModule
from modules.ops.images import resize, rmse_by_image
from modules.ops.noise import randint, randn_like, single_image
from modules.patches.mosaic import PatchGrid, center_weights, paint, pixel_sources, source_picture, surroundings
from modules.patches.patchmatch import carry_over
from modules.patches.search import ExactSearch, PatchMatchSearch

SAME_PHOTOGRAPH = 0.02  # mean difference up to which an image equals a training image, for inpaint()


class GPNN(PatchBankModule):
    """Coarse to fine, every patch of a guess is replaced by its nearest training patch, `iterations` times a scale.

    Keys are patches of the coarser image enlarged, as blurred as the guess; the values copied are those of the sharp image
    there. Overlapping patches are averaged with Gaussian weights. Defaults: released code.

    Args:
        min_size: shorter side of the coarsest scale; near `patch` it copies layouts, more varies them.
        noise: standard deviation at the coarsest scale in sample(), in shares of black to white; 0 gives the images back.
        alpha: completeness, score d / (alpha + least d of the key) with d = squared L2 / dim in [0, 1]; null is infinity.
            Small values use all of the images: 0.001 to 0.005 for retargeting and analogies, without noise.
        iterations, iterations_coarsest: at each scale, and at the one where the guess enters (10 for retargeting).
        backend: exact, or patchmatch: approximate, in linear time, for images above some 300 pixels; it refuses alpha.
        sweeps: of PatchMatch in each iteration; its matches are carried on as in PSin (Cherel et al., ICIP 2022).
    """

    cost_setting = ("iterations", 1)

    def __init__(
        self,
        image_size: ImageSize,
        max_images: PositiveInt = 16,
        min_size: PositiveInt = 14,
        scale_factor: OpenFraction = 0.75,
        patch: PositiveInt = 7,
        noise: NonNegativeFloat = 0.75,
        alpha: PositiveFloat | None = None,
        iterations: PositiveInt = 10,
        iterations_coarsest: PositiveInt = 1,
        backend: Literal["exact", "patchmatch"] = "exact",
        sweeps: PositiveInt = 4,
    ) -> None:
        super().__init__(image_size, max_images, min_size, scale_factor, patch)
        self.save_hyperparameters()
        self._check_alpha(alpha)
        self.grid: PatchGrid | None = None
        self.matches: Tensor | None = None

    def _check_alpha(self, alpha: float | None) -> None:
        if alpha is not None and self.hparams.backend != "exact":
            raise UserError(f"alpha={alpha} needs the distance of every key to all queries: use backend=exact or alpha=null")

    @torch.no_grad()
    def sample(self, num_images: int, size: tuple[int, int] | None = None, noise: NonNegativeFloat | None = None) -> Tensor:
        size = size or self.image_size
        guess = resize(self.images[randint(0, len(self.bank), (num_images,))], self.size_at(0, size))
        strength = self.hparams.noise if noise is None else noise
        return self.synthesize(guess + 2 * strength * randn_like(guess), size)

    @torch.no_grad()
    def inject(
        self, images: Tensor, scale: int = 0, alpha: PositiveFloat | None = None, iterations_coarsest: PositiveInt | None = None
    ) -> Tensor:
        """Editing, collage and analogy; of a stretched training image, retargeting. None stands for the model's own value."""
        size = images.shape[-2:]
        guess = resize(images, self.size_at(scale, size))
        return self.synthesize(guess, size, scale, alpha=alpha, iterations_coarsest=iterations_coarsest)

    @torch.no_grad()
    def inpaint(
        self, image: Tensor, mask: Tensor, num_images: int, guided: bool = False, noise: NonNegativeFloat = 0.2
    ) -> Tensor:
        """Composes the whole image of patches of the image itself (number 0 in `provenance`) and of the training images that
        differ from it. The hole begins with colors around it and `noise`, or what is painted there if `guided`, where it is no
        larger than a patch."""
        size, start, mask = image.shape[-2:], self._scale_of_hole(mask), mask.to(image)
        outside = surroundings(image, mask)  # else resizing would carry colors of the hole into its neighborhood
        guess = resize(image if guided else outside, self.size_at(start, size)).expand(num_images, -1, -1, -1)
        if not guided:
            hole = F.adaptive_max_pool2d(mask, guess.shape[-2:])
            guess = guess + 2 * noise * hole * randn_like(guess)
        return self.synthesize(guess, size, start, [outside, *self._different_images(image, mask)], hole=mask)

    def _scale_of_hole(self, mask: Tensor) -> int:
        """The finest scale at which the hole's longer side is no longer than a patch."""
        sides = [touched.nonzero()[:, 0] for touched in (mask[0, 0].amax(1), mask[0, 0].amax(0))]
        extent = max((int(side.max() - side.min()) + 1 for side in sides if len(side)), default=0)
        shares = [max(self.size_at(s, mask.shape[-2:])) / max(mask.shape[-2:]) for s in range(self.num_scales)]
        return max((s for s, share in enumerate(shares) if 0 < extent * share <= self.patch), default=0)

    def _different_images(self, image: Tensor, mask: Tensor) -> list[Tensor]:
        outside = 1 - F.adaptive_max_pool2d(mask, self.image_size)
        difference = ((self.images - resize(image, self.image_size)).abs() * outside).sum((1, 2, 3))
        same = difference < 3 * SAME_PHOTOGRAPH * outside.sum()
        return [other.unsqueeze(0) for other in self.images[~same]]

    def synthesize(
        self, guess: Tensor, size: tuple[int, int], start: int = 0, sources: Sequence[Tensor] | None = None,
        hole: Tensor | None = None, alpha: float | None = None, iterations_coarsest: int | None = None,
    ) -> Tensor:  # fmt: skip
        """Images [N, 3, *size] from guesses [N, 3, h, w] at scale `start`; sets `grid` and `matches`. `sources` [1, 3, H, W]
        replace the training images; no patch is copied that touches the `hole` of the first."""
        alpha = self.hparams.alpha if alpha is None else alpha
        self._check_alpha(alpha)
        sources = self.images.split(1) if sources is None else sources
        rounds = [self.hparams.iterations] * self.num_scales
        rounds[start] = iterations_coarsest or self.hparams.iterations_coarsest
        weights = center_weights(self.patch)
        bar = Tqdm(total=len(guess) * sum(rounds[start:]), desc="GPNN", leave=False, delay=3, disable=None)
        for scale in range(start, self.num_scales):
            values, grid, search = self._level(sources, scale, scale == start, hole, alpha)
            results = []
            for i, image in enumerate(resize(guess, self.size_at(scale, size))):
                shape = tuple(side - self.patch + 1 for side in image.shape[-2:])
                match = None if scale == start else carry_over(self.matches[i], self.grid, grid, shape)
                with single_image(i):
                    for _ in range(rounds[scale]):
                        match = search(image, match)
                        image = paint(match, values, grid, weights)
                        bar.update()
                results.append((image, match))
            guess, self.matches = (torch.stack(parts) for parts in zip(*results, strict=True))
            self.grid = grid
        bar.close()
        return guess.clamp(-1, 1)

    def _level(
        self, sources: Sequence[Tensor], scale: int, sharp: bool, hole: Tensor | None, alpha: float | None
    ) -> tuple[list[Tensor], PatchGrid, ExactSearch | PatchMatchSearch]:
        """Images [3, h, w] to copy from, the indices of their patches, and the search by blurred or `sharp` patches."""
        # Paper: each scale is resized from its neighbor; here: all from the finest, as in the other pyramids.
        sizes = [self.size_at(scale, image.shape[-2:]) for image in sources]
        values = [resize(image, size)[0] for image, size in zip(sources, sizes, strict=True)]
        grid, keys = PatchGrid(sizes, self.patch, self.device), values
        if not sharp:
            coarse = [resize(image, self.size_at(scale - 1, image.shape[-2:])) for image in sources]
            keys = [resize(image, size)[0] for image, size in zip(coarse, sizes, strict=True)]
        allowed = None if hole is None else self._outside(hole, grid, sizes)
        if self.hparams.backend == "exact":
            return values, grid, ExactSearch(keys, grid, allowed, alpha)
        return values, grid, PatchMatchSearch(keys, grid, allowed, self.hparams.sweeps)

    def _outside(self, hole: Tensor, grid: PatchGrid, sizes: Sequence[tuple[int, int]]) -> Tensor:
        holes = [hole.new_zeros(size) for size in sizes]
        holes[0] = F.adaptive_max_pool2d(hole, sizes[0])[0, 0]
        allowed = grid.untouched(holes)
        if len(allowed) == 0:
            height, width = sizes[0]
            outside = f"no patch of {self.patch} pixels lies outside of the hole at {height}×{width} pixels (height × width)"
            raise UserError(f"{outside}; make the mask smaller")
        return allowed

    def provenance(self) -> Tensor:
        """Source image, row and column [N, 3, H, W] of each pixel of the last images, in the patch most centered on it."""
        if self.matches is None:
            raise UserError("provenance: no image has been generated yet")
        return torch.stack([pixel_sources(match, self.grid) for match in self.matches])

    def source_shares(self) -> Tensor:
        image = self.grid.locate(self.matches)[0]
        return torch.bincount(image.flatten(), minlength=len(self.grid.sizes)) / image.numel()

    def provenance_picture(self) -> Tensor:
        return source_picture(self.provenance(), self.grid.sizes)

    @torch.no_grad()
    def diagnostics(self, sets: Mapping[str, Dataset]) -> dict[str, float]:
        images = self.images
        errors = rmse_by_image(self.reconstruct(images), images)
        self.sample(4)
        numbers = self.errors_by_image(errors) | {"reconstruction_rmse": float(errors.mean())}
        numbers["distinct_patches"] = len(self.matches.unique()) / self.matches.numel()
        return numbers | {f"patch_share_{i}": float(share) for i, share in enumerate(self.source_shares())}
