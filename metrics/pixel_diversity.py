"""Pixel diversity of samples (Shaham et al., "SinGAN: Learning a Generative Model from a Single Natural Image",
2019)."""

import torch
from torch import Tensor
from torchmetrics import Metric

from metrics.backbones.backbone import check_bytes
from metrics.feature_metric import refuse, too_few

LEVELS = 3 * 255  # grey is kept as the integer sum of the channels, so that sums are exact in any order


def pixel_diversity(fakes: Tensor, reals: Tensor) -> dict[str, Tensor]:
    """Spread of the samples, bytes [n, 3, H, W], beside that of the training images, bytes [m, 3, H, W].

    `pixel_diversity_raw` is the standard deviation of each pixel's grey value (mean of channels, 0 to 1) over the
    samples, averaged over pixels. Over the mean of the training images' own standard deviations it is
    `pixel_diversity`, the paper's number when m = 1; over the standard deviation of all training pixels together,
    `pixel_diversity_pooled`. Population deviations. 0 means equal samples; noise scores highest, so it says nothing
    alone. ValueError below two samples, TypeError for other than bytes.
    """
    metric = PixelDiversity(reals)
    metric.update(fakes)
    return metric.compute()


def _grey(images: Tensor) -> Tensor:
    check_bytes(images)
    return images.long().sum(1)


def grey_levels(images: Tensor) -> Tensor:
    """Mean of the channels of bytes [N, 3, H, W] in 0…1: floats [N, H, W]."""
    return _grey(images).float() / LEVELS


class PixelDiversity(Metric):
    """`pixel_diversity` of all ranks' samples, from integer sums; they have the size of the training images `reals`.

    `compute` raises ValueError below two samples.
    """

    higher_is_better = True
    full_state_update = False
    fewest = 2

    def __init__(self, reals: Tensor) -> None:
        super().__init__()
        grey = _grey(reals).cpu().double() / LEVELS
        self.own_spread, self.pooled_spread = grey.std((1, 2), correction=0).mean(), grey.std(correction=0)
        zeros = torch.zeros(reals.shape[-2:], dtype=torch.long, device=reals.device)
        self.add_state("count", default=torch.tensor(0, device=reals.device), dist_reduce_fx="sum")
        self.add_state("total", default=zeros, dist_reduce_fx="sum")
        self.add_state("squares", default=zeros.clone(), dist_reduce_fx="sum")

    def update(self, fakes: Tensor) -> None:
        """Adds bytes [N, 3, H, W], N may be 0."""
        grey = _grey(fakes)
        self.count += len(grey)
        self.total += grey.sum(0)
        self.squares += grey.square().sum(0)

    def compute(self) -> dict[str, Tensor]:
        refuse(self, too_few(int(self.count), self.fewest))
        count, total, squares = (state.cpu().double() for state in (self.count, self.total, self.squares))
        spread = (squares / count - (total / count).square()).clamp(min=0).sqrt() / LEVELS
        raw = spread.mean()
        return {
            "pixel_diversity": raw / self.own_spread,
            "pixel_diversity_pooled": raw / self.pooled_spread,
            "pixel_diversity_raw": raw,
        }
