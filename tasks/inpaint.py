"""Fills a hole in an image in several ways."""

from dataclasses import dataclass

from core.types import ImageSize, NonNegativeFloat, PathStr, PositiveInt
from modules.base import GenerativeModule
from modules.capabilities import Inpaints
from tasks.inputs import blend, feathered_mask, mask_image, read_masked
from tasks.task import Function, Images, Task, numbered


@dataclass(kw_only=True)
class Inpaint(Task):
    """Fills: `00_input`, `01_mask`, `02_fill_000`, `02_fill_001`, …, and with `composite` also `03_composite_000`, …

    A fill is the whole image as the model renders it; a composite keeps the input outside the hole.

    Args:
        image: file of any size and mode.
        mask: file, white = the hole; the image's aspect.
        num_images: number of fills.
        composite: also blend every fill into the input, with soft edges around the hole.
        feather: sigma of these edges in pixels at a longer side of 250, scaled with the image.
        size: [height, width] to work at; by default the image is scaled until its shorter side is the model's.
    """

    capability = Inpaints

    image: PathStr
    mask: PathStr
    num_images: PositiveInt = 3
    composite: bool = False
    feather: NonNegativeFloat = 5.0
    size: ImageSize | None = None

    def render(self, module: GenerativeModule, inpaint: Function) -> Images:
        self.check_trained(module)
        image, mask = read_masked(self.image, self.mask, module, self.size)
        fills = inpaint(image, mask, self.num_images, indices=range(self.num_images))
        yield "00_input", image[0]
        yield "01_mask", mask_image(mask)
        yield from numbered("02_fill_{:03d}", fills)
        if self.composite:
            yield from numbered("03_composite_{:03d}", blend(feathered_mask(mask, self.feather), fills, image))
