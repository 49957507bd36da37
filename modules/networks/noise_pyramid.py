"""SinGAN's networks (Rott Shaham et al. 2019): patch stacks without padding, and the chain of generators fed by noise."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.networks.patch_gan import SLOPE, dcgan_init, hidden_layers
from modules.ops.images import resize
from modules.ops.nearest import nearest
from modules.ops.noise import randn

Size = tuple[int, int]


def valid_stack(width: int, outputs: int, depth: int, norm: str = "batch") -> nn.Sequential:
    """`depth` hidden convolutions and a linear one: [N, 3, h, w] to [N, outputs, h - 2m, w - 2m] with m = depth + 1. Weights
    start as in the released code, without normalization by He, because the small ones would let nothing through."""
    conv, normalization = partial(nn.Conv2d, kernel_size=3), nn.BatchNorm2d if norm == "batch" else None
    stack = nn.Sequential(*hidden_layers(3, width, depth, conv, normalization), conv(width, outputs))
    if norm == "batch":
        return stack.apply(dcgan_init)
    for layer in stack[::2]:
        nn.init.kaiming_normal_(layer.weight, a=SLOPE)
    return stack


class NoiseGenerator(nn.Module):
    """Adds detail to an upsampled image y [N, 3, h, w] from noise z [N, 3, h + 2m, w + 2m] with m = depth + 1:
    tanh(stack(z + pad(y))) + y, not clamped."""

    def __init__(self, width: int, depth: int = 4, norm: str = "batch") -> None:
        super().__init__()
        self.margin = depth + 1
        self.body = valid_stack(width, 3, depth, norm)

    def forward(self, noise: Tensor, images: Tensor) -> Tensor:
        return torch.tanh(self.body(noise + F.pad(images, [self.margin] * 4))) + images


class NoisePyramid(nn.Module):
    """A chain of generators, coarse to fine: each takes noise and the upsampled output of the one below. `zstar` is the fixed
    noise of scale 0 that gives the training image, which has `canvas_sizes`, `palette` the colors of the input of scale
    `paint_scale`."""

    def __init__(
        self, canvas_sizes: Sequence[Size], widths: Sequence[int], depth: int, norm: str, noisy_margin: bool,
        paint_scale: int | None, paint_colors: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.canvas_sizes, self.margin, self.paint_scale = canvas_sizes, depth + 1, paint_scale
        self.drawn_margin = self.margin if noisy_margin else 0
        self.generators = nn.ModuleList(NoiseGenerator(width, depth, norm) for width in widths)
        self.register_buffer("zstar", torch.zeros(1, 1, *self._drawn(self.canvas_sizes[0])))
        self.register_buffer("noise_amplitudes", torch.ones(len(canvas_sizes)))
        self.register_buffer("palette", torch.zeros(paint_colors, 3))

    def _drawn(self, size: Size) -> Size:
        return tuple(side + 2 * self.drawn_margin for side in size)

    def _with_margin(self, noise: Tensor) -> Tensor:
        return F.pad(noise, [self.margin - self.drawn_margin] * 4).expand(-1, 3, -1, -1)

    def draw_noise(self, scale: int, batch_size: int, size: Size) -> Tensor:
        """Unit Gaussian noise [N, 3, h + 2m, w + 2m] for an output of `size`; at scale 0 the three channels are equal."""
        return self._with_margin(randn(batch_size, 3 if scale else 1, *self._drawn(size), device=self.zstar.device))

    def reconstruction_noise(self, scale: int) -> Tensor:
        zeros = self.zstar.new_zeros(1, 1, *self._drawn(self.canvas_sizes[scale]))
        return self._with_margin(zeros if scale else self.zstar)

    def forward(self, noises: Sequence[Tensor], start: int = 0, images: Tensor | None = None) -> Tensor | None:
        """Scales `start`, `start` + 1, ..., one for each unit noise map, on top of `images` of the scale below; not clamped."""
        for scale, noise in enumerate(noises, start):
            size = [side - 2 * self.margin for side in noise.shape[-2:]]
            below = self.scale_input(scale, images, (len(noise), 3, *size))
            images = self.generators[scale](self.noise_amplitudes[scale] * noise, below)
        return images

    def reconstruction(self, num_scales: int) -> Tensor | None:
        return self([self.reconstruction_noise(scale) for scale in range(num_scales)])

    def scale_input(self, scale: int, images: Tensor | None, shape: Sequence[int]) -> Tensor:
        if images is None:
            return self.zstar.new_zeros(shape)
        # Paper's code: 8-bit resizing, enlarged by 1/r and cropped; here: float, straight to the stored size.
        images = resize(images, tuple(shape[-2:]))
        if scale != self.paint_scale:
            return images
        # Paper's code: nearest color of three neighboring values of one channel; here: of the three channels of a pixel.
        pixels = images.movedim(1, -1)
        return self.palette[nearest(pixels.reshape(-1, 3), self.palette)[1]].view_as(pixels).movedim(-1, 1)
