"""BSA (Noguchi & Harada 2019, arXiv 1904.01774) on StyleGAN2: adaptation of a scale and a shift for each channel."""

import torch
from torch import Tensor, nn

from modules.networks.style_generator import StyledConv
from modules.tgan import TGAN


class ScaleShift(nn.Module):
    """y = scale · x + shift for each channel, 1 and 0 at first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, images: Tensor) -> Tensor:
        return images * self.scale[:, None, None] + self.shift[:, None, None]


class BSA(TGAN):
    """TGAN that trains only a scale and a shift behind each convolution of the generator, and the discriminator.

    Paper: batch normalization's scale and shift, supervised by reconstruction; here: StyleGAN2 has no normalization, so that
    they follow each demodulated convolution, and the adversarial loss of the other adaptations trains them.

    Args:
        settings: see `TGAN`.
    """

    needs_discriminator = True

    def _build(self) -> None:
        super()._build()
        for net in (self.generator, self.generator_ema):
            for conv in net.convs:
                conv.after_conv = ScaleShift(len(conv.bias))

    def trained_g(self) -> list[nn.Parameter]:
        convs: list[StyledConv] = list(self.generator.convs)
        return [parameter for conv in convs for parameter in conv.after_conv.parameters()]
