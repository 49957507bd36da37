"""FreezeD (Mo, Cho & Shin 2020, arXiv 2002.10964): fine-tuning with the discriminator's first layers frozen."""

from typing import Any

from torch import nn

from core.types import ImageSize, NonNegativeInt
from modules.tgan import TGAN


class FreezeD(TGAN):
    """TGAN whose discriminator keeps `from_rgb` and the blocks of the highest resolutions as the source's.

    Args:
        freeze_blocks: number of frozen residual blocks, both convolutions and skip; null: log2(s) - 4, so that the blocks
            16 → 8 and 8 → 4 and the layers behind them train, as in the released code. 0 is TGAN.
        settings: see `TGAN`.
    """

    needs_discriminator = True

    def __init__(self, image_size: ImageSize, freeze_blocks: NonNegativeInt | None = None, **settings: Any) -> None:
        super().__init__(image_size, **settings)

    def frozen(self) -> list[nn.Module]:
        net, num_blocks = self.discriminator, self.hparams.freeze_blocks
        num_blocks = len(net.blocks) - 2 if num_blocks is None else num_blocks
        return [net.from_rgb, *net.blocks[:num_blocks]] if num_blocks else []

    def trained_d(self) -> list[nn.Parameter]:
        fixed = {id(parameter) for module in self.frozen() for parameter in module.parameters()}
        return [parameter for parameter in super().trained_d() if id(parameter) not in fixed]
