"""Fully convolutional generators and critics of patches: 3x3 convolutions, stride 1, same padding, so any size works."""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from core.errors import UserError

SLOPE = 0.2


def conv(inputs: int, outputs: int, padding: str = "zeros") -> nn.Conv2d:
    """A 3x3 convolution with He initialization for LeakyReLU 0.2, so that deep stacks train without batch norm."""
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode=padding)
    nn.init.kaiming_normal_(layer.weight, a=SLOPE)
    nn.init.zeros_(layer.bias)
    return layer


def conv_stack(
    inputs: int, width: int, outputs: int, depth: int, gain: float = 1.0, padding: str = "zeros"
) -> nn.Sequential:
    """`depth` convolutions with LeakyReLU and a linear head, its weights scaled by `gain`; receptive field 2 * depth + 3."""
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [conv(width if i else inputs, width, padding), nn.LeakyReLU(SLOPE)]
    head = conv(width, outputs, padding)
    with torch.no_grad():
        head.weight.mul_(gain)
    return nn.Sequential(*layers, head)


class ResidualGenerator(nn.Module):
    """Adds detail to an upsampled image [N, 3, H, W]: y + tanh(stack(y)); starts as the identity.

    Receptive field 2 * depth + 3. Borders are reflected: with zeros, dark dashes grow along them at fine scales.
    """

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.body = conv_stack(3, width, 3, depth, gain=0.0, padding="reflect")

    def forward(self, images: Tensor) -> Tensor:
        if min(images.shape[-2:]) < 2:
            raise UserError(f"an image of {images.shape[-2]}x{images.shape[-1]} pixels is too small; 2 a side are needed")
        return images + torch.tanh(self.body(images))


class PatchCritic(nn.Module):
    """A map of scores [N, 1, H, W], one for each patch of side 2 * depth + 3; no batch norm, which would make a score depend
    on the whole batch."""

    def __init__(self, width: int, depth: int, spectral: bool = True, padding: str = "zeros") -> None:
        super().__init__()
        self.body = conv_stack(3, width, 1, depth, gain=1 / math.sqrt(width), padding=padding)
        if spectral:
            for layer in self.body[:-1]:
                if isinstance(layer, nn.Conv2d):
                    spectral_norm(layer)

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)
