"""Several ways to fill a hole in an image."""

from collections.abc import Iterator

from torch import Tensor

from modules.base import GenerativeModule, sampling_mode
from tasks.inputs import (
    accepted,
    as_picture,
    blend,
    checked_number,
    feathered_mask,
    read_masked,
    require,
    require_trained_sampler,
)


class Inpaint:
    """Fills: `00_input`, `01_mask`, `02_fill_000`, `02_fill_001`, …, and with `composite` also `03_composite_000`, …

    A fill is what the model makes of the whole image; a composite keeps the input outside the hole. With an empty mask
    every fill is the plain reconstruction of the image (and a warning).

    Args:
        image: file of any size and mode.
        mask: file, white = the hole; the image's aspect.
        num_images: how many fills.
        composite: also lay every fill into the input, with soft edges around the hole.
        feather: sigma in pixels of these edges for an image with 250 on its longer side, scaled with the image.
        size: [height, width] to work at; by default the image is scaled until its shorter side is the model's.
        temperature, top_k: as in the task `generate`.
        candidates: fills drawn for each that is kept, the most likely one. For methods that can rank them.
        seed: the same seed gives the same fills.
    """

    def __init__(
        self,
        image: str,
        mask: str,
        num_images: int = 3,
        composite: bool = False,
        feather: float = 5.0,
        size: list[int] | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        candidates: int | None = None,
        seed: int = 0,
    ) -> None:
        self.image, self.mask, self.num_images = image, mask, checked_number(num_images)
        self.composite, self.feather, self.size, self.seed = composite, feather, size, seed
        self.options = {"temperature": temperature, "top_k": top_k, "candidates": candidates}

    def __call__(self, module: GenerativeModule) -> Iterator[tuple[str, Tensor]]:
        fill = require(module, "inpaint", "inpaint")
        require_trained_sampler(module, "inpaint")
        options = accepted(fill, "inpaint", **self.options)
        image, mask = read_masked(self.image, self.mask, module, self.size)
        with sampling_mode(module, self.seed):
            fills = fill(image.to(module.device), mask.to(module.device), self.num_images, **options).cpu()
        yield "00_input", image[0]
        yield "01_mask", as_picture(mask)
        for index, result in enumerate(fills):
            yield f"02_fill_{index:03d}", result
        soft = feathered_mask(mask, self.feather)
        for index, composite in enumerate(blend(soft, fills, image) if self.composite else ()):
            yield f"03_composite_{index:03d}", composite
