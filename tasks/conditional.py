"""Renders any image with the patches of the training images."""

from collections.abc import Iterator

from torch import Tensor

from core.types import ImageSize, NonNegativeInt, Options, PathStr, Seed
from modules.base import GenerativeModule
from modules.capabilities import Injects
from tasks.base import Task
from tasks.inputs import read_prepared


class Conditional(Task):
    """The layout of an image in the patches of the training images: `00_input`, `01_conditional`.

    Args:
        image: file of any size and mode.
        scale: where the image enters the model, 0 = coarsest; finer scales keep more of the image. None: the coarsest one
            that the method takes an image at.
        size: [height, width] to work at; by default the image is scaled until its shorter side is the model's.
        options: options of the method.
        seed: for methods that draw noise.
    """

    capability = Injects

    def __init__(
        self,
        image: PathStr,
        scale: NonNegativeInt | None = None,
        size: ImageSize | None = None,
        options: Options | None = None,
        seed: Seed = 0,
    ) -> None:
        self.image, self.scale, self.size, self.options, self.seed = image, scale, size, options, seed

    def __call__(self, module: GenerativeModule) -> Iterator[tuple[str, Tensor]]:
        self.bind(module)  # before files are read
        image = read_prepared(self.image, module, self.size)
        yield "00_input", image[0]
        yield "01_conditional", self.inject(module, image)[0]
