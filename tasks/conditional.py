"""Renders any image with the patches of the training images."""

from dataclasses import dataclass

from modules.base import GenerativeModule
from tasks.inputs import read_prepared
from tasks.task import Function, Images, ImageTask


@dataclass(kw_only=True)
class Conditional(ImageTask):
    """The layout of an image in the patches of the training images: `00_input`, `01_conditional`."""

    def render(self, module: GenerativeModule, inject: Function) -> Images:
        image = read_prepared(self.image, module, self.size)
        yield "00_input", image[0]
        yield "01_conditional", inject(image)[0]
