"""Enlarges a small image and repeats its fine structure at the finer size."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated
from warnings import warn

from kornia.metrics import psnr
from pydantic import Field
from torch import Tensor

from core.errors import UserError
from core.types import PathStr
from modules.base import GenerativeModule
from modules.capabilities import SuperResolves
from modules.ops.images import resize, to_uint8
from tasks.inputs import read_image
from tasks.task import Function, Images, Task


@dataclass(kw_only=True)
class Superresolve(Task):
    """`00_input`, `01_bicubic` (plain resizing, for comparison), `02_superresolved`; with `reference` prints the PSNR.

    Args:
        image: file of the small image, on which the model was trained, at its own size.
        factor: the output has int(factor · height) × int(factor · width) pixels.
        consistent: correct the result until it gives the small image when it is shrunk again, by three rounds of iterated
            back-projection (Irani & Peleg 1991). SinGAN's paper does not correct the shift of its colors.
        reference: file of the true large image, of the output's size, to compare with.
    """

    capability = SuperResolves

    image: PathStr
    factor: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 4.0
    consistent: bool = True
    reference: PathStr | None = None

    def output_size(self, module: GenerativeModule) -> tuple[int, int]:
        return self._enlarged(module.image_size)

    def render(self, module: GenerativeModule, super_resolve: Function) -> Images:
        image = read_image(self.image)
        height, width = image.shape[-2:]
        if (height, width) != tuple(module.image_size):
            sizes = f"{height}×{width} pixels (height × width), the model {'{}×{}'.format(*module.image_size)}"
            advice = f"train on the image itself with datamodule.image_size=[{height},{width}]"
            warn(f"task.image={self.image} is {sizes}: {advice}", stacklevel=2)
        plain = resize(image, self._enlarged((height, width)))
        reference = None if self.reference is None else read_image(self.reference, "task.reference")
        if reference is not None and reference.shape != plain.shape:
            shape, output = ("{}×{}".format(*images.shape[-2:]) for images in (reference, plain))
            sizes = f"{shape} pixels (height × width), the output with task.factor={self.factor:g} {output}"
            raise UserError(f"task.reference={self.reference} is {sizes}: crop it to that, or change the factor")
        result = super_resolve(image, self.factor)
        if self.consistent:
            result = back_project(result, image)
        if reference is not None:
            ratios = [psnr(to_uint8(i).double(), to_uint8(reference).double(), 255) for i in (result, plain)]
            print("PSNR against {}: {:.2f} dB, bicubic {:.2f} dB (RGB, 8 bit)".format(self.reference, *ratios))
        yield "00_input", image[0]
        yield "01_bicubic", plain[0]
        yield "02_superresolved", result[0]

    def _enlarged(self, size: Sequence[int]) -> tuple[int, int]:
        return tuple(int(self.factor * side) for side in size)


def back_project(images: Tensor, small: Tensor, rounds: int = 3) -> Tensor:
    """Large images [N, 3, H, W] corrected so that they nearly give `small` [N, 3, h, w] when they are shrunk."""
    for _ in range(rounds):
        error = (small - resize(images, tuple(small.shape[-2:]))) / 2  # halved, because resize() clamps to [-1, 1]
        images = (images + 2 * resize(error, tuple(images.shape[-2:]))).clamp(-1, 1)
    return images
