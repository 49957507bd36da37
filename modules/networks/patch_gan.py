"""Fully convolutional generators and critics of patches: 3x3 convolutions, stride 1, same padding, so any size works."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from core.errors import UserError

SLOPE = 0.2


def hidden_layers(
    inputs: int, width: int, depth: int, conv: Callable[[int, int], nn.Module],
    norm: Callable[[int], nn.Module] | None = None, slope: float = SLOPE,
) -> list[nn.Module]:  # fmt: skip
    """`depth` times `conv`(inputs, outputs), `norm`(channels) if given, and LeakyReLU."""
    layers: list[nn.Module] = []
    for i in range(depth):
        normalization = [norm(width)] if norm else []
        layers += [conv(width if i else inputs, width), *normalization, nn.LeakyReLU(slope, inplace=True)]
    return layers


def he_conv(inputs: int, outputs: int, padding: str = "zeros") -> nn.Conv2d:
    """A 3x3 convolution with He initialization, so that deep stacks train without batch norm."""
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode=padding)
    nn.init.kaiming_normal_(layer.weight, a=SLOPE)
    nn.init.zeros_(layer.bias)
    return layer


def dcgan_init(layer: nn.Module) -> nn.Module:
    """Gives a convolution weights from N(0, 0.02²), batch norm from N(1, 0.02²), as in DCGAN (Radford et al. 2015)."""
    if isinstance(layer, nn.Conv2d | nn.BatchNorm2d):
        nn.init.normal_(layer.weight, float(isinstance(layer, nn.BatchNorm2d)), 0.02)
    return layer


def conv_stack(inputs: int, width: int, outputs: int, depth: int, gain: float = 1.0, padding: str = "zeros") -> nn.Sequential:
    """`depth` hidden layers and a linear one, its weights scaled by `gain`; receptive field 2 * depth + 3."""
    conv = partial(he_conv, padding=padding)
    stack = nn.Sequential(*hidden_layers(inputs, width, depth, conv), conv(width, outputs))
    with torch.no_grad():
        stack[-1].weight.mul_(gain)
    return stack


class ResidualGenerator(nn.Module):
    """Adds detail to an upsampled image [N, 3, H, W]: y + tanh(stack(y)); starts as the identity. Borders are reflected: with
    zeros, dark dashes grow along them at fine scales."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.body = conv_stack(3, width, 3, depth, gain=0.0, padding="reflect")

    def forward(self, images: Tensor) -> Tensor:
        if min(images.shape[-2:]) < 2:
            raise UserError(f"an image of {images.shape[-2]}x{images.shape[-1]} pixels is too small; the minimum is 2x2")
        return images + torch.tanh(self.body(images))


class PatchCritic(nn.Module):
    """Scores [N, 1, H, W], one for each patch; no batch norm, with which a score would depend on the whole batch."""

    def __init__(self, width: int, depth: int, spectral: bool = True, padding: str = "zeros") -> None:
        super().__init__()
        self.body = conv_stack(3, width, 1, depth, gain=1 / math.sqrt(width), padding=padding)
        if spectral:
            for layer in self.body[:-1:2]:
                spectral_norm(layer)

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)
