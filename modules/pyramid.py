"""Methods that train an image pyramid scale by scale: stage s trains scale s, 0 = coarsest."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.utils.data import Dataset

from modules.losses.adversarial import wasserstein_d
from modules.losses.penalties import gradient_penalty
from modules.ops.images import resize, rmse_by_image
from modules.ops.scales import check_scale, proportional_size
from modules.staged import StagedModule


def set_rates(optimizers: Sequence[Optimizer], rates: Sequence[float], progress: float, drop_at: float = 0.8) -> None:
    """Gives parameter groups their learning rates, and from a share `drop_at` of a stage on a tenth of them."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate * (0.1 if progress >= drop_at - 1e-9 else 1.0)


class PyramidModule(StagedModule):
    """A staged method whose stages are the scales of an image pyramid, and perhaps further ones after the last scale.

    Args:
        image_size: height and width of the finest scale in pixels.
        epochs_per_stage: one number for all stages, one for each, or three: for the first, each one between, and the last.
        min_size: shorter side of the coarsest scale.
        scale_factor: nominal ratio of neighboring scales, see `scale_sizes`.
    """

    duration_settings = ("epochs_per_stage",)
    generators: nn.ModuleList
    discriminators: nn.ModuleList
    fused_adam: bool | None = None  # torch's choice; the fused kernel is quicker for tiny networks on a CPU

    def __init__(
        self, image_size: Sequence[int], sizes: list[tuple[int, int]], epochs_per_stage: int | list[int], more_stages: int = 0
    ) -> None:
        num_stages = len(sizes) + more_stages
        if isinstance(epochs_per_stage, list | tuple) and len(epochs_per_stage) == 3 <= num_stages:
            first, between, last = epochs_per_stage
            epochs_per_stage = [first, *[between] * (num_stages - 2), last]
        super().__init__(epochs_per_stage, num_stages)
        self.image_size, self.sizes, self.num_scales = tuple(image_size), sizes, len(sizes)

    @property
    def top(self) -> int:
        """The finest scale that is trained or in training."""
        return max(self.stage, 0)

    def stage_label(self, stage: int) -> str:
        return f"scale {stage}"

    def stage_size(self, stage: int) -> tuple[int, int]:
        return self.sizes[stage % self.num_scales]

    def size_at(self, scale: int, size: Sequence[int]) -> tuple[int, int]:
        return proportional_size(size, self.image_size, self.sizes[scale])

    def stage_modules(self, stage: int) -> list[nn.Module]:
        return [self.generators[stage], self.discriminators[stage]]

    def stage_optimizers(self, stage: int) -> list[Optimizer]:
        """Of the scale's generator and critic."""
        hp = self.hparams
        parts = zip(self.stage_modules(stage), (hp.lr_g, hp.lr_d), strict=True)
        return [Adam(part.parameters(), rate, tuple(hp.betas), fused=self.fused_adam) for part, rate in parts]

    def critic_step(
        self, optimizer: Optimizer, critic: nn.Module, reals: Tensor, fakes: Tensor, seen: Tensor | None = None
    ) -> dict[str, Tensor]:
        """A step of a Wasserstein critic with gradient penalty; `seen` are other fakes for it. Returns terms for the log."""
        loss = wasserstein_d(critic(reals), critic((fakes if seen is None else seen).detach()))
        penalty = gradient_penalty(critic, reals, fakes)
        self.optimize(optimizer, loss + self.hparams.weight_gp * penalty)
        return {"d_loss": loss, "gp": penalty}


class RefiningModule(PyramidModule):
    """A pyramid whose scale 0 gives images back through a latent, and whose scales above refine the enlarged output of the one
    below: HP-VAE-GAN, FewGAN."""

    def coarse(self, images: Tensor) -> Tensor:
        return resize(images, self.size_at(0, images.shape[-2:]))

    def detail(self, images: Tensor, scale: int, noise: bool = False) -> Tensor:
        return self.generators[scale](images)

    def refine(self, images: Tensor, start: int, end: int, size: Sequence[int], noise: bool = False) -> Tensor:
        """Runs scales `start` ... `end` towards an output of `size`, with `noise` where the method has it."""
        for scale in range(start, end + 1):
            images = self.detail(resize(images, self.size_at(scale, size)), scale, noise)
        return images

    @torch.no_grad()
    def decode(self, latents: Tensor, size: Sequence[int] | None = None, noise: bool = False) -> Tensor:
        """Images of latents of scale 0, by default of the training size."""
        size = size or self.image_size
        return resize(self.refine(self.generators[0].decode(latents), 1, self.top, size, noise), size).clamp(-1, 1)

    def reconstruct_at(self, images: Tensor, scale: int) -> Tensor:
        return self.refine(self.generators[0](self.coarse(images)), 1, scale, images.shape[-2:])

    @torch.no_grad()
    def inject(self, images: Tensor, scale: int = 0) -> Tensor:
        """The images by all scales, or for `scale` > 0 only refined from that scale on."""
        check_scale(self.num_scales, scale=scale)
        size = images.shape[-2:]
        below = self.generators[0](self.coarse(images)) if scale == 0 else resize(images, self.size_at(scale - 1, size))
        return resize(self.refine(below, max(scale, 1), self.top, size), size).clamp(-1, 1)

    def reconstruct(self, images: Tensor) -> Tensor:
        return self.inject(images)

    @torch.no_grad()
    def each(self, images: Dataset, function: Callable[[Tensor], Tensor]) -> Tensor:
        """`function` of each image by itself: the result's bits do not depend on how images are batched."""
        return torch.cat([function(images[i].unsqueeze(0).to(self.device, self.dtype)) for i in range(len(images))])

    @torch.no_grad()
    def reconstruction_errors(self, images: Tensor) -> tuple[dict[str, float], Tensor]:
        numbers = {}
        for scale, size in enumerate(self.sizes[: self.top + 1]):
            errors = rmse_by_image(self.reconstruct_at(images, scale), resize(images, size))
            numbers[f"reconstruction_rmse_scale{scale}"] = float(errors.mean())
        return numbers | self.errors_by_image(errors), errors
