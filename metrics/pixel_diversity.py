"""Pixel diversity of samples (Shaham et al., "SinGAN: Learning a Generative Model from a Single Natural Image", 2019)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from metrics.backbones.backbone import check_bytes
from metrics.feature_metric import Intervals, SampleSetMetric
from metrics.intervals import subsample_interval

LEVELS = 3 * 255  # gray is the integer sum of the channels, so that sums are exact in any order


def pixel_diversity(fakes: Tensor, reals: Tensor) -> dict[str, Tensor]:
    """Spread of the samples, uint8 [n, 3, H, W], beside that of the training images, uint8 [m, 3, H, W].

    `pixel_diversity_raw` is the standard deviation of each pixel's gray value (mean of channels, 0 to 1) over the
    samples, averaged over pixels. Over the mean of the training images' own standard deviations it is
    `pixel_diversity`, the paper's number when m = 1; over the standard deviation of all training pixels together,
    `pixel_diversity_pooled`. Population deviations.
    """
    metric = PixelDiversity(reals)
    metric.update(fakes)
    return metric.compute()


class PixelDiversity(SampleSetMetric):
    value_names = ("pixel_diversity", "pixel_diversity_pooled", "pixel_diversity_raw")
    min_samples = 2

    def __init__(self, reals: Tensor) -> None:
        super().__init__(reals)
        grays = (self.measure(image).cpu().double() / LEVELS for image in reals.split(1))  # one at a time: doubles are large
        deviations, means = torch.tensor([(x.std(correction=0), x.mean()) for x in grays], dtype=torch.float64).T.contiguous()
        self.own_spread = deviations.mean()
        self.pooled_spread = (deviations.square().mean() + means.var(correction=0)).sqrt()

    def measure(self, samples: Tensor) -> Tensor:
        """Integer sums [N, H, W] of the channels."""
        check_bytes(samples)
        return samples.sum(1, dtype=torch.int32)

    def value(self, reals: Tensor, fakes: Tensor) -> dict[str, Tensor]:
        total, squares = fakes.sum(0).double(), fakes.square().sum(0).double()
        variance = squares / len(fakes) - (total / len(fakes)).square()
        raw = (variance.clamp(min=0).sqrt() / LEVELS).mean()
        return {
            "pixel_diversity": raw / self.own_spread,
            "pixel_diversity_pooled": raw / self.pooled_spread,
            "pixel_diversity_raw": raw,
        }

    def intervals(self, values: Mapping[str, float], num_samples: int) -> Intervals:
        gray, raw = self.rows.flatten(1).float() / LEVELS, values["pixel_diversity_raw"]
        low, high = subsample_interval(lambda picks: gray[picks].std(0, correction=0).mean(), num_samples, raw)
        return {key: [value * low / raw, value * high / raw] if raw else [0.0, 0.0] for key, value in values.items()}
