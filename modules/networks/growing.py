"""ConSinGAN's networks (Hinz et al. 2021): a generator that grows in feature space, a critic, changed images as inputs."""

from collections import OrderedDict
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from modules.networks.patch_gan import dcgan_init, hidden_layers
from modules.ops import noise
from modules.ops.images import luma


def conv(inputs: int, outputs: int) -> nn.Module:
    """A 3x3 convolution without padding."""
    return dcgan_init(nn.Conv2d(inputs, outputs, 3))


def conv_layers(inputs: int, width: int, num_layers: int, slope: float, batch_norm: bool = False) -> nn.Sequential:
    norm = (lambda channels: dcgan_init(nn.BatchNorm2d(channels))) if batch_norm else None
    return nn.Sequential(*hidden_layers(inputs, width, num_layers, conv, norm, slope))


class GrowingGenerator(nn.Module):
    """An input layer, one block of `num_layers` convolutions for each stage, an image layer; any size works. Above stage 0 a
    block adds a residual to upsampled features. With `enlarge` its input is upsampled, and noise added, by the block's margin
    beyond the stage's size; else it is zero-padded, which marks positions near the border."""

    def __init__(self, num_stages: int, width: int, num_layers: int, slope: float, batch_norm: bool, enlarge: bool) -> None:
        super().__init__()
        self.width, self.margin, self.enlarge = width, num_layers, enlarge
        self.head = conv_layers(3, width, 1, slope)
        self.blocks = nn.ModuleList(conv_layers(width, width, num_layers, slope, batch_norm) for _ in range(num_stages))
        self.tail = nn.Sequential(conv(width, 3), nn.Tanh())

    def input_shapes(self, sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
        around = 2 * self.margin if self.enlarge else 0
        return [(3, *sizes[0]), *((self.width, height + around, width + around) for height, width in sizes[1:])]

    def encode(self, images: Tensor) -> Tensor:
        return self.blocks[0](pad(self.head(pad(images, 1)), self.margin))

    def decode(self, features: Tensor) -> Tensor:
        return self.tail(pad(features, 1))

    def forward(
        self, inputs: Sequence[Tensor], sizes: Sequence[tuple[int, int]], amplitudes: Tensor,
        detailed: Tensor | None = None, stage: int = 0,
    ) -> Tensor:  # fmt: skip
        """Images of the last size from the stages' inputs. `detailed` is the image inputs[0] at the size of `stage` > 0: what
        that stage's image lacks of it, as the difference of their features of stage 0, is added there."""
        features = self.encode(inputs[0])
        for n in range(1, len(inputs)):
            grown = upsample(features, sizes[n])
            inner = upsample(features, tuple(side + 2 * self.margin for side in sizes[n])) if self.enlarge else grown
            inner = inner + amplitudes[n] * inputs[n]
            features = grown + self.blocks[n](inner if self.enlarge else pad(inner, self.margin))
            if detailed is not None and n == stage:
                features = features + self.encode(detailed) - self.encode(self.decode(features))
        return self.decode(features)


def valid_critic(width: int, num_layers: int, slope: float) -> nn.Sequential:
    """A map of scores [N, 1, H - f + 1, W - f + 1], one for each patch of side f = 2 `num_layers` + 5; no norm."""
    body = nn.Sequential(conv_layers(3, width, num_layers + 1, slope), conv(width, 1))
    return nn.Sequential(OrderedDict(body=body))  # its name in checkpoints


def pad(images: Tensor, margin: int) -> Tensor:
    return F.pad(images, [margin] * 4)


def upsample(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Features at a larger size; not clamped, unlike `modules.ops.images.resize`."""
    return F.interpolate(features, size, mode="bicubic", align_corners=True)


def degrade(image: Tensor) -> Tensor:
    """An image [3, H, W] with other brightness, colors, gray, noise (each with chance 0.25) and cut-outs (0.9)."""
    # Paper: transforms of a library with these chances; here: similar ones.
    chance = noise.rand(5).tolist()
    if chance[0] < 0.25:
        image = image * float(0.5 + noise.rand(1)) + float(0.8 * noise.rand(1) - 0.4)
    if chance[1] < 0.25:
        image = image + (0.8 * noise.rand(3, 1, 1) - 0.4).to(image)
    if chance[2] < 0.25:
        image = luma(image.unsqueeze(0))[0].expand(3, -1, -1)
    if chance[3] < 0.25:
        image = image + float(0.3 * noise.rand(1)) * noise.randn_like(image)
    image = image.clamp(-1, 1)
    for _ in range(int(noise.randint(1, 6, (1,))) if chance[4] < 0.9 else 0):
        image[_random_region(image, _random_sides(image))] = (2 * noise.rand(3, 1, 1) - 1).to(image)
    return image


def move_tiles(image: Tensor) -> Tensor:
    """An image [3, H, W] with one to five of its rectangles copied elsewhere."""
    moved = image.clone()
    for _ in range(int(noise.randint(1, 6, (1,)))):
        sides = _random_sides(image)
        moved[_random_region(image, sides)] = image[_random_region(image, sides)]
    return moved


def _random_sides(image: Tensor) -> list[int]:
    return [int(noise.randint(max(1, side // 8), max(1, side // 3) + 1, (1,))) for side in image.shape[-2:]]


def _random_region(image: Tensor, sides: Sequence[int]) -> tuple[slice, ...]:
    starts = [int(noise.randint(0, full - side + 1, (1,))) for full, side in zip(image.shape[-2:], sides, strict=True)]
    return slice(None), *(slice(start, start + side) for start, side in zip(starts, sides, strict=True))


# Modes with images as inputs: how these are changed, and the standard deviation of the noise on them.
INPUT_AUGMENTATIONS = {"harmonization": (degrade, 0.0), "editing": (move_tiles, 0.1)}
