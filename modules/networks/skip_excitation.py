"""Networks of FastGAN (Liu et al. 2021, arXiv 2101.04775), written from the paper and the figures of its layers, for any side
that is a power of two from 32 on. Convolutions have no bias, all but the last ones of the generator spectral norm."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.networks.spectral import spectral_norm
from modules.ops import noise

SMALL_SIDE = 128  # of the small image that the discriminator also sees; half the side for small images
WIDTHS = {4: 16, 8: 8, 16: 4, 32: 2, 64: 2}  # of the generator's maps, times width; of larger ones 128 / side
SKIP_SIDES = (64, 128, 256, 512)  # of maps that a map of a sixteenth of the side excites
DECODER_WIDTHS = (128, 64, 64, 32)  # of the last layers before a reconstruction, times width / 64


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0, mode: str = "zeros") -> nn.Module:
    return spectral_norm(initialized(nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False, padding_mode=mode)))


def initialized(layer: nn.Module) -> nn.Module:
    nn.init.normal_(layer.weight, 0, 0.02)
    return layer


def norm(channels: int) -> nn.Module:
    layer = nn.BatchNorm2d(channels)
    nn.init.normal_(layer.weight, 1, 0.02)
    return layer


def small_side(side: int) -> int:
    """Side of the small image that goes with one of side s."""
    return min(SMALL_SIDE, side // 2)


class Noise(nn.Module):
    """Adds one channel of normal noise times a learned number, at first 0; in eval mode only where `active`."""

    def __init__(self) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.zeros(1))
        self.active = True

    def forward(self, features: Tensor) -> Tensor:
        if not (self.training or self.active):
            return features
        values = noise.randn(len(features), 1, *features.shape[-2:], device=features.device)
        return features + self.strength * values


def up_block(inputs: int, outputs: int) -> nn.Module:
    """Doubles the side."""
    return nn.Sequential(nn.Upsample(scale_factor=2), conv(inputs, 2 * outputs, 3, 1, 1), norm(2 * outputs), nn.GLU(1))


def noisy_up_block(inputs: int, outputs: int) -> nn.Module:
    """Doubles the side, with a second convolution and noise."""
    first = [nn.Upsample(scale_factor=2), conv(inputs, 2 * outputs, 3, 1, 1), Noise(), norm(2 * outputs), nn.GLU(1)]
    return nn.Sequential(*first, conv(outputs, 2 * outputs, 3, 1, 1), Noise(), norm(2 * outputs), nn.GLU(1))


class SkipExcitation(nn.Module):
    """Skip-layer excitation: channels of a large map times gates in (0, 1) that a small map gives."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        layers = [conv(inputs, outputs, 4), nn.SiLU(), conv(outputs, outputs, 1), nn.Sigmoid()]
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(4), *layers)

    def forward(self, small: Tensor, large: Tensor) -> Tensor:
        return large * self.gate(small)


class FastGANGenerator(nn.Module):
    """z [N, z_dim] -> images [N, 3, s, s] and small ones.

    Paper's code: tanh at 1024 pixels only; here: always.

    Args:
        width: channels at 128×128; published 64.
        excitation: ratio of the sides of two maps that a skip-layer excitation connects; published 16.
    """

    def __init__(self, side: int, z_dim: int, width: int, excitation: int = 16) -> None:
        super().__init__()
        self.z_dim, self.excitation = z_dim, excitation
        sides = [4 * 2**level for level in range(side.bit_length() - 2)]
        widths = {r: max(1, int(width * WIDTHS.get(r, 128 / r))) for r in sides}
        # The matrix of a transposed convolution from one pixel is its weight [z_dim, out * 16].
        first = spectral_norm(initialized(nn.ConvTranspose2d(z_dim, 2 * widths[4], 4, bias=False)))
        self.start = nn.Sequential(first, norm(2 * widths[4]), nn.GLU(1))
        kinds = {r: noisy_up_block if r.bit_length() % 2 == 0 else up_block for r in sides[1:]}
        self.blocks = nn.ModuleDict({str(r): kinds[r](widths[r // 2], widths[r]) for r in sides[1:]})
        excited = [r for r in sides if r // excitation >= 4 and (r in SKIP_SIDES or excitation != 16)]
        self.skips = nn.ModuleDict({str(r): SkipExcitation(widths[r // excitation], widths[r]) for r in excited})
        self.small = small_side(side)
        # Paper's code: zeros around the last map, which without a bias become a gray frame of light images; here: its edge.
        self.to_small, self.to_big = conv(widths[self.small], 3, 1), conv(widths[side], 3, 3, 1, 1, "replicate")

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        maps = {4: self.start(z[:, :, None, None])}
        for key, block in self.blocks.items():
            side = int(key)
            maps[side] = block(maps[side // 2])
            if key in self.skips:
                maps[side] = self.skips[key](maps[side // self.excitation], maps[side])
        return self.to_big(maps[side]).tanh(), self.to_small(maps[self.small]).tanh()


def down_layers(inputs: int, outputs: int) -> list[nn.Module]:
    """Halves the side."""
    return [conv(inputs, outputs, 4, 2, 1), norm(outputs), nn.LeakyReLU(0.2)]


class DownBlock(nn.Module):
    """Mean of two convolutions, the first with stride 2, and a 1×1 convolution of the averaged map."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        second = [conv(outputs, outputs, 3, 1, 1), norm(outputs), nn.LeakyReLU(0.2)]
        self.main = nn.Sequential(*down_layers(inputs, outputs), *second)
        self.direct = nn.Sequential(nn.AvgPool2d(2), conv(inputs, outputs, 1), norm(outputs), nn.LeakyReLU(0.2))

    def forward(self, features: Tensor) -> Tensor:
        return (self.main(features) + self.direct(features)) / 2


def decoder(inputs: int, width: int, side: int) -> nn.Module:
    """From 8×8 to images of `side`."""
    ups = side.bit_length() - 4
    widths = [inputs, *(max(1, value * width // 64) for value in DECODER_WIDTHS[len(DECODER_WIDTHS) - ups :])]
    blocks = [up_block(a, b) for a, b in zip(widths, widths[1:], strict=False)]
    return nn.Sequential(nn.AdaptiveAvgPool2d(8), *blocks, conv(widths[-1], 3, 3, 1, 1), nn.Tanh())


class DiscriminatorOutput(NamedTuple):
    """Logits [N, 50] of patches of the big and the small image; reconstructions of reals: from the last map of the big
    image, from that of the small one, and of a quadrant from a map of 16×16."""

    logits: Tensor
    reconstructions: tuple[Tensor, Tensor, Tensor] | None


class FastGANDiscriminator(nn.Module):
    """Patches of images [N, 3, s, s] and of their small versions; decoders from its features.

    Args:
        width: 64 as published; a map of side r has 64 * width / r channels.
    """

    def __init__(self, side: int, width: int) -> None:
        super().__init__()

        def wide(r: int) -> int:  # channels of a map of side r
            return max(1, width * 64 // r)

        stem_side = min(side, 256)
        if side <= 256:
            self.stem = nn.Sequential(conv(3, wide(side), 3, 1, 1), nn.LeakyReLU(0.2))
        elif side == 512:
            self.stem = nn.Sequential(conv(3, wide(256), 4, 2, 1), nn.LeakyReLU(0.2))
        else:
            layers = [conv(3, wide(512), 4, 2, 1), nn.LeakyReLU(0.2)]
            self.stem = nn.Sequential(*layers, *down_layers(wide(512), wide(256)))
        sides = [stem_side >> level for level in range(stem_side.bit_length() - 3)]  # down to 8
        self.sides = sides
        self.blocks = nn.ModuleDict({str(r): DownBlock(wide(2 * r), wide(r)) for r in sides[1:]})
        excited = [r for r in sides if 8 * r in sides]
        self.skips = nn.ModuleDict({str(r): SkipExcitation(wide(8 * r), wide(r)) for r in excited})
        last = 16 * width
        self.big_head = nn.Sequential(conv(wide(8), last, 1), norm(last), nn.LeakyReLU(0.2), conv(last, 1, 4))

        self.small = small_side(side)
        halves = [self.small >> level for level in range(1, self.small.bit_length() - 3)]
        narrow = {r: max(1, width * 32 // r) for r in halves}
        layers = [conv(3, narrow[halves[0]], 4, 2, 1), nn.LeakyReLU(0.2)]
        for r in halves[1:]:
            layers += down_layers(narrow[2 * r], narrow[r])
        self.small_path = nn.Sequential(*layers)
        self.small_head = conv(narrow[8], 1, 4)
        sizes = (wide(8), narrow[8], wide(16))
        self.decoders = nn.ModuleList(decoder(inputs, width, self.small) for inputs in sizes)

    def forward(self, big: Tensor, small: Tensor, quadrant: int | None = None) -> DiscriminatorOutput:
        """`quadrant` 0 to 3, row by row, is the one to reconstruct; None: no reconstructions."""
        maps = {self.sides[0]: self.stem(big)}
        for key, block in self.blocks.items():
            side = int(key)
            maps[side] = block(maps[2 * side])
            if key in self.skips:
                maps[side] = self.skips[key](maps[8 * side], maps[side])
        features = self.small_path(small)
        logits = torch.cat([self.big_head(maps[8]).flatten(1), self.small_head(features).flatten(1)], 1)
        if quadrant is None:
            return DiscriminatorOutput(logits, None)
        part = crop_quadrant(maps[16], quadrant)
        inputs = maps[8], features, part
        return DiscriminatorOutput(logits, tuple(net(x) for net, x in zip(self.decoders, inputs, strict=True)))


def crop_quadrant(maps: Tensor, quadrant: int) -> Tensor:
    """A quarter of maps [N, C, s, s], counted row by row."""
    row, column = divmod(quadrant, 2)
    half = maps.shape[-1] // 2
    return maps[:, :, row * half : (row + 1) * half, column * half : (column + 1) * half]


def resize_nearest(images: Tensor, side: int) -> Tensor:
    """Reals as FastGAN's code resizes them."""
    return F.interpolate(images, (side, side))
