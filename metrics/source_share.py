"""Which training images do the patches of samples come from?"""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from core.errors import UserError
from metrics.backbones.backbone import check_bytes
from metrics.feature_metric import refuse, too_few
from modules.ops.images import from_uint8
from modules.ops.nearest import extract, nearest

DISTANCES_AT_ONCE = 2**27  # half a gigabyte
MAX_NAMED = 16  # with more training images only the smallest share is told


def source_counts(fakes: Tensor, reals: Tensor, patch: int = 7, stride: int = 7) -> Tensor:
    """How many patches of each sample have their nearest training patch in each training image: int64 [n, m].

    Bytes [n, 3, H, W] and [m, 3, H', W']. Samples are cut every `stride` pixels, by default into tiles, and compared by
    squared distance with the patches around every pixel of the training images. ValueError if an image is below
    `patch`, TypeError for other than bytes.
    """
    check_bytes(fakes)
    check_bytes(reals)
    if min(*fakes.shape[-2:], *reals.shape[-2:]) < patch:
        raise UserError(f"images of {tuple(fakes.shape[-2:])} and {tuple(reals.shape[-2:])} hold no patch of {patch} pixels")
    keys = extract(from_uint8(reals), patch)
    per_image = keys.shape[1]
    keys = keys.flatten(0, 1)
    counts = torch.zeros(len(fakes), len(reals), dtype=torch.long, device=reals.device)
    for row, image in zip(counts, fakes, strict=True):
        queries = extract(from_uint8(image[None]), patch, stride)[0]
        best = nearest(queries, keys, chunk=max(1, DISTANCES_AT_ONCE // len(keys)))[1]
        row += torch.bincount(best // per_image, minlength=len(reals))
    return counts


class SourceShare(Metric):
    """Share of the samples' patches that come from each of the training images `reals`, bytes [m, 3, H, W]; sums to 1.

    `source_share_min` is the least share, `source_share_<i>` each one for up to 16 training images. An even use gives
    1 / m; near 0 means that an image was forgotten. `compute` raises ValueError without samples.
    """

    full_state_update = False
    fewest = 1
    counts: list[Tensor]

    def __init__(self, reals: Tensor, patch: int = 7, stride: int = 7) -> None:
        super().__init__()
        self.training_images, self.patch, self.stride = reals, patch, stride
        self.shares = torch.zeros(0, len(reals), dtype=torch.float64)  # of each sample of all ranks, at the last compute
        self.add_state("counts", default=[], dist_reduce_fx="cat")

    def update(self, fakes: Tensor) -> None:
        """Adds bytes [N, 3, H, W], N may be 0."""
        self.counts.append(source_counts(fakes, self.training_images, self.patch, self.stride))

    def compute(self) -> dict[str, Tensor]:
        counts = dim_zero_cat(self.counts).cpu().double()
        refuse(self, too_few(len(counts), self.fewest))
        self.shares = counts / counts.sum(1, keepdim=True)
        shares = self.shares.mean(0)
        named = {f"source_share_{i}": share for i, share in enumerate(shares)} if len(shares) <= MAX_NAMED else {}
        return {"source_share_min": shares.min()} | named
