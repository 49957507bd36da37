"""New images from nothing."""

from collections.abc import Iterator

import torch
from torch import Tensor

from modules.base import GenerativeModule, sampling_mode
from tasks.inputs import accepted, checked_number, checked_size, require, require_trained_sampler


class Generate:
    """Random images: `sample_000`, `sample_001`, …

    Of a method that copies pixels, also where from: pictures `sources_000`, …, where each training image is a range of hues
    from its left to its right, darker towards its bottom; and `sources`, integers [N, 3, H, W]: image, row and column.

    Args:
        num_images: how many.
        size: [height, width], any; the training size by default.
        start_scale: scales below keep the training image's layout; larger values vary details only. For methods with noise
            at every scale; SinGAN (Rott Shaham et al. 2019) shows 0 to 2.
        temperature: spread of the random choices, 1 as trained, below 1 safer. For methods that sample codes.
        top_k: only the k most likely codes are drawn. For methods that sample codes.
        batch_size: images made at once; it limits the memory.
        seed: the same seed gives the same images.
    """

    def __init__(
        self,
        num_images: int = 8,
        size: list[int] | None = None,
        start_scale: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        batch_size: int = 16,
        seed: int = 0,
    ) -> None:
        self.num_images = checked_number(num_images)
        self.size = checked_size(size) if size is not None else None
        choices = {"temperature": temperature, "top_k": top_k}
        self.options = {"size": self.size, "start_scale": start_scale, **choices}
        self.batch_size = max(1, batch_size)
        self.seed = seed

    def __call__(self, module: GenerativeModule) -> Iterator[tuple[str, Tensor]]:
        sample = require(module, "sample", "generate")
        require_trained_sampler(module, "generate")
        options = accepted(sample, "generate", **self.options)
        counts = [min(self.batch_size, self.num_images - done) for done in range(0, self.num_images, self.batch_size)]
        with sampling_mode(module, self.seed):
            batches = [(sample(count, **options).cpu(), *_origin(module)) for count in counts]
        images, *origin = (torch.cat(parts) for parts in zip(*batches, strict=True))
        yield from ((f"sample_{index:03d}", image) for index, image in enumerate(images))
        if origin:
            sources, pictures = origin
            yield "sources", sources
            yield from ((f"sources_{index:03d}", picture) for index, picture in enumerate(pictures))


def _origin(module: GenerativeModule) -> tuple[Tensor, ...]:
    """Where the pixels of the last images made come from, as numbers and as pictures; empty for methods that make their own."""
    if not hasattr(module, "provenance_picture"):
        return ()
    return module.provenance.cpu(), module.provenance_picture().cpu()
