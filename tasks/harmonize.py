"""Adapts a pasted object to the image around it."""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from core.errors import UserError
from core.types import ImageSize, NonNegativeFloat, PathStr, PositiveInt
from modules.base import GenerativeModule
from modules.ops.images import resize
from tasks.inputs import blend, blending_mask, dilate, mask_image, read_image, read_masked, working_size
from tasks.paint import palette, quantize
from tasks.task import Function, Images, ImageTask

Position = Annotated[list[int], Field(min_length=2, max_length=2, description="[row, column]")]


@dataclass(kw_only=True)
class Harmonize(ImageTask):
    """Renders the object in trained colors and textures: `00_input`, `01_mask` (softened), `02_harmonized`, which equals the
    input without the object away from the mask. The model is best trained on the image without the object.

    Args:
        image: file of the image, any size and mode; with `mask` it already contains the object.
        mask: file, white = the object; the image's aspect.
        object: instead of `mask`: file of an object with transparency, which is pasted.
        position: [row, column] of its upper left corner in pixels of `image`; it may lie partly outside. None: centered.
        object_size: [height, width] of the object in pixels of `image`; None: as in its file.
        colors: first each pixel of the object gets the nearest of this number of colors of the rest of the image, since
            trained generators have seen no others. None: off, as in the paper.
        dilation, blur: as in the task `edit`, with a tighter mask (released code of SinGAN).
    """

    mask: PathStr | None = None
    object: PathStr | None = None
    position: Position | None = None
    object_size: ImageSize | None = None
    colors: PositiveInt | None = None
    dilation: NonNegativeFloat = 7.0
    blur: NonNegativeFloat = 5.0

    def __post_init__(self) -> None:
        if (self.mask is None) == (self.object is None):
            raise UserError("task.mask and task.object: set one of them, the mask of an object in the image or an object")
        if self.object is None and (self.position, self.object_size) != (None, None):
            raise UserError("task.position and task.object_size are for task.object; leave them out with task.mask")

    def render(self, module: GenerativeModule, inject: Function) -> Images:
        image, mask, background = self._read(module)
        entering = image if self.colors is None else self._recolor(image, mask, background)
        result, soft = inject(entering), blending_mask(mask, self.dilation, self.blur)
        yield "00_input", image[0]
        yield "01_mask", mask_image(soft)
        yield "02_harmonized", blend(soft, result, background)[0]

    def _recolor(self, image: Tensor, mask: Tensor, background: Tensor) -> Tensor:
        dilated = dilate(mask, 1)  # pixels at the edge mix the object with its surroundings
        around = 1 - dilated if self.object is None else torch.ones_like(mask)
        if not around.any():
            raise UserError(f"task.colors={self.colors}: no pixel lies outside the mask {self.mask} to take colors from")
        colors = palette(background.movedim(1, -1)[around[:, 0] > 0], self.colors, self.seed)
        return torch.where(dilated > 0, quantize(image, colors), image)

    def _read(self, module: GenerativeModule) -> tuple[Tensor, Tensor, Tensor]:
        """The image with the object [1, 3, H, W], the object's mask [1, 1, H, W], and the image to keep around it."""
        if self.object is None:
            image, mask = read_masked(self.image, self.mask, module, self.size)
            return image, mask, image
        image = read_image(self.image)
        size = working_size(image.shape[-2:], module.image_size, self.size)
        pasted, alpha = paste(image, self.object, self.position, self.object_size)
        return resize(pasted, size), F.adaptive_max_pool2d((alpha >= 0.5).float(), size), resize(image, size)


def paste(image: Tensor, file: str, position: list[int] | None, object_size: list[int] | None) -> tuple[Tensor, Tensor]:
    """An image [1, 3, H, W] with the object of a file in it, and its opacity [1, 1, H, W], 0 to 1."""
    over_black, over_white = (read_image(file, "task.object", background) for background in ("black", "white"))
    if torch.equal(over_black, over_white):
        raise UserError(f"task.object={file}: has no transparency; save the object as RGBA with an empty background")
    if object_size is not None:
        over_black, over_white = (resize(part, tuple(object_size)) for part in (over_black, over_white))
    opacity = (1 - (over_white - over_black).mean(1, keepdim=True) / 2).clamp(0, 1)
    (height, width), (object_height, object_width) = image.shape[-2:], opacity.shape[-2:]
    top, left = position or ((height - object_height) // 2, (width - object_width) // 2)
    target = (..., slice(max(0, top), max(0, top + object_height)), slice(max(0, left), max(0, left + object_width)))
    source = (..., slice(max(0, -top), max(0, height - top)), slice(max(0, -left), max(0, width - left)))
    light, alpha = torch.zeros_like(image), torch.zeros_like(image[:, :1])
    light[target], alpha[target] = over_black[source] + 1, opacity[source]
    if not (alpha >= 0.5).any():
        size = f"{height}×{width} pixels (height × width)"
        raise UserError(f"task.object={file}: at task.position=[{top},{left}] it lies outside the image of {size}")
    return (image + (light - alpha * (image + 1))).clamp(-1, 1), alpha  # in this form exactly the image where alpha is 0
