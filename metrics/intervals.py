"""95 % intervals: how far a number would move if the samples were drawn again."""

import math
from collections.abc import Callable

import torch
from scipy.special import betaincinv, stdtrit
from torch import Tensor

from core.errors import check_counts

SUBSETS = 200
MIN_SAMPLES = 10  # with fewer the spread is not known well enough


def subsample_interval(statistic: Callable[[Tensor], float], num_samples: int, value: float) -> list[float]:
    """95 % interval [low, high] around `value` = `statistic` of all samples, for another draw of as many samples.

    `statistic` takes the indices [n] of some samples: 200 random halves, since samples that are drawn twice bias distances.
    For n out of N samples the variance over subsets times n / (N - n) is that of the whole (Politis and Romano, "Large sample
    confidence regions based on subsamples under minimal assumptions", 1994; delete-d jackknife).
    """
    check_counts("an interval", MIN_SAMPLES, "samples", num_samples)
    generator, half = torch.Generator().manual_seed(0), num_samples // 2
    picks = (torch.randperm(num_samples, generator=generator)[:half] for _ in range(SUBSETS))
    values = torch.tensor([float(statistic(pick)) for pick in picks], dtype=torch.float64)
    return student_interval(float(value), values.std().item() * math.sqrt(half / (num_samples - half)), num_samples - 1)


def mean_interval(values: Tensor) -> list[float]:
    """Student's 95 % interval [low, high] of the mean of independent values [n]."""
    values = torch.as_tensor(values, dtype=torch.float64).flatten()
    check_counts("the interval of a mean", 2, "values", len(values))
    return student_interval(values.mean().item(), values.std().item() / math.sqrt(len(values)), len(values) - 1)


def student_interval(value: float, error: float, freedom: float) -> list[float]:
    """[low, high] around `value` with the standard error `error`."""
    half_width = float(stdtrit(freedom, 0.975)) * error
    return [value - half_width, value + half_width]


def share_bounds(hits: int, num_samples: int, alpha: float = 0.05) -> tuple[float, float]:
    """One-sided bounds of a probability from `hits` out of `num_samples`, each wrong with probability `alpha` at most
    (Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial", 1934)."""
    low = float(betaincinv(hits, num_samples - hits + 1, alpha)) if hits else 0.0
    high = float(betaincinv(hits + 1, num_samples - hits, 1 - alpha)) if hits < num_samples else 1.0
    return low, high
