"""Clip-art made a photograph."""

from collections.abc import Iterator

import torch
from torch import Tensor

from core.errors import UserError
from modules.base import GenerativeModule, sampling_mode
from modules.ops.kmeans import kmeans
from modules.ops.nearest import nearest
from tasks.inputs import accepted, read_prepared, require


class Paint:
    """The shapes of a drawing in the textures of the training images: `00_input`, (`01_quantized`,) `02_photograph`.

    Args:
        image: file of the drawing, any size and mode.
        scale: where the drawing enters, 0 = coarsest; finer scales keep more of its flat colours. None: the coarsest one
            that the method takes an image at; the paper (SinGAN, Rott Shaham et al. 2019) uses its scales 1 and 2.
        colors: before that, every pixel gets the nearest of so many colours of `reference` (the paper's 5). Models that
            were trained with a palette of their own do this themselves at their scale. None: not.
        reference: file of a training image, for `colors`.
        size: [height, width] to work at; by default the drawing is scaled until its shorter side is the model's.
        seed: for methods that draw noise, and for the choice of colours.
    """

    def __init__(
        self,
        image: str,
        scale: int | None = None,
        colors: int | None = None,
        reference: str | None = None,
        size: list[int] | None = None,
        seed: int = 0,
    ) -> None:
        if (colors is None) != (reference is None):
            raise UserError("task.colors and task.reference belong together: a number, and the file of a training image")
        if colors is not None and colors < 2:
            raise UserError(f"task.colors={colors}: must be at least 2")
        self.image, self.scale, self.size, self.seed = image, scale, size, seed
        self.colors, self.reference = colors, reference

    def __call__(self, module: GenerativeModule) -> Iterator[tuple[str, Tensor]]:
        inject = require(module, "inject", "paint")
        options = accepted(inject, "paint", scale=self.scale)
        drawing = entering = read_prepared(self.image, module, self.size)
        if self.colors is not None:
            pixels = read_prepared(self.reference, module, None)[0].flatten(1).T
            entering = quantize(drawing, palette(pixels, self.colors, self.seed))
        with sampling_mode(module, self.seed):
            result = inject(entering.to(module.device), **options).cpu()
        yield "00_input", drawing[0]
        if self.colors is not None:
            yield "01_quantized", entering[0]
        yield "02_photograph", result[0]


def palette(pixels: Tensor, colors: int, seed: int = 0) -> Tensor:
    """`colors` colours [K, 3] of pixels [L, 3] by k-means."""
    # Released code: rows of three neighbouring values of one channel; here: a row is a colour.
    return kmeans(pixels, colors, torch.Generator().manual_seed(seed))


def quantize(image: Tensor, colors: Tensor) -> Tensor:
    """An image [1, 3, H, W] in which every pixel has the nearest of the `colors` [K, 3]."""
    pixels = image.movedim(1, -1)
    return colors[nearest(pixels.reshape(-1, 3), colors)[1]].view_as(pixels).movedim(-1, 1)
