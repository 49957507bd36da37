"""Renders any image with the patches of the training images."""

from dataclasses import dataclass

from modules.base import GenerativeModule
from tasks.inputs import read_prepared
from tasks.task import Function, Images, ImageTask, numbered


@dataclass(kw_only=True)
class Conditional(ImageTask):
    """The layout of an image in the patches of the training images: `00_input`, `01_conditional`; with DISP new images with
    the meaning of an image, further ones as `02_variant_000`, … (task.options.variants)."""

    def render(self, module: GenerativeModule, inject: Function) -> Images:
        image = read_prepared(self.image, module, self.size)
        yield "00_input", image[0]
        results = inject(image)
        yield "01_conditional", results[0]
        yield from numbered("02_variant_{:03d}", results[1:])
