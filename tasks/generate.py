"""Draws new images."""

from dataclasses import dataclass

import torch

from core.types import ImageSize, PositiveInt
from modules.base import GenerativeModule
from modules.capabilities import ExplainsSources
from tasks.task import Function, Images, Task, numbered


@dataclass(kw_only=True)
class Generate(Task):
    """Random images: `sample_000`, `sample_001`, …

    For a method that copies pixels also `sources_000`, …, in which each training image is a range of hues, darker towards its
    bottom; and `sources`, integers [N, 3, H, W]: image, row and column of every pixel.

    Args:
        num_images: number of images.
        size: [height, width]; by default the training size.
        batch_size: images computed at once; it limits the memory and changes no image.
    """

    num_images: PositiveInt = 8
    size: ImageSize | None = None
    batch_size: PositiveInt = 16

    def render(self, module: GenerativeModule, sample: Function) -> Images:
        self.check_trained(module)
        size = {"size": tuple(self.size)} if self.size else {}
        batches = []
        for start in range(0, self.num_images, self.batch_size):
            indices = range(start, min(start + self.batch_size, self.num_images))
            images = sample(len(indices), **size, indices=indices)
            sources = (module.provenance(), module.provenance_picture()) if isinstance(module, ExplainsSources) else ()
            batches.append([images, *(part.cpu() for part in sources)])
        images, *sources = map(torch.cat, zip(*batches, strict=True))
        yield from numbered("sample_{:03d}", images)
        if sources:
            yield "sources", sources[0]
            yield from numbered("sources_{:03d}", sources[1])
