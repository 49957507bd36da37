"""Distances between images and their reconstructions that need no weight file, and perceptual ones that need one."""

from collections.abc import Callable
from itertools import accumulate

import torch.nn.functional as F
from torch import Tensor, nn

SCALES = 3


def gradient_l1(images: Tensor, targets: Tensor) -> Tensor:
    """Mean absolute difference, plus that of the differences between neighboring pixels at three scales."""
    total = (images - targets).abs().mean()
    difference = images - targets
    for _ in range(SCALES):
        if min(difference.shape[-2:]) < 2:
            break
        total = total + difference.diff(dim=2).abs().mean() + difference.diff(dim=3).abs().mean()
        difference = F.avg_pool2d(difference, 2)
    return total


def perceptual(layers: Callable[[Tensor], list[Tensor]]) -> Callable[[Tensor, Tensor], Tensor]:
    """Distance of images by feature maps: the mean over positions of the squared distance of unit vectors, summed over
    `layers`, as LPIPS (Zhang et al. 2018) without its learned weights."""

    def distance(images: Tensor, targets: Tensor) -> Tensor:
        pairs = zip(layers(images), layers(targets), strict=True)
        return sum((F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean() for a, b in pairs)

    return distance


def outputs_of(network: nn.Sequential, ends: tuple[int, ...]) -> Callable[[Tensor], list[Tensor]]:
    """A function that gives the outputs of some layers of `network`."""

    def layers(images: Tensor) -> list[Tensor]:
        maps = accumulate(network, lambda inputs, layer: layer(inputs), initial=images)
        return [output for index, output in enumerate(maps, -1) if index in ends]

    return layers
