"""SSGAN (Chen et al. 2019, arXiv 1811.11212): a discriminator that also tells by how much an image is turned."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.types import ImageSize, Node, NonNegativeFloat
from modules.networks.resnet import LayerFactory
from modules.sngan import SNGAN


class SSGAN(SNGAN):
    """SNGAN whose discriminator learns the rotation of reals, while the generator makes fakes whose rotation it recognizes.

    As in the authors' code, a quarter of the batch is shown at all four angles. The adversarial loss sees upright images only.

    Args:
        rotation_d, rotation_g: weights of the rotation loss; beta and alpha of the paper.
        settings: see `SNGAN`.
    """

    def __init__(
        self, image_size: ImageSize, condition: Node | None = None, rotation_d: NonNegativeFloat = 1.0,
        rotation_g: NonNegativeFloat = 0.2, **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(image_size, condition=condition, **settings)

    def _build(self) -> None:
        super()._build()
        self.rotation_head = LayerFactory().linear(self.discriminator.linear.in_features, 4)

    def discriminator_parts(self) -> list[nn.Module]:
        return [*super().discriminator_parts(), self.rotation_head]

    def rotation_loss(self, images: Tensor) -> Tensor:
        """Cross entropy of the angles of a quarter of the images."""
        turned, angles = all_rotations(images[: max(1, len(images) // 4)])
        logits = self.rotation_head(self.discriminator.features(self.augment(turned)))
        return F.cross_entropy(logits, angles)

    def discriminator_terms(self, reals: Tensor, fakes: Tensor) -> dict[str, Tensor]:
        weight = self.hparams.rotation_d
        return {"rotation": weight * self.rotation_loss(reals)} if weight else {}

    def generator_terms(self, fakes: Tensor) -> dict[str, Tensor]:
        weight = self.hparams.rotation_g
        return {"rotation": weight * self.rotation_loss(fakes)} if weight else {}


def all_rotations(images: Tensor) -> tuple[Tensor, Tensor]:
    """Square images [N, 3, s, s] turned by 0, 90, 180 and 270 degrees [4N, 3, s, s], and the quarters of a turn [4N]."""
    turned = torch.cat([images.rot90(quarters, (2, 3)) for quarters in range(4)])
    return turned, torch.arange(4, device=images.device).repeat_interleave(len(images))
