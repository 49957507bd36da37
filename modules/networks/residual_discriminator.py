"""StyleGAN2's residual discriminator (Karras et al. 2020, arXiv 1912.04958) with feature taps."""

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from core.errors import UserError
from modules.networks.equalized import EqualConv, EqualLinear
from modules.networks.style_generator import channels_at, resolutions
from modules.ops.fir import filter_images


class Block(nn.Module):
    """Residual block from resolution r to r / 2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = EqualConv(inputs, inputs, 3)
        self.conv2 = EqualConv(inputs, outputs, 3, stride=2, padding=0)
        self.skip = EqualConv(inputs, outputs, 1, bias=False, activation=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Output, and the activations of `conv1` [N, inputs, r, r] and `conv2` [N, outputs, r / 2, r / 2]."""
        first = self.conv1(images)
        second = self.conv2(filter_images(first, padding=2))
        return (second + self.skip(filter_images(images, padding=1, stride=2))) / math.sqrt(2), first, second


class DiscriminatorOutput(NamedTuple):
    """Logits [N, 1] and the features [N, C] that they are a function of, None if the pass was stopped before; activations by
    tap name."""

    logits: Tensor | None
    features: Tensor | None
    taps: dict[str, Tensor]


def minibatch_deviation(features: Tensor, group: int) -> Tensor:
    """Appends one channel with the standard deviation over groups of images, mean over channels and positions.

    A group's members are images with equal index modulo N / size, where its size is the largest divisor of N up to `group`.
    """
    num_images = len(features)
    size = max(divisor for divisor in range(1, min(num_images, group) + 1) if num_images % divisor == 0)
    groups = features.unflatten(0, (size, num_images // size))
    deviation = (groups.var(0, correction=0) + 1e-8).sqrt().mean((1, 2, 3))
    channel = deviation.repeat(size)[:, None, None, None].expand(-1, 1, *features.shape[-2:])
    return torch.cat([features, channel], 1)


class ResidualDiscriminator(nn.Module):
    """Taps, from image to logit: `<r>.conv1` at r×r and `<r>.conv2` at r/2×r/2 for r = s, s/2, …, 8.

    Args:
        image_size: side s, a power of two.
        channel_multiplier, channel_max, channels: see `channels_at`.
        deviation_group: images in a group of `minibatch_deviation`.
        condition: length of the vectors of a condition, which enter by projection (Miyato & Koyama 2018); 0: none.
    """

    def __init__(
        self, image_size: int, channel_multiplier: float = 2, channel_max: int = 512,
        channels: Sequence[int] | None = None, deviation_group: int = 4, condition: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.resolutions = resolutions(image_size)[:0:-1]
        width = {r: channels_at(r, channel_multiplier, channel_max, channels) for r in [*self.resolutions, 4]}
        self.deviation_group = deviation_group
        self.from_rgb = EqualConv(3, width[image_size], 1)
        self.blocks = nn.ModuleList(Block(width[r], width[r // 2]) for r in self.resolutions)
        self.conv = EqualConv(width[4] + 1, width[4], 3)
        self.linear = EqualLinear(width[4] * 16, width[4], activation=True)
        self.output = EqualLinear(width[4], 1)
        self.embedding = EqualLinear(condition, width[4]) if condition else None

    @property
    def tap_names(self) -> list[str]:
        """All taps, from image to logit."""
        return [f"{r}.{conv}" for r in self.resolutions for conv in ("conv1", "conv2")]

    def tap_shape(self, name: str) -> tuple[int, int]:
        """Channels and side of a tap's activations."""
        resolution, conv = name.split(".")
        block = self.blocks[self.resolutions.index(int(resolution))]
        weight = getattr(block, conv).weight
        return weight.shape[0], int(resolution) // (2 if conv == "conv2" else 1)

    def forward(
        self, images: Tensor, taps: Collection[str] = (), stop_after: str | None = None, vectors: Tensor | None = None
    ) -> DiscriminatorOutput:
        """Logits of images [N, 3, s, s], and activations of `taps`; with `stop_after` the pass ends at that tap."""
        unknown = {*taps, *([stop_after] if stop_after else [])} - set(self.tap_names)
        if unknown:
            raise UserError(f"unknown tap {sorted(unknown)[0]}; allowed are {', '.join(self.tap_names)}")
        found: dict[str, Tensor] = {}
        features = self.from_rgb(images)
        for resolution, block in zip(self.resolutions, self.blocks, strict=True):
            features, first, second = block(features)
            found |= {f"{resolution}.conv1": first, f"{resolution}.conv2": second}
            if stop_after is not None and stop_after in found:
                return DiscriminatorOutput(None, None, {name: found[name] for name in {*taps, stop_after}})
        features = self.conv(minibatch_deviation(features, self.deviation_group))
        features = self.linear(features.flatten(1))
        logits = self.output(features)
        if self.embedding is not None:
            logits = logits + (self.embedding(vectors) * features).sum(1, keepdim=True) / math.sqrt(features.shape[1])
        return DiscriminatorOutput(logits, features, {name: found[name] for name in taps})

    def terms(self, images: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Both terms of logits: the plain one [N] of each image, and the projection [N, M] of each with each of M vectors."""
        features = self(images, vectors=vectors[:1].expand(len(images), -1)).features
        return self.output(features).squeeze(1), features @ self.embedding(vectors).T / math.sqrt(features.shape[1])
