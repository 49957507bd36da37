"""Features of whole images and of crops, and the distances between two sets of them."""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from metrics.backbones.backbone import Backbone
from metrics.frechet import frechet_distance
from metrics.kernel import kernel_distance

DISTANCES = {"fd": frechet_distance, "kd": kernel_distance, "kd_crops": kernel_distance}
MIN_ROWS = 2  # of either side


class ImageSet(NamedTuple):
    """N images in order, the same on every rank: `whole` [N, d] are features of all; of M of them, at the positions
    `indices` [M], there are uint8 [M, 3, H, W] and the features of c crops each, [M, c, d]; c may be 0."""

    whole: Tensor
    images: Tensor
    crops: Tensor
    indices: Tensor

    def rows(self, metric: str) -> Tensor:
        return self.crops.flatten(0, 1) if metric == "kd_crops" else self.whole

    @staticmethod
    def concatenate(parts: Sequence["ImageSet"]) -> "ImageSet":
        starts = accumulate([len(part.whole) for part in parts], initial=0)
        indices = [part.indices + start for part, start in zip(parts, starts, strict=False)]
        whole, images, crops = (torch.cat(tensors) for tensors in list(zip(*parts, strict=True))[:3])
        return ImageSet(whole, images, crops, torch.cat(indices))

    def every_second(self, start: int) -> "ImageSet":
        mine = self.indices % 2 == start
        return ImageSet(self.whole[start::2], self.images[mine], self.crops[mine], self.indices[mine] // 2)

    def gather(self, numbers: Tensor) -> "ImageSet":
        """The images of all ranks, of which each holds the `numbers` [N], in ascending order."""
        whole, order = gather_rows(numbers).sort()
        parts, part_order = gather_rows(numbers[self.indices]).sort()
        images, crops = (gather_rows(tensor)[part_order] for tensor in (self.images, self.crops))
        return ImageSet(gather_rows(self.whole)[order], images, crops, torch.searchsorted(whole, parts))


def gather_rows(tensor: Tensor) -> Tensor:
    """Rows of all ranks, one rank after the other."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.cat(gather_all_tensors(tensor)) if distributed else tensor


def crop_size(height: int, width: int) -> tuple[int, int]:
    return height // 2, width // 2


def random_crops(images: Tensor, indices: Sequence[int], count: int, seed: int) -> Tensor:
    """[N, count, 3, H // 2, W // 2] at uniformly random positions, a function of (seed, index) alone."""
    height, width = crop_size(*images.shape[-2:])
    crops = []
    for image, index in zip(images, indices, strict=True):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + int(index))
        tops = torch.randint(images.shape[-2] - height + 1, (count,), generator=generator).tolist()
        lefts = torch.randint(images.shape[-1] - width + 1, (count,), generator=generator).tolist()
        crops += [image[:, y : y + height, x : x + width] for y, x in zip(tops, lefts, strict=True)]
    return torch.stack(crops).unflatten(0, (-1, count)) if crops else images.new_empty(len(images), count, 3, height, width)


def crop_features(backbone: Backbone, images: Tensor, indices: Sequence[int], count: int, seed: int) -> Tensor:
    """Features [N, count, d] of crops of uint8 [N, 3, H, W], which enter the network at the scale of the whole image."""
    crops = random_crops(images, indices, count, seed)
    return backbone(crops.flatten(0, 1), size=backbone.input_size // 2).unflatten(0, tuple(crops.shape[:2]))


def distances(reals: ImageSet, fakes: ImageSet, metrics: Sequence[str]) -> dict[str, float]:
    rows = {name: (reals.rows(name).cpu(), fakes.rows(name).cpu()) for name in DISTANCES if name in metrics}
    return {name: float(DISTANCES[name](*both)) for name, both in rows.items() if min(map(len, both)) >= MIN_ROWS}
