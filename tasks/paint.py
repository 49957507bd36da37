"""Turns clip-art into a photograph."""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from core.errors import UserError
from core.types import PathStr
from modules.base import GenerativeModule
from modules.ops.kmeans import kmeans
from modules.ops.nearest import nearest
from tasks.inputs import read_prepared
from tasks.task import Function, Images, ImageTask


@dataclass(kw_only=True)
class Paint(ImageTask):
    """The shapes of a drawing in the textures of the training images: `00_input`, (`01_quantized`,) `02_photograph`.

    Args:
        image: file of the drawing, any size and mode.
        scale: as in other tasks; the paper (SinGAN, Rott Shaham et al. 2019) uses its scales 1 and 2.
        colors: first each pixel gets the nearest of this number of colors of `reference` (the paper's 5). None: off.
        reference: file of a training image, for `colors`.
    """

    colors: Annotated[int, Field(ge=2)] | None = None
    reference: PathStr | None = None

    def __post_init__(self) -> None:
        if (self.colors is None) != (self.reference is None):
            raise UserError("task.colors and task.reference: set both (number of colors, file of a training image) or neither")

    def render(self, module: GenerativeModule, inject: Function) -> Images:
        drawing = read_prepared(self.image, module, self.size)
        yield "00_input", drawing[0]
        if self.colors is not None:
            pixels = read_prepared(self.reference, module, None)[0].flatten(1).T
            drawing = quantize(drawing, palette(pixels, self.colors, self.seed))
            yield "01_quantized", drawing[0]
        yield "02_photograph", inject(drawing)[0]


def palette(pixels: Tensor, colors: int, seed: int = 0) -> Tensor:
    """`colors` colors [K, 3] of pixels [L, 3] by k-means."""
    # Released code: rows of three neighboring values of one channel; here: a row is a color.
    return kmeans(pixels, colors, torch.Generator().manual_seed(seed))


def quantize(image: Tensor, colors: Tensor) -> Tensor:
    """An image [1, 3, H, W] in which every pixel has the nearest of the `colors` [K, 3]."""
    pixels = image.movedim(1, -1)
    return colors[nearest(pixels.reshape(-1, 3), colors)[1]].view_as(pixels).movedim(-1, 1)
