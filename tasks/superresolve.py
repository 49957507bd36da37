"""A small image enlarged, with its fine structure repeated at the finer size."""

import math
from collections.abc import Iterator
from warnings import warn

from torch import Tensor

from core.errors import UserError
from modules.base import GenerativeModule, sampling_mode
from modules.ops.images import resize, to_uint8
from tasks.inputs import read_image, require


class Superresolve:
    """`00_input`, `01_bicubic` (plain resizing, for comparison), `02_superresolved`; with `reference` the PSNR is printed.

    The model has to be trained on the small image itself, at its own size: it has then learnt how the structure of this
    image repeats from scale to scale, and needs no large images. The image enters pixel by pixel as it is in the file.

    Args:
        image: file of the small image, the one the model was trained on; a model trained at another size gives a warning.
        factor: any number above 1; the output has int(factor · height) × int(factor · width) pixels.
        consistent: correct the result until it gives the small image when it is shrunk again. Generators that are used several
            times over shift colours a little each time; SinGAN's paper leaves that. Iterated back-projection (Irani & Peleg
            1991), three rounds.
        reference: file of the true large image, of the output's size, to compare with.
        seed: for methods that draw noise.
    """

    def __init__(
        self, image: str, factor: float = 4.0, consistent: bool = True, reference: str | None = None, seed: int = 0
    ) -> None:
        if not 1 < factor < math.inf:
            raise UserError(f"task.factor={factor}: must be a number above 1")
        self.image, self.factor, self.consistent, self.reference, self.seed = image, factor, consistent, reference, seed

    def __call__(self, module: GenerativeModule) -> Iterator[tuple[str, Tensor]]:
        enlarge = require(module, "super_resolve", "superresolve")
        image = read_image(self.image)
        height, width = image.shape[-2:]
        if (height, width) != tuple(module.image_size):
            sizes = f"is {height}×{width} pixels (height × width), the model {'{}×{}'.format(*module.image_size)}"
            rule = f"train on the image itself with datamodule.image_size=[{height},{width}]"
            warn(f"task.image={self.image} {sizes}: {rule}", stacklevel=2)
        plain = resize(image, (int(self.factor * height), int(self.factor * width)))
        reference = self._read_reference(tuple(plain.shape[-2:])) if self.reference is not None else None
        with sampling_mode(module, self.seed):
            result = enlarge(image.to(module.device), self.factor).cpu()
        if self.consistent:
            result = back_projected(result, image)
        if reference is not None:
            numbers = f"{psnr(result, reference):.2f} dB, bicubic {psnr(plain, reference):.2f} dB"
            print(f"PSNR against {self.reference}: {numbers} (RGB, 8 bit)")
        yield "00_input", image[0]
        yield "01_bicubic", plain[0]
        yield "02_superresolved", result[0]

    def _read_reference(self, size: tuple[int, int]) -> Tensor:
        """The true image [1, 3, *size]; ValueError naming both sizes if it has another one."""
        reference = read_image(self.reference, "task.reference")
        own = tuple(reference.shape[-2:])
        if own != size:
            raise UserError(
                f"task.reference={self.reference} is {own[0]}×{own[1]} pixels (height × width), the output with "
                f"task.factor={self.factor:g} {size[0]}×{size[1]}: crop it to that, or change the factor"
            )
        return reference


def back_projected(images: Tensor, small: Tensor, rounds: int = 3) -> Tensor:
    """Large images [N, 3, H, W] whose shrunk versions are nearly `small` [N, 3, h, w]: each round adds the enlarged error."""
    for _ in range(rounds):
        error = (small - resize(images, tuple(small.shape[-2:]))) / 2  # halved, because resize() clamps to [-1, 1]
        images = (images + 2 * resize(error, tuple(images.shape[-2:]))).clamp(-1, 1)
    return images


def psnr(first: Tensor, second: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of two images [1, 3, H, W] as they are in 8-bit files; infinite if equal."""
    error = (to_uint8(first).double() - to_uint8(second).double()).square().mean().item()
    return 10 * math.log10(255**2 / error) if error else math.inf
