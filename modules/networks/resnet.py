"""Residual networks of SNGAN (Miyato et al. 2018, arXiv 1802.05957) and of BigGAN at the scale of CIFAR, with conditions:
conditional batch norm in the generator, projection in the discriminator (Miyato & Koyama 2018, arXiv 1802.05637)."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import UserError
from modules.networks.spectral import spectral_norm

SPECTRAL_EPS = 1e-8
Layers = Callable[..., nn.Module]


def xavier(weight: Tensor, gain: float) -> None:
    """Initial weights of SNGAN."""
    nn.init.xavier_uniform_(weight, gain)


def normal(weight: Tensor, gain: float) -> None:
    """Initial weights of BigGAN at the scale of CIFAR."""
    nn.init.normal_(weight, 0, 0.02)


class LayerFactory:
    """Linear layers and convolutions with zero biases, one rule for their weights, and spectral norm if asked."""

    def __init__(self, initialize: Callable[[Tensor, float], None] = xavier, spectral: bool = True) -> None:
        self.initialize, self.spectral = initialize, spectral

    def _finish(self, layer: nn.Module, gain: float) -> nn.Module:
        self.initialize(layer.weight, gain)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
        return spectral_norm(layer, eps=SPECTRAL_EPS) if self.spectral else layer

    def conv(self, inputs: int, outputs: int, kernel: int = 3, gain: float = math.sqrt(2)) -> nn.Module:
        return self._finish(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), gain)

    def linear(self, inputs: int, outputs: int, bias: bool = True) -> nn.Module:
        return self._finish(nn.Linear(inputs, outputs, bias), 1.0)


class ConditionalBatchNorm(nn.BatchNorm2d):
    """Batch norm with gain w + A v and bias b + B v of a code v [N, dim]; without a code plain batch norm.

    Args:
        dim: of the codes; 0: unconditional.
        one_hot: codes are one-hot, and w = 1, b = 0: A and B are tables of the classes.
    """

    def __init__(self, channels: int, dim: int = 0, one_hot: bool = False) -> None:
        super().__init__(channels, affine=not one_hot)
        self.gain = self.shift = None
        if dim:
            self.gain, self.shift = nn.Linear(dim, channels, bias=False), nn.Linear(dim, channels, bias=False)
            for layer in (self.gain, self.shift):
                nn.init.normal_(layer.weight, 0, 0.02)

    def forward(self, features: Tensor, codes: Tensor | None = None) -> Tensor:
        if self.gain is None:
            return super().forward(features)
        # Normalized without affine, so that gains add up.
        momentum, weight, bias = self.momentum, self.weight, self.bias
        if self.training:
            self.num_batches_tracked.add_(1)
            momentum = 1 / float(self.num_batches_tracked) if momentum is None else momentum
        features = F.batch_norm(
            features, self.running_mean, self.running_var, training=self.training, momentum=momentum or 0.0, eps=self.eps
        )
        gain = self.gain(codes) + (1 if weight is None else weight)
        shift = self.shift(codes) + (0 if bias is None else bias)
        return torch.addcmul(shift[:, :, None, None], features, gain[:, :, None, None])


class UpBlock(nn.Module):
    """From side r to 2r: norm, ReLU, nearest upsampling, convolution, norm, ReLU, convolution; 1×1 convolution beside it."""

    def __init__(self, inputs: int, outputs: int, layers: LayerFactory, norm: Layers) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(inputs), layers.conv(inputs, outputs)
        self.norm2, self.conv2 = norm(outputs), layers.conv(outputs, outputs)
        self.skip = layers.conv(inputs, outputs, 1, gain=1.0)

    def forward(self, features: Tensor, codes: Tensor | None) -> Tensor:
        main = self.conv1(F.interpolate(self.norm1(features, codes).relu(), scale_factor=2.0))
        main = self.conv2(self.norm2(main, codes).relu())
        return main + F.interpolate(self.skip(features), scale_factor=2.0)  # equal to the skip of the larger one


class ResNetGenerator(nn.Module):
    """z [N, z_dim] and codes -> images [N, 3, s, s] in (-1, 1), one block for each doubling from 4×4.

    Args:
        image_size: side s.
        channels: at 4×4 and after each block.
        condition: dimension of the vectors that codes are made of; 0: unconditional.
        embedding: dimension of the codes, a linear function of the vectors; None: codes are the vectors.
        one_hot: see `ConditionalBatchNorm`.
        layers: how layers are made.
    """

    def __init__(
        self, image_size: int, z_dim: int, channels: Sequence[int], condition: int = 0, embedding: int | None = None,
        one_hot: bool = False, layers: LayerFactory | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        layers = layers or LayerFactory(spectral=False)
        check_widths("g_channels", channels, image_size.bit_length() - 2, f"at 4×4 and at each size up to {image_size}")
        self.z_dim, self.code_dim = z_dim, (embedding or condition) if condition else 0

        def norm(width: int) -> ConditionalBatchNorm:
            return ConditionalBatchNorm(width, self.code_dim, one_hot)

        self.embedding = nn.Linear(condition, embedding) if condition and embedding else nn.Identity()
        self.linear = layers.linear(z_dim, 16 * channels[0])
        self.blocks = nn.ModuleList(UpBlock(a, b, layers, norm) for a, b in zip(channels, channels[1:], strict=False))
        self.norm = nn.BatchNorm2d(channels[-1])
        self.conv = layers.conv(channels[-1], 3, gain=1.0)

    def forward(self, z: Tensor, codes: Tensor | None = None) -> Tensor:
        features = self.linear(z).unflatten(1, (-1, 4, 4))
        for block in self.blocks:
            features = block(features, codes)
        return self.conv(self.norm(features).relu()).tanh()


class FirstBlock(nn.Module):
    """Block that gets an image: no ReLU before it, and the skip is averaged before its convolution."""

    def __init__(self, outputs: int, layers: LayerFactory) -> None:
        super().__init__()
        self.conv1, self.conv2 = layers.conv(3, outputs), layers.conv(outputs, outputs)
        self.skip = layers.conv(3, outputs, 1, gain=1.0)

    def forward(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv2(self.conv1(images).relu()), 2) + self.skip(F.avg_pool2d(images, 2))


class Block(nn.Module):
    """ReLU, convolution, ReLU, convolution, 2×2 mean if `down`; a 1×1 convolution beside it unless nothing changes.

    Args:
        hidden: width between the convolutions, default `inputs`.
    """

    def __init__(self, inputs: int, outputs: int, down: bool, layers: LayerFactory, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or inputs
        self.down = down
        self.conv1, self.conv2 = layers.conv(inputs, hidden), layers.conv(hidden, outputs)
        self.skip = layers.conv(inputs, outputs, 1, gain=1.0) if down or inputs != outputs else None

    def forward(self, features: Tensor) -> Tensor:
        main = self.conv2(self.conv1(features.relu()).relu())
        skip = features if self.skip is None else self.skip(features)
        return F.avg_pool2d(main + skip, 2) if self.down else main + skip


class DiscriminatorOutput(NamedTuple):
    """Logits [N] = linear + projection, and summed features [N, C] of the last layer."""

    logits: Tensor
    linear: Tensor
    projection: Tensor
    features: Tensor


class ResNetDiscriminator(nn.Module):
    """Images [N, 3, s, s] and condition vectors y -> logits l(h) + <E y / |y|, h>, with h the sum of the last features.

    Vectors have length 1, as those of classes, so that the spectral norm of E bounds the projection of any condition alike.

    Args:
        channels: of each block.
        down: how many of the blocks halve the side, the first ones.
        condition: dimension of y; 0: unconditional.
        wide: whether blocks are as wide inside as at their end (BigGAN at the scale of CIFAR).
        layers: how layers are made.
    """

    def __init__(
        self, channels: Sequence[int], down: int, condition: int = 0, wide: bool = False, layers: LayerFactory | None = None
    ) -> None:
        super().__init__()
        layers = layers or LayerFactory()
        pairs = enumerate(zip(channels, channels[1:], strict=False), start=1)
        blocks = [Block(a, b, index < down, layers, b if wide else None) for index, (a, b) in pairs]
        self.blocks = nn.ModuleList([FirstBlock(channels[0], layers), *blocks])
        self.linear = layers.linear(channels[-1], 1)
        self.embedding = layers.linear(condition, channels[-1], bias=False) if condition else None

    def features(self, images: Tensor) -> Tensor:
        """h [N, C]."""
        for block in self.blocks:
            images = block(images)
        return images.relu().sum((2, 3))

    def forward(self, images: Tensor, vectors: Tensor | None = None) -> DiscriminatorOutput:
        features = self.features(images)
        linear = self.linear(features).squeeze(1)
        if self.embedding is None:
            return DiscriminatorOutput(linear, linear, torch.zeros_like(linear), features)
        projection = (self.embedding(F.normalize(vectors)) * features).sum(1)
        return DiscriminatorOutput(linear + projection, linear, projection, features)

    def terms(self, images: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Both terms of logits: l(h) [N] of each image, and the projection [N, M] of each with each of M vectors."""
        features = self.features(images)
        return self.linear(features).squeeze(1), features @ self.embedding(F.normalize(vectors)).T


def check_widths(key: str, widths: Sequence[int], num_widths: int, meaning: str) -> None:
    """UserError unless there are `num_widths` widths."""
    if len(widths) != num_widths:
        raise UserError(f"{key} has {len(widths)} entries, {list(widths)}; expected {num_widths}, {meaning}")
