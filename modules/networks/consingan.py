"""ConSinGAN's networks (Hinz et al. 2021): a generator that grows in feature space, and a critic of patches."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    """A 3x3 convolution without padding, with SinGAN's initialisation."""
    layer = nn.Conv2d(inputs, outputs, 3)
    nn.init.normal_(layer.weight, 0.0, 0.02)
    return layer


def conv_layers(inputs: int, width: int, number: int, slope: float, batch_norm: bool = False) -> nn.Sequential:
    """`number` convolutions, each with LeakyReLU and, if wanted, batch norm before it; one pixel less on each side."""
    layers: list[nn.Module] = []
    for i in range(number):
        layers.append(conv(width if i else inputs, width))
        if batch_norm:
            norm = nn.BatchNorm2d(width)
            nn.init.normal_(norm.weight, 1.0, 0.02)
            layers.append(norm)
        layers.append(nn.LeakyReLU(slope))
    return nn.Sequential(*layers)


class GrowingGenerator(nn.Module):
    """An input layer, one block of `num_layers` convolutions for each stage, an image layer; any size works.

    Above stage 0 a block adds a residual to upsampled features. With `enlarge` its input is upsampled by the block's
    margin beyond the stage's size, and noise covers that, too; else it has the stage's size and is zero-padded, which
    tells places near the border from others.
    """

    def __init__(
        self, num_stages: int, width: int, num_layers: int, slope: float, batch_norm: bool, enlarge: bool
    ) -> None:
        super().__init__()
        self.width, self.margin, self.enlarge = width, num_layers, enlarge
        self.head = conv_layers(3, width, 1, slope)
        self.blocks = nn.ModuleList(conv_layers(width, width, num_layers, slope, batch_norm) for _ in range(num_stages))
        self.tail = nn.Sequential(conv(width, 3), nn.Tanh())

    def input_shape(self, stage: int, size: tuple[int, int]) -> tuple[int, int, int]:
        """Channels, height and width of a stage's input: an image or its like at stage 0, noise of features above."""
        if stage == 0:
            return 3, *size
        around = 2 * self.margin if self.enlarge else 0
        return self.width, size[0] + around, size[1] + around

    def encode(self, images: Tensor) -> Tensor:
        """Features [N, width, H, W] of stage 0 for images [N, 3, H, W] or noise."""
        return self.blocks[0](pad(self.head(pad(images, 1)), self.margin))

    def forward(
        self,
        inputs: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
        amplitudes: Tensor,
        detailed: Tensor | None = None,
        stage: int = 0,
    ) -> Tensor:
        """Images in [-1, 1] of the last size, from the stages' `inputs` [N, *input_shape], sizes and amplitudes.

        `detailed` is the image inputs[0] at the size of `stage` > 0: after that stage its features of stage 0 take the
        place of those of inputs[0], with what the stages up to there have added.
        """
        features = coarse = self.encode(inputs[0])
        for n in range(1, len(inputs)):
            grown = upsample(features, sizes[n])
            inner = upsample(features, tuple(side + 2 * self.margin for side in sizes[n])) if self.enlarge else grown
            inner = inner + amplitudes[n] * inputs[n]
            features = grown + self.blocks[n](inner if self.enlarge else pad(inner, self.margin))
            if detailed is not None and n == stage:
                features = features + self.encode(detailed) - upsample(coarse, sizes[n])
        return self.tail(pad(features, 1))


class ValidCritic(nn.Module):
    """A map of scores [N, 1, H - f + 1, W - f + 1], one for each patch of side f = `receptive_field`; no norm."""

    def __init__(self, width: int, num_layers: int, slope: float) -> None:
        super().__init__()
        self.receptive_field = 2 * (num_layers + 2) + 1
        self.body = nn.Sequential(conv_layers(3, width, num_layers + 1, slope), conv(width, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)


def pad(images: Tensor, margin: int) -> Tensor:
    """Zeros around images or features."""
    return F.pad(images, [margin] * 4)


def upsample(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Features at a larger size; not clamped, unlike `modules.ops.images.resize`."""
    return F.interpolate(features, size, mode="bicubic", align_corners=True)
