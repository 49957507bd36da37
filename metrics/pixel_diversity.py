"""Pixel diversity of samples (Shaham et al., "SinGAN: Learning a Generative Model from a Single Natural Image", 2019)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from metrics.backbones.backbone import check_bytes
from metrics.feature_metric import Intervals, SampleSetMetric
from metrics.intervals import subsample_interval

LEVELS = 3 * 255  # gray is the integer sum of the channels, so that sums are exact in any order


def pixel_diversity(fakes: Tensor, reals: Tensor) -> dict[str, Tensor]:
    """Spread of the samples, bytes [n, 3, H, W], beside that of the training images, bytes [m, 3, H, W].

    `pixel_diversity_raw` is the standard deviation of each pixel's gray value (mean of channels, 0 to 1) over the
    samples, averaged over pixels. Over the mean of the training images' own standard deviations it is
    `pixel_diversity`, the paper's number when m = 1; over the standard deviation of all training pixels together,
    `pixel_diversity_pooled`. Population deviations. 0 means equal samples; noise scores highest, so it says nothing
    alone. UserError below two samples, TypeError for other than bytes.
    """
    metric = PixelDiversity(reals)
    metric.update(fakes)
    return metric.compute()


def gray_sums(images: Tensor) -> Tensor:
    """Integer sums [N, H, W] of the channels of bytes [N, 3, H, W]."""
    check_bytes(images)
    return images.sum(1, dtype=torch.int32)


class PixelDiversity(SampleSetMetric):
    """`pixel_diversity` of all ranks' samples, from integer sums; they have the size of the training images `reals`."""

    higher_is_better = True
    value_names = ("pixel_diversity", "pixel_diversity_pooled", "pixel_diversity_raw")
    min_samples = 2

    def __init__(self, reals: Tensor) -> None:
        super().__init__()
        deviations, means = [], []
        for image in reals.split(1):  # one at a time: doubles of a large set need much memory
            gray = gray_sums(image).cpu().double() / LEVELS
            deviations.append(gray.std(correction=0))
            means.append(gray.mean())
        deviations, means = torch.stack(deviations), torch.stack(means)
        self.own_spread = deviations.mean()
        self.pooled_spread = (deviations.square().mean() + means.var(correction=0)).sqrt()
        zeros = torch.zeros(reals.shape[-2:], dtype=torch.long, device=reals.device)
        self.add_state("count", default=torch.tensor(0, device=reals.device), dist_reduce_fx="sum")
        self.add_state("total", default=zeros, dist_reduce_fx="sum")
        self.add_state("squares", default=zeros.clone(), dist_reduce_fx="sum")

    def update(self, fakes: Tensor) -> None:
        """Adds bytes [N, 3, H, W], N may be 0."""
        gray = gray_sums(fakes)
        self.count += len(gray)
        self.total += gray.sum(0)
        self.squares += gray.square().sum(0)

    def compute(self) -> dict[str, Tensor]:
        self.check(int(self.count))
        count, total, squares = (state.cpu().double() for state in (self.count, self.total, self.squares))
        raw = ((squares / count - (total / count).square()).clamp(min=0).sqrt() / LEVELS).mean()
        return {
            "pixel_diversity": raw / self.own_spread,
            "pixel_diversity_pooled": raw / self.pooled_spread,
            "pixel_diversity_raw": raw,
        }

    def intervals(self, values: Mapping[str, float], images: Tensor) -> Intervals:
        gray, raw = gray_sums(images).flatten(1).float().cpu() / LEVELS, values["pixel_diversity_raw"]
        low, high = subsample_interval(lambda picks: gray[picks].std(0, correction=0).mean(), len(images), raw)
        return {key: [value * low / raw, value * high / raw] if raw else [0.0, 0.0] for key, value in values.items()}
