"""BigGAN (Brock, Donahue & Simonyan 2019, arXiv 1809.11096) at small scale, as used with limited data."""

from typing import Any

import torch
from torch import Tensor, nn

from core.types import BelowOne, Betas, ImageSize, Node, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from modules.networks.resnet import LayerFactory, ResNetDiscriminator, ResNetGenerator, normal
from modules.ops import noise
from modules.sngan import SNGAN

# As in `sngan`: at 32 pixels of DiffAugment's experiments on CIFAR, at 64 of the authors' PyTorch code.
PUBLISHED = {
    32: ([256] * 4, [256] * 4, 2),
    64: ([1024, 1024, 512, 256, 128], [64, 128, 256, 512, 1024], 4),
}


class BigGAN(SNGAN):
    """SNGAN with spectral norm in both networks, wide discriminator blocks, reals and fakes in one batch of the
    discriminator, a slow average of the generator, and orthogonal regularization.

    Paper: attention, parts of z in every block, one embedding of the classes for all batch norms; here, as at the scale of
    CIFAR: none of them.

    Args:
        ortho: beta of the orthogonal regularization, in the paper 1e-4.
        settings: see `SNGAN`.
    """

    joined_batches = True

    def __init__(
        self, image_size: ImageSize, condition: Node | None = None, ortho: NonNegativeFloat = 0.0, n_dis: PositiveInt = 4,
        betas: Betas = (0.0, 0.999), ema_decay: BelowOne = 0.9999, ema_start: NonNegativeInt = 1000,
        standing_batches: NonNegativeInt = 16, **settings: Any,
    ) -> None:  # fmt: skip
        shared = {"ema_decay": ema_decay, "ema_start": ema_start, "standing_batches": standing_batches}
        super().__init__(image_size, condition=condition, n_dis=n_dis, betas=betas, **shared, **settings)

    def networks(self, side: int) -> tuple[ResNetGenerator, ResNetDiscriminator]:
        g_channels, d_channels, down = self.widths(side, PUBLISHED)
        layers = LayerFactory(normal)
        generator = ResNetGenerator(side, self.hparams.z_dim, g_channels, layers=layers, **self.conditional)
        return generator, ResNetDiscriminator(d_channels, down, self.condition_dim, wide=True, layers=layers)

    def generator_terms(self, fakes: Tensor) -> dict[str, Tensor]:
        beta = self.hparams.ortho
        return {"orthogonality": beta * sum(map(cosines, orthogonal_weights(self.generator)))} if beta else {}

    @torch.no_grad()
    def sample(
        self, num_images: int, size: list[PositiveInt] | None = None, labels: list[NonNegativeInt] | None = None,
        truncation: PositiveFloat | None = None,
    ) -> Tensor:  # fmt: skip
        """New images; with `labels` each is of one of these classes, at random. Values of z lie within `truncation`: below 1
        trades diversity for quality."""
        if truncation is None:
            return super().sample(num_images, size, labels)
        self.check_size(size)
        tail = float(torch.special.ndtr(torch.tensor(-truncation)))
        uniform = noise.rand(num_images, self.hparams.z_dim, device=self.device)
        z = torch.special.ndtri(tail + (1 - 2 * tail) * uniform).clamp(-truncation, truncation)
        return self.generator_ema(z, self.codes(num_images, labels))


def orthogonal_weights(net: nn.Module) -> list[Tensor]:
    """Weights [out, …] of linear layers and convolutions under spectral norm: all but the tables of classes."""
    return [module.original for module in net.modules() if isinstance(module, nn.utils.parametrize.ParametrizationList)]


def cosines(weight: Tensor) -> Tensor:
    """||W W^T * (1 - I)||^2 over all pairs of rows."""
    rows = weight.flatten(1)
    gram = rows @ rows.T
    return gram.square().sum() - gram.diagonal().square().sum()
