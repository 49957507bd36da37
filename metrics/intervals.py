"""How far a number would move if the samples were drawn again: 95 % intervals without drawing with replacement."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from core.errors import UserError

SUBSETS = 200
FEWEST = 10  # samples; with fewer the spread is not known well enough
NORMAL = 1.959964  # 97.5 % quantile
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)  # the same for 1 to 10 degrees of freedom


def subsample_interval(statistic: Callable[[Tensor], float], number: int, value: float, seed: int = 0) -> list[float]:
    """95 % interval [low, high] around `value` = `statistic` of all samples, for another draw of as many samples.

    `statistic` takes the indices [n] of some samples. It is evaluated on 200 random halves without replacement; for n out
    of N samples the variance over subsets times n / (N - n) is that of the whole (Politis and Romano, "Large sample
    confidence regions based on subsamples under minimal assumptions", 1994; delete-d jackknife). Drawing with replacement
    would repeat samples, which biases distances. The reference images are taken as they are. ValueError below 10 samples.
    """
    if number < FEWEST:
        raise UserError(f"an interval needs {FEWEST} samples, got {number}")
    generator, half = torch.Generator().manual_seed(seed), number // 2
    picks = (torch.randperm(number, generator=generator)[:half] for _ in range(SUBSETS))
    values = torch.tensor([float(statistic(pick)) for pick in picks], dtype=torch.float64)
    error = values.std().item() * math.sqrt(half / (number - half))
    return around(float(value), student(number - 1) * error)


def mean_interval(values: Tensor) -> list[float]:
    """Student's 95 % interval [low, high] of the mean of independent values [n], n at least 2.

    They belong to samples, to sampling seeds or to training seeds: the interval says how far the mean is known over these.
    """
    values = torch.as_tensor(values, dtype=torch.float64).flatten()
    if len(values) < 2:
        raise UserError(f"the interval of a mean needs two values, got {len(values)}")
    return around(values.mean().item(), student(len(values) - 1) * values.std().item() / math.sqrt(len(values)))


def around(value: float, half_width: float) -> list[float]:
    return [value - half_width, value + half_width]


def student(freedom: int) -> float:
    """97.5 % quantile of Student's distribution; above 10 degrees of freedom by its expansion in 1 / freedom."""
    if freedom <= len(STUDENT):
        return STUDENT[freedom - 1]
    z, n = NORMAL, freedom
    return z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)


def share_bounds(hits: int, number: int, alpha: float = 0.05) -> tuple[float, float]:
    """One-sided bounds of a probability from `hits` out of `number`: each is on its wrong side in at most `alpha` of all
    cases (Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial", 1934)."""
    low = 0.0 if hits == 0 else _solve(lambda p: 1 - _at_most(hits - 1, number, p), alpha)
    high = 1.0 if hits == number else 1 - _solve(lambda q: _at_most(hits, number, 1 - q), alpha)
    return low, high


def _solve(rising: Callable[[float], float], target: float) -> float:
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < target else (low, middle)
    return (low + high) / 2


def _at_most(hits: int, number: int, p: float) -> float:
    """Probability of at most `hits` out of `number`."""
    if p <= 0 or p >= 1:
        return float(p <= 0 or hits >= number)
    k = torch.arange(hits + 1, dtype=torch.float64)
    n = torch.tensor(float(number), dtype=torch.float64)
    logs = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1) + k * math.log(p) + (n - k) * math.log1p(-p)
    return logs.exp().sum().item()
