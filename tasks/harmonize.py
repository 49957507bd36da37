"""A pasted object adapted to the picture it was pasted into."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from core.errors import UserError
from modules.base import GenerativeModule, sampling_mode
from modules.ops.images import resize
from tasks.inputs import (
    accepted,
    as_picture,
    blend,
    blending_mask,
    dilate,
    read_image,
    read_masked,
    require,
    working_size,
)
from tasks.paint import palette, quantize


class Harmonize:
    """The pasted object re-made in trained colours and textures: `00_input`, `01_mask` (as used), `02_harmonized`.

    `02_harmonized` is (1 - m) · input + m · re-made with the softened mask m; with `object`, the picture without the object
    takes the input's place there. The model is best trained on the picture without the object.

    Args:
        image: file of the picture, any size and mode; with `mask` the object is in it already.
        mask: file, white = the object; the picture's aspect.
        object: instead of `mask`: file of an object with transparency, which is pasted here.
        position: [row, column] of its upper left corner in pixels of `image`; it may lie partly outside. None: the middle.
        object_size: [height, width] of the object in pixels of `image`; None: as in its file.
        colors: before that, every pixel of the object gets the nearest of so many colours of the rest of the picture. Trained
            generators have seen no others, and make of a strange one what they happen to: of orange in a picture without
            red, magenta. None: not, as in the paper.
        finetune: methods that can learn on from the picture with the object (ConSinGAN in `module.mode=harmonization`):
            iterations. None: not.
        scale, size, dilation, blur, seed: as in the task `edit`, with a tighter mask (released code of SinGAN).
    """

    def __init__(
        self,
        image: str,
        mask: str | None = None,
        object: str | None = None,
        position: list[int] | None = None,
        object_size: list[int] | None = None,
        colors: int | None = None,
        scale: int | None = None,
        finetune: int | None = None,
        size: list[int] | None = None,
        dilation: float = 7.0,
        blur: float = 5.0,
        seed: int = 0,
    ) -> None:
        if (mask is None) == (object is None):
            raise UserError("task.mask and task.object: give one of them, the mask of an object in the image or an object")
        if object is None and (position, object_size) != (None, None):
            raise UserError("task.position and task.object_size are for task.object; leave them out with task.mask")
        if position is not None and len(position) != 2:
            raise UserError(f"task.position={list(position)}: expected [ROW,COLUMN] in pixels, for example [40,100]")
        if object_size is not None and (len(object_size) != 2 or min(object_size) < 1):
            raise UserError(f"task.object_size={list(object_size)}: expected [HEIGHT,WIDTH] in pixels, for example [30,40]")
        if colors is not None and colors < 1:
            raise UserError(f"task.colors={colors}: must be at least 1")
        self.image, self.mask, self.object, self.position = image, mask, object, position
        self.object_size, self.colors = None if object_size is None else tuple(object_size), colors
        self.scale, self.finetune, self.size = scale, finetune, size
        self.dilation, self.blur, self.seed = dilation, blur, seed

    def __call__(self, module: GenerativeModule) -> Iterator[tuple[str, Tensor]]:
        inject = require(module, "inject", "harmonize")
        options = accepted(inject, "harmonize", scale=self.scale, finetune=self.finetune)
        image, mask, rest = self._read(module)
        entering = image if self.colors is None else self._recoloured(image, mask, rest)
        with sampling_mode(module, self.seed):
            result = inject(entering.to(module.device), **options).cpu()
        soft = blending_mask(mask, self.dilation, self.blur)
        yield "00_input", image[0]
        yield "01_mask", as_picture(soft)
        yield "02_harmonized", blend(soft, result, rest)[0]

    def _recoloured(self, image: Tensor, mask: Tensor, rest: Tensor) -> Tensor:
        """The picture with the object in colours of what is around it."""
        grown = dilate(mask, 1)  # pixels at the edge mix the object with what is around
        around = 1 - grown if self.object is None else torch.ones_like(mask)
        if not around.any():
            raise UserError(f"task.colors={self.colors}: nothing is around the mask {self.mask} to take colours from")
        colours = palette(rest.movedim(1, -1)[around[:, 0] > 0], self.colors, self.seed)
        return torch.where(grown > 0, quantize(image, colours), image)

    def _read(self, module: GenerativeModule) -> tuple[Tensor, Tensor, Tensor]:
        """The picture with the object [1, 3, H, W], the object's mask [1, 1, H, W], and what is kept around the mask."""
        if self.object is None:
            image, mask = read_masked(self.image, self.mask, module, self.size)
            return image, mask, image
        picture = read_image(self.image)
        size = working_size(picture.shape[-2:], module.image_size, self.size)
        pasted, alpha = paste(picture, self.object, self.position, self.object_size)
        return resize(pasted, size), F.adaptive_max_pool2d((alpha >= 0.5).float(), size), resize(picture, size)


def paste(
    picture: Tensor, file: str, position: list[int] | None, object_size: tuple[int, int] | None
) -> tuple[Tensor, Tensor]:
    """A picture [1, 3, H, W] with the object of a file in it, and where it is opaque: [1, 1, H, W], 0 to 1.

    ValueError if the object has no transparency, or if nothing of it is seen.
    """
    over_black, over_white = (read_image(file, "task.object", background) for background in ("black", "white"))
    if torch.equal(over_black, over_white):
        raise UserError(f"task.object={file}: has no transparency; save the object as RGBA with an empty background")
    if object_size is not None:
        over_black, over_white = resize(over_black, object_size), resize(over_white, object_size)
    cover = (1 - (over_white - over_black).mean(1, keepdim=True) / 2).clamp(0, 1)
    (height, width), (own_height, own_width) = picture.shape[-2:], cover.shape[-2:]
    top, left = position or ((height - own_height) // 2, (width - own_width) // 2)
    rows, columns = slice(max(0, top), max(0, top + own_height)), slice(max(0, left), max(0, left + own_width))
    light, alpha = torch.zeros_like(picture), torch.zeros_like(picture[:, :1])
    seen = (..., slice(max(0, -top), max(0, height - top)), slice(max(0, -left), max(0, width - left)))
    light[..., rows, columns], alpha[..., rows, columns] = (over_black[seen] + 1, cover[seen])
    if not (alpha >= 0.5).any():
        size = f"{height}×{width} pixels (height × width)"
        raise UserError(f"task.object={file}: at task.position=[{top},{left}] nothing of it is seen in the image of {size}")
    return (picture + (light - alpha * (picture + 1))).clamp(-1, 1), alpha  # so written, exactly the picture where alpha is 0
