"""DCGAN (Radford, Metz & Chintala 2016, arXiv 1511.06434), small: an example of a method in three files."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam

from core.types import Betas, ImageSize, PositiveFloat, PositiveInt
from modules.ops.images import resize
from modules.ops.noise import randn
from modules.staged import StagedModule


class DCGAN(StagedModule):
    """Transposed convolutions from a vector of noise to an image, against a convolutional discriminator.

    Args:
        image_size: height and width of the samples, multiples of 4.
        latent_dim: length of the noise; `width`: channels at half the image's size.
        lr, betas: of Adam; the paper's.
    """

    def __init__(
        self,
        image_size: ImageSize,
        epochs: PositiveInt = 4,
        latent_dim: PositiveInt = 32,
        width: PositiveInt = 16,
        lr: PositiveFloat = 2e-4,
        betas: Betas = (0.5, 0.999),
    ) -> None:
        super().__init__(epochs)
        self.save_hyperparameters()
        self.image_size = tuple(image_size)
        height, width_4 = (side // 4 for side in image_size)
        self.generator = nn.Sequential(
            nn.Linear(latent_dim, 2 * width * height * width_4), nn.Unflatten(1, (2 * width, height, width_4)),
            nn.BatchNorm2d(2 * width), nn.ReLU(), nn.ConvTranspose2d(2 * width, width, 4, 2, 1),
            nn.BatchNorm2d(width), nn.ReLU(), nn.ConvTranspose2d(width, 3, 4, 2, 1), nn.Tanh(),
        )  # fmt: skip
        self.discriminator = nn.Sequential(
            nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(width, 2 * width, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.Flatten(), nn.Linear(2 * width * height * width_4, 1),
        )  # fmt: skip

    def stage_optimizers(self, stage: int) -> list[torch.optim.Optimizer]:
        parts, betas = (self.generator, self.discriminator), tuple(self.hparams.betas)
        return [Adam(part.parameters(), self.hparams.lr, betas) for part in parts]

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        g_opt, d_opt = self.current_optimizers()
        reals = batch["image"]
        fakes = self.generator(randn(len(reals), self.hparams.latent_dim, device=self.device))
        with self.toggled_optimizer(d_opt):
            loss_d = F.softplus(-self.discriminator(reals)).mean() + F.softplus(self.discriminator(fakes.detach())).mean()
            self.optimize(d_opt, loss_d)
        with self.toggled_optimizer(g_opt):
            loss_g = F.softplus(-self.discriminator(fakes)).mean()
            self.optimize(g_opt, loss_g)
        self.log_training({"d_loss": loss_d, "g_loss": loss_g}, len(reals))

    @torch.no_grad()
    def sample(self, num_images: int, size: tuple[int, int] | None = None) -> Tensor:
        """See `GenerativeModule.sample`; other sizes by resizing."""
        images = self.generator(randn(num_images, self.hparams.latent_dim, device=self.device))
        return resize(images, size or self.image_size)
