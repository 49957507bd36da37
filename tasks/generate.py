"""Draws new images."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from core.types import ImageSize, PositiveInt
from modules.base import GenerativeModule, sampling_mode
from modules.capabilities import ExplainsSources
from tasks.task import Task


@dataclass(kw_only=True)
class Generate(Task):
    """Random images: `sample_000`, `sample_001`, …

    For a method that copies pixels also their sources: images `sources_000`, …, in which each training image is a range of
    hues from its left to its right, darker towards its bottom; and `sources`, integers [N, 3, H, W]: image, row and column.

    Args:
        num_images: number of images.
        size: [height, width]; by default the training size.
        batch_size: images computed at once; it limits the memory and changes no image.
    """

    num_images: PositiveInt = 8
    size: ImageSize | None = None
    batch_size: PositiveInt = 16

    def __call__(self, module: GenerativeModule) -> Iterator[tuple[str, Tensor]]:
        sample, size = self.bind(module), tuple(self.size or ()) or None
        self.check_trained(module)
        batches = []
        for start in range(0, self.num_images, self.batch_size):
            indices = range(start, min(start + self.batch_size, self.num_images))
            with sampling_mode(module, self.seed, indices):
                explained = isinstance(module, ExplainsSources)
                images = sample(len(indices), **({"size": size} if size else {}))
                sources = (module.provenance(), module.provenance_picture()) if explained else ()
            batches.append([part.cpu() for part in (images, *sources)])
        images, *sources = map(torch.cat, zip(*batches, strict=True))
        yield from ((f"sample_{index:03d}", image) for index, image in enumerate(images))
        if sources:
            yield "sources", sources[0]
            yield from ((f"sources_{index:03d}", image) for index, image in enumerate(sources[1]))
