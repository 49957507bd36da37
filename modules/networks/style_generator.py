"""StyleGAN2's generator (Karras et al. 2020, arXiv 1912.04958): mapping network, modulated convolutions, skip synthesis.

Plain torch operations, differentiable twice, for R1 and path length. Convolutions modulate their inputs and outputs instead
of their weights, which is the same and needs no grouped convolution.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import UserError
from modules.networks.equalized import EqualLinear, activate, limit
from modules.ops import noise as image_noise
from modules.ops.fir import filter_images, upsample2

EPSILON = 1e-8


def channels_at(resolution: int, multiplier: float, largest: int, channels: Sequence[int] | None = None) -> int:
    """Channels at a resolution: min(largest, 16384 · multiplier / resolution), or `channels` from 4×4 on."""
    if channels is not None:
        return channels[int(math.log2(resolution)) - 2]
    return min(largest, round(16384 * multiplier / resolution))


def resolutions(image_size: int) -> list[int]:
    """4, 8, …, `image_size`; UserError unless it is a power of two of at least 16."""
    if image_size < 16 or image_size & (image_size - 1):
        raise UserError(f"image_size is {image_size}; StyleGAN2 needs a power of two of at least 16")
    return [2**k for k in range(2, int(math.log2(image_size)) + 1)]


class ModulatedConv(nn.Module):
    """Convolution whose input channels are scaled by a style; `demodulate` restores unit variance of the outputs."""

    def __init__(self, inputs: int, outputs: int, kernel: int, w_dim: int, demodulate: bool = True, up: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.affine = EqualLinear(w_dim, inputs, bias=1.0)
        self.scale, self.demodulate, self.up = 1 / math.sqrt(inputs * kernel**2), demodulate, up

    def forward(self, images: Tensor, w: Tensor) -> Tensor:
        styles = self.affine(w)
        weight = self.weight * self.scale
        images = images * styles[:, :, None, None]
        if self.up:
            images = F.conv_transpose2d(images, weight.transpose(0, 1), stride=2)
            images = filter_images(images, padding=1, gain=4.0)
        else:
            images = F.conv2d(images, weight, padding=weight.shape[-1] // 2)
        if not self.demodulate:
            return images
        norms = styles.square() @ weight.square().sum((2, 3)).T
        return images * torch.rsqrt(norms + EPSILON)[:, :, None, None]


class StyledConv(nn.Module):
    """Modulated convolution, noise, bias, activation; clamped to ± `clamp`."""

    clamp: float | None = None

    def __init__(self, inputs: int, outputs: int, w_dim: int, resolution: int, up: bool = False) -> None:
        super().__init__()
        self.conv = ModulatedConv(inputs, outputs, 3, w_dim, up=up)
        self.noise_strength = nn.Parameter(torch.zeros(1))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.after_conv = nn.Identity()  # a place for what an adaptation inserts
        self.register_buffer("noise_const", torch.randn(1, 1, resolution, resolution))

    def forward(self, images: Tensor, w: Tensor, noise: str | Tensor | None) -> Tensor:
        images = self.after_conv(self.conv(images, w))
        if noise == "random":
            noise = image_noise.randn(len(images), 1, *images.shape[-2:], device=images.device)
        elif noise == "const":
            noise = self.noise_const
        if noise is not None:
            images = images + self.noise_strength * noise
        return activate(images + self.bias[:, None, None], self.clamp)


class ToRGB(nn.Module):
    """Modulated 1×1 convolution without demodulation, and bias; clamped to ± `clamp`."""

    clamp: float | None = None

    def __init__(self, inputs: int, w_dim: int) -> None:
        super().__init__()
        self.conv = ModulatedConv(inputs, 3, 1, w_dim, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, images: Tensor, w: Tensor) -> Tensor:
        return limit(self.conv(images, w) + self.bias[:, None, None], self.clamp)


class GeneratorOutput(NamedTuple):
    """Images [N, 3, s, s], not clamped; latents [N, n_latent, w_dim]; features by layer index."""

    images: Tensor
    w: Tensor
    features: dict[int, Tensor]


class StyleGenerator(nn.Module):
    """Mapping and synthesis.

    Layer indices: styled convolution 0 is the one at 4×4, 1 and 2 those at 8×8 (up, same), and so on; `num_convs` in all.

    Args:
        image_size: side s, a power of two.
        z_dim, w_dim: lengths of z and w; `mapping_layers`: number of layers between them, with `mapping_lr_mul`.
        channel_multiplier, channel_max, channels: see `channels_at`.
    """

    def __init__(
        self, image_size: int, z_dim: int = 512, w_dim: int = 512, mapping_layers: int = 8, mapping_lr_mul: float = 0.01,
        channel_multiplier: float = 2, channel_max: int = 512, channels: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        sides = resolutions(image_size)
        width = {side: channels_at(side, channel_multiplier, channel_max, channels) for side in sides}
        self.image_size, self.z_dim, self.w_dim = image_size, z_dim, w_dim
        dims = [z_dim] + [w_dim] * mapping_layers
        self.mapping_layers = nn.Sequential(
            *(EqualLinear(a, b, mapping_lr_mul, activation=True) for a, b in zip(dims, dims[1:], strict=False))
        )
        self.const = nn.Parameter(torch.randn(1, width[4], 4, 4))
        self.convs = nn.ModuleList([StyledConv(width[4], width[4], w_dim, 4)])
        self.to_rgb = nn.ModuleList([ToRGB(width[4], w_dim)])
        for below, side in zip(sides, sides[1:], strict=False):
            self.convs.append(StyledConv(width[below], width[side], w_dim, side, up=True))
            self.convs.append(StyledConv(width[side], width[side], w_dim, side))
            self.to_rgb.append(ToRGB(width[side], w_dim))
        self.num_convs, self.num_latents = len(self.convs), len(self.convs) + 1
        self.register_buffer("w_mean", torch.zeros(w_dim))  # of the mapping's outputs, for truncation

    def mapping(self, z: Tensor) -> Tensor:
        """w [N, w_dim] of z [N, z_dim], which is normalized first."""
        return self.mapping_layers(z * torch.rsqrt(z.square().mean(1, keepdim=True) + EPSILON))

    def broadcast(self, w: Tensor, other: Tensor | None = None, crossover: int | None = None) -> Tensor:
        """One w for each layer [N, num_latents, w_dim]; those from `crossover` on of `other` (style mixing)."""
        w = w[:, None].expand(-1, self.num_latents, -1)
        if other is None:
            return w
        late = torch.arange(self.num_latents, device=w.device)[:, None] >= crossover
        return torch.where(late, other[:, None], w)

    def truncate(self, w: Tensor, psi: float) -> Tensor:
        """w moved towards the mean by the factor `psi`."""
        return w if psi == 1 else self.w_mean + psi * (w - self.w_mean)

    def synthesis(
        self, w: Tensor, noise: str | Sequence[Tensor] | None = "random", features: Sequence[int] = ()
    ) -> GeneratorOutput:
        """Images of latents [N, num_latents, w_dim].

        Args:
            noise: "random", "const" (the layers' buffers), a list with one tensor for each layer, or None.
            features: layer indices whose activations [N, C, r, r] are returned.
        """
        activations: dict[int, Tensor] = {}
        images, rgb = self.const.expand(len(w), -1, -1, -1), None
        for index, conv in enumerate(self.convs):
            images = conv(images, w[:, index], noise if noise is None or isinstance(noise, str) else noise[index])
            if index in features:
                activations[index] = images
            if index % 2 == 0:  # the second convolution of a resolution
                addition = self.to_rgb[index // 2](images, w[:, index + 1])
                rgb = addition if rgb is None else upsample2(rgb) + addition
        return GeneratorOutput(rgb, w, activations)

    def forward(
        self, z: Tensor, noise: str | Sequence[Tensor] | None = "random", psi: float = 1.0, features: Sequence[int] = ()
    ) -> GeneratorOutput:
        return self.synthesis(self.broadcast(self.truncate(self.mapping(z), psi)), noise, features)
