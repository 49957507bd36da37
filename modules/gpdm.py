"""GPDM (Elnekave & Weiss, ECCV 2022, arXiv 2203.11862): images with the patch distribution of the training images."""

from collections.abc import Mapping

import torch
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from torch import Tensor
from torch.optim import Adam
from torch.utils.data import Dataset

from core.types import ImageSize, NonNegativeFloat, OpenFraction, PositiveFloat, PositiveInt
from modules.bank import PatchBankModule
from modules.losses.sliced import patch_directions, sliced_wasserstein
from modules.ops.images import resize
from modules.ops.noise import randn, randn_like


class GPDM(PatchBankModule):
    """Coarse to fine, the pixels of each output are optimized until its patches are distributed as the training images'.

    Distance: sliced Wasserstein to all training images together. Defaults: released code.

    Args:
        noise: standard deviation of the noise that sample() begins with, in shares of black to white.
        projections: directions of the distance, new ones in each step; few make noise.
        steps, lr: of Adam, at each scale.
    """

    cost_setting = ("steps", 5)

    def __init__(
        self,
        image_size: ImageSize,
        max_images: PositiveInt = 16,
        min_size: PositiveInt = 21,
        scale_factor: OpenFraction = 0.85,
        patch: PositiveInt = 7,
        noise: NonNegativeFloat = 0.75,
        projections: PositiveInt = 64,
        steps: PositiveInt = 300,
        lr: PositiveFloat = 0.01,
    ) -> None:
        super().__init__(image_size, max_images, min_size, scale_factor, patch)
        self.save_hyperparameters()

    def sample(self, num_images: int, size: tuple[int, int] | None = None) -> Tensor:
        size = size or self.image_size
        noise = randn(num_images, 3, *self.size_at(0, size), device=self.device)
        return self.optimize_pixels(2 * self.hparams.noise * noise, size)

    def inject(self, images: Tensor, scale: int = 0, noise: NonNegativeFloat = 0.0) -> Tensor:
        """A fine scale transfers style; the coarsest with `noise` 0.05 (code: 0.1 in [-1, 1]) and a stretched image
        retargets."""
        size = images.shape[-2:]
        start = resize(images, self.size_at(scale, size))
        return self.optimize_pixels(start + 2 * noise * randn_like(start), size, scale)

    def optimize_pixels(self, start: Tensor, size: tuple[int, int], scale: int = 0) -> Tensor:
        """Images [N, 3, *size] from `start` [N, 3, h, w], the pixels to begin with at `scale`."""
        scales = range(scale, self.num_scales)
        bar = Tqdm(total=len(scales) * self.hparams.steps, desc="GPDM", leave=False, delay=3, disable=None)
        # Callers run without gradients, some in inference mode; the pixels here need them.
        with bar, torch.inference_mode(False), torch.enable_grad():
            pixels = start.detach().clone()
            for level in scales:
                references = resize(self.images, self.sizes[level])
                pixels = resize(pixels, self.size_at(level, size)).requires_grad_()
                optimizer = Adam([pixels], self.hparams.lr)
                for _ in range(self.hparams.steps):
                    directions = patch_directions(self.hparams.projections, self.patch, self.device)
                    # Paper: one distance for the whole batch of outputs; here: one for each, so that none depends on another.
                    loss = sliced_wasserstein(pixels, references, directions).sum()
                    (pixels.grad,) = torch.autograd.grad(loss, pixels)
                    optimizer.step()
                    bar.update()
                pixels = pixels.detach().clamp(-1, 1)
        return pixels

    @torch.no_grad()
    def diagnostics(self, sets: Mapping[str, Dataset]) -> dict[str, float]:
        reals = self.images
        noise = reals.mean((0, 2, 3), keepdim=True) + reals.std((0, 2, 3), keepdim=True) * torch.randn_like(reals[:2])

        def distance(images: Tensor) -> float:
            return float(sliced_wasserstein(images, reals, patch_directions(256, self.patch, self.device)).mean())

        return {"patch_distance": distance(self.sample(2)), "patch_distance_noise": distance(noise)}
