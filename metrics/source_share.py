"""Which training images do the patches of samples come from?"""

import torch
import torch.nn.functional as F
from torch import Tensor

from core.errors import UserError
from metrics.backbones.backbone import check_bytes
from metrics.feature_metric import SampleSetMetric
from modules.ops.images import from_uint8
from modules.ops.nearest import extract, nearest

MAX_DISTANCES = 2**27  # computed at once: half a gigabyte
MAX_NAMED = 16  # with more training images only the smallest share is reported


def source_counts(fakes: Tensor, reals: Tensor, patch: int = 7, stride: int = 7) -> Tensor:
    """Number of patches of each sample, cut every `stride` pixels, whose nearest training patch is in each training image, by
    squared distance: int64 [n, m], of uint8 [n, 3, H, W] and [m, 3, H', W']."""
    check_bytes(fakes)
    check_bytes(reals)
    if min(*fakes.shape[-2:], *reals.shape[-2:]) < patch:
        raise UserError(f"images of {tuple(fakes.shape[-2:])} and {tuple(reals.shape[-2:])} contain no patch of {patch} pixels")
    queries = extract(from_uint8(fakes), patch, stride)
    columns = []
    for real in reals.split(1):  # one at a time: the patches take 49 times the memory of the image
        keys = extract(from_uint8(real), patch)[0]
        columns.append(nearest(queries.flatten(0, 1), keys, chunk=max(1, MAX_DISTANCES // len(keys)))[0])
    nearest_source = torch.stack(columns, 1).argmin(1).view(queries.shape[:2])  # the first of equals
    return F.one_hot(nearest_source, len(reals)).sum(1)


class SourceShare(SampleSetMetric):
    """Share of the samples' patches that come from each training image; the smallest is near 0 if one was forgotten."""

    value_names = ("source_share_min", "source_share_*")
    min_reference, max_reference = 2, 100  # the search takes time in proportion

    def measure(self, samples: Tensor) -> Tensor:
        return source_counts(samples, self.reals)

    def value(self, reals: Tensor, fakes: Tensor) -> dict[str, Tensor]:
        shares = fakes.double() / fakes.double().sum(1, keepdim=True)  # of each sample
        keys = [f"source_share_{i}" for i in range(len(reals))] if len(reals) <= MAX_NAMED else []
        self.columns = dict(zip(keys, shares.T, strict=False))
        return {"source_share_min": shares.mean(0).min()} | dict(zip(keys, shares.mean(0), strict=False))
