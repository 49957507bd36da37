"""Features of whole images and of crops, and the distances between two sets of them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from metrics.backbones.backbone import Backbone
from metrics.frechet import frechet_distance
from metrics.kernel import kernel_distance

DISTANCES = {"fd": frechet_distance, "kd": kernel_distance, "kd_crops": kernel_distance}
FEWEST = 2  # rows a side


class Features(NamedTuple):
    """Rows of N images: whole [N, d]; crops [N, c, d], c may be 0."""

    whole: Tensor
    crops: Tensor

    def take(self, rows: Tensor | slice) -> "Features":
        return Features(self.whole[rows], self.crops[rows])

    def rows(self, metric: str) -> Tensor:
        """The rows [n, d] that "fd", "kd" or "kd_crops" compares."""
        return self.crops.flatten(0, 1) if metric.endswith("_crops") else self.whole


def crop_size(height: int, width: int) -> tuple[int, int]:
    """Crops are half as high and wide as the image."""
    return height // 2, width // 2


def random_crops(images: Tensor, indices: Sequence[int], count: int, seed: int) -> Tensor:
    """`count` crops of each image [N, 3, H, W] at uniformly random places: [N, count, 3, H // 2, W // 2].

    The places are a function of (seed, index) alone, so they depend neither on batches nor on ranks.
    """
    height, width = crop_size(*images.shape[-2:])
    cut = []
    for image, index in zip(images, indices, strict=True):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + int(index))
        tops = torch.randint(images.shape[-2] - height + 1, (count,), generator=generator).tolist()
        lefts = torch.randint(images.shape[-1] - width + 1, (count,), generator=generator).tolist()
        cut += [image[:, y : y + height, x : x + width] for y, x in zip(tops, lefts, strict=True)]
    return torch.stack(cut).unflatten(0, (-1, count)) if cut else images.new_empty(len(images), count, 3, height, width)


def extract_features(
    backbone: Backbone, images: Tensor, indices: Sequence[int], crops: int, seed: int, whole: Tensor | None = None
) -> Features:
    """Features of bytes [N, 3, H, W]; crops enter the network at half its input size, the scale of the whole image. Those of
    the whole images may be known already."""
    cut = random_crops(images, indices, crops, seed)
    rows = backbone(cut.flatten(0, 1), size=backbone.input_size // 2)
    return Features(backbone(images) if whole is None else whole, rows.unflatten(0, tuple(cut.shape[:2])))


def distances(reals: Features, fakes: Features, metrics: Sequence[str]) -> dict[str, float]:
    """Those of "fd", "kd", "kd_crops" for which both sides have the two rows an estimate needs."""
    values = {}
    for name in [name for name in DISTANCES if name in metrics]:
        pair = reals.rows(name).cpu(), fakes.rows(name).cpu()
        if min(map(len, pair)) >= FEWEST:
            values[name] = float(DISTANCES[name](*pair))
    return values
