"""Renders any image with the patches of the training images."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from modules.base import GenerativeModule
from tasks.inputs import read_prepared
from tasks.task import ImageTask


@dataclass(kw_only=True)
class Conditional(ImageTask):
    """The layout of an image in the patches of the training images: `00_input`, `01_conditional`."""

    def __call__(self, module: GenerativeModule) -> Iterator[tuple[str, Tensor]]:
        self.bind(module)  # before files are read
        image = read_prepared(self.image, module, self.size)
        yield "00_input", image[0]
        yield "01_conditional", self.inject(module, image)[0]
