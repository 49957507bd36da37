"""BSA (Noguchi & Harada 2019, arXiv 1904.01774) on StyleGAN2: adaptation of a scale and a shift for each channel."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Adam
from torch.utils.data import Dataset

from core.errors import UserError
from core.types import ImageSize, NonNegativeFloat, PositiveFloat, PositiveInt
from modules.losses.perceptual import PerceptualLoss
from modules.networks.style_generator import StyledConv
from modules.tgan import TGAN

JITTER = 0.01  # deviation of the noise on latents
DRAWS = 10  # normal latents for each learned one, in the distance between the two sets


class ScaleShift(nn.Module):
    """y = scale · x + shift for each channel, 1 and 0 at first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, images: Tensor) -> Tensor:
        return images * self.scale[:, None, None] + self.shift[:, None, None]


def set_distance(latents: Tensor, draws: Tensor) -> Tensor:
    """Mean squared distance of each draw [M, d] to the nearest latent [N, d], plus that of each latent to the nearest draw.

    The paper calls it an earth mover's distance to N(0, 1). In high dimensions it is smallest for latents near 0.
    """
    squares = torch.cdist(latents, draws, compute_mode="donot_use_mm_for_euclid_dist").square()
    return squares.amin(0).mean() + squares.amin(1).mean()


class BSA(TGAN):
    """TGAN that trains only a scale and a shift behind each convolution of the generator.

    Paper: batch normalization's scale and shift; here: StyleGAN2 has no normalization, so that they follow each demodulated
    convolution. Paper: the first linear layer trains too, at a rate of 1e-7; here: it is frozen.

    Args:
        mode: adversarial, with the discriminator and the loss of the other adaptations; or supervised, as in the paper: without
            discriminator, each training image has a latent of its own, and is reconstructed.
        num_latents: of mode supervised: the number of training images, which may not be mirrored.
        latent_lr: of the latents.
        perceptual: file or backbone, see `PerceptualLoss`; null: reconstruction by pixels only.
            Paper: L1 distance of ten layers of a VGG-16; here: the perceptual distance of this project.
        weight_perceptual: of the perceptual distance.
        weight_latents: of `set_distance` between the latents and normal ones.
        weight_scale: of (scale - 1)² + shift².
        settings: see `TGAN`.
    """

    def __init__(
        self, image_size: ImageSize, mode: Literal["adversarial", "supervised"] = "adversarial",
        num_latents: PositiveInt = 10, latent_lr: PositiveFloat = 0.05, perceptual: str | None = None,
        weight_perceptual: NonNegativeFloat = 0.001, weight_latents: NonNegativeFloat = 0.1,
        weight_scale: NonNegativeFloat = 0.02, **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(image_size, **settings)

    @property
    def supervised(self) -> bool:
        return self.hparams.mode == "supervised"

    @property
    def needs_discriminator(self) -> bool:
        return not self.supervised

    def _build(self) -> None:
        super()._build()
        for net in (self.generator, self.generator_ema):
            for conv in net.convs:
                conv.after_conv = ScaleShift(len(conv.bias))
        self._perceptual: PerceptualLoss | None = None
        if self.supervised:
            self.latents_of_images = nn.Embedding(self.hparams.num_latents, self.hparams.z_dim)
            nn.init.zeros_(self.latents_of_images.weight)

    def check_data(self, sets: Mapping[str, Dataset]) -> None:
        super().check_data(sets)
        if self.supervised and len(sets["image"]) != self.hparams.num_latents:
            raise UserError(
                f"module.num_latents is {self.hparams.num_latents}, but there are {len(sets['image'])} training images "
                f"(mirrored ones included, see datamodule.flip); the two have to be equal"
            )

    def trained_g(self) -> list[nn.Parameter]:
        convs: list[StyledConv] = list(self.generator.convs)
        changes = [parameter for conv in convs for parameter in conv.after_conv.parameters()]
        return changes + ([self.latents_of_images.weight] if self.supervised else [])

    def trained_d(self) -> list[nn.Parameter]:
        return [] if self.supervised else super().trained_d()

    def stage_optimizers(self, stage: int) -> list[torch.optim.Optimizer]:
        if not self.supervised:
            return super().stage_optimizers(stage)
        *changes, latents = self.trained_g()
        return [Adam([{"params": changes}, {"params": [latents], "lr": self.hparams.latent_lr}], self.hparams.lr)]

    def cache_stage(self, stage: int) -> None:
        if self.supervised and self.hparams.perceptual:
            self._perceptual = PerceptualLoss(self.hparams.perceptual, self.device)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        if not self.supervised:
            return super().training_step(batch, batch_idx)
        reals, hp, net = batch["image"], self.hparams, self.generator
        z = self.latents_of_images(batch["index"])
        w = net.broadcast(net.mapping(z + JITTER * torch.randn_like(z)))
        images = net.synthesis(w, self.layer_noise).images
        terms = {"reconstruction": (images - reals).abs().mean()}
        if self._perceptual is not None:
            terms["perceptual"] = hp.weight_perceptual * self._perceptual(images, reals).mean()
        terms["latents"] = hp.weight_latents * set_distance(z, torch.randn(DRAWS * len(z), hp.z_dim, device=z.device))
        changes = [conv.after_conv for conv in net.convs]
        terms["scales"] = hp.weight_scale * sum((c.scale - 1).square().mean() + c.shift.square().mean() for c in changes)
        loss = sum(terms.values())
        self.optimize(self.current_optimizers()[0], loss)
        self.log_training({"g_loss": loss, **terms}, len(reals))
