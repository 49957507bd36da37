"""Any image re-made from what the model has learnt."""

from collections.abc import Iterator

from torch import Tensor

from modules.base import GenerativeModule, sampling_mode
from tasks.inputs import accepted, read_prepared, require


class Conditional:
    """The layout of an image in the patches of the training images: `00_input`, `01_conditional`.

    Args:
        image: file of any size and mode.
        scale: where the image enters the model, 0 = coarsest; finer scales keep more of the image. None: the coarsest one
            that the method takes an image at.
        size: [height, width] to work at; by default the image is scaled until its shorter side is the model's.
        seed: for methods that draw noise.
    """

    def __init__(self, image: str, scale: int | None = None, size: list[int] | None = None, seed: int = 0) -> None:
        self.image, self.scale, self.size, self.seed = image, scale, size, seed

    def __call__(self, module: GenerativeModule) -> Iterator[tuple[str, Tensor]]:
        inject = require(module, "inject", "conditional")
        options = accepted(inject, "conditional", scale=self.scale)
        image = read_prepared(self.image, module, self.size)
        with sampling_mode(module, self.seed):
            result = inject(image.to(module.device), **options).cpu()
        yield "00_input", image[0]
        yield "01_conditional", result[0]
