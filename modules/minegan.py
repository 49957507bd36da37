"""MineGAN (Wang et al. 2020, arXiv 1912.05270): mines the latents of a source generator that suit the target."""

from typing import Any, Literal

from torch import Tensor, nn

from core.types import ImageSize, PositiveInt
from modules.tgan import TGAN


class Miner(nn.Module):
    """z to z: two linear layers with ReLU between, or with `residual` z plus these, the last one zero at first."""

    def __init__(self, dim: int, residual: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.residual = residual
        if residual:
            nn.init.zeros_(self.layers[2].weight)
            nn.init.zeros_(self.layers[2].bias)

    def forward(self, z: Tensor) -> Tensor:
        return z + self.layers(z) if self.residual else self.layers(z)


class MineGAN(TGAN):
    """TGAN with a miner before the mapping network, in two stages: first miner and discriminator train, then all parts.

    Paper's code: the miner's gradients are never cleared; here: they are. Path length only in the second stage.

    Args:
        miner_epochs: epochs of the first stage; `epochs` are those of the second.
        miner_init: default, as in the released code, or residual: begins exactly at the source.
        settings: see `TGAN`.
    """

    duration_settings = ("epochs", "miner_epochs")

    def __init__(
        self, image_size: ImageSize, miner_epochs: PositiveInt = 10, miner_init: Literal["default", "residual"] = "default",
        epochs: PositiveInt = 10, **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(image_size, epochs=[miner_epochs, epochs], num_stages=2, **settings)

    def _build(self) -> None:
        super()._build()
        self.miner = Miner(self.hparams.z_dim, self.hparams.miner_init == "residual")

    def stage_label(self, stage: int) -> str:
        return ("miner", "all parts")[stage]

    def stage_modules(self, stage: int) -> list[nn.Module]:
        return [self.miner, self.discriminator, *([self.generator] if stage else [])]

    def trained_g(self) -> list[nn.Parameter]:
        return [*super().trained_g(), *self.miner.parameters()]

    def map(self, z: Tensor) -> Tensor:
        return super().map(self.miner(z))
