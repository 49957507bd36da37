"""Kernel distance between feature sets (Bińkowski et al., "Demystifying MMD GANs", 2018)."""

from collections.abc import Callable

import torch
from torch import Tensor

from core.errors import UserError
from metrics.feature_metric import RowsMetric

FULL_SAMPLE = 1000  # up to this many rows on either side all pairs are used once
SUBSETS = 100  # of FULL_SAMPLE rows each, above it: the published protocol


def kernel_distance(reals: Tensor, fakes: Tensor, chunk: int = 4096) -> Tensor:
    """Unbiased squared MMD of feature rows [m, d] and [n, d] under k(a, b) = (a.b / d + 1)^3, float64 scalar.

    One U-statistic over all pairs, the unbiased estimate of least variance; m and n may differ. Its mean is 0 for equal
    distributions, so about half of such values are negative: they are never clipped. ValueError below two rows a side.
    """
    m, n = len(reals), len(fakes)
    if min(m, n) < 2:
        raise UserError(f"the kernel distance needs two rows a side, got {m} and {n}")
    reals, fakes = reals.double(), fakes.double()
    within = sum((_kernel_sum(x, x, chunk) - _diagonal_sum(x)) / (len(x) * (len(x) - 1)) for x in (reals, fakes))
    return within - 2 * _kernel_sum(reals, fakes, chunk) / (m * n)


def kernel_table(reals: Tensor, fakes: Tensor) -> Callable[[Tensor], float]:
    """`kernel_distance` of the reference to any subset of the samples, by their indices [k], from kernels computed once."""
    reals, fakes = reals.double(), fakes.double()
    among = (fakes @ fakes.T / fakes.shape[1] + 1).pow(3)
    diagonal = among.diagonal()
    across = (fakes @ reals.T / fakes.shape[1] + 1).pow(3).mean(1)
    own = (_kernel_sum(reals, reals, 4096) - _diagonal_sum(reals)) / (len(reals) * (len(reals) - 1))

    def distance(picks: Tensor) -> float:
        within = among[picks][:, picks].sum() - diagonal[picks].sum()
        return float(own + within / (len(picks) * (len(picks) - 1)) - 2 * across[picks].mean())

    return distance


def subset_kernel_distance(reals: Tensor, fakes: Tensor, subsets: int = SUBSETS, size: int = FULL_SAMPLE) -> Tensor:
    """Mean of `kernel_distance` over random subsets of `size` rows of each side, as published for large sets.

    The subsets are the same on every call. Same expectation as the full sample, more variance, less work.
    """
    generator = torch.Generator().manual_seed(0)
    sizes = min(size, len(reals)), min(size, len(fakes))
    values = []
    for _ in range(subsets):
        picks = [torch.randperm(len(x), generator=generator)[:k] for x, k in zip((reals, fakes), sizes, strict=True)]
        values.append(kernel_distance(reals[picks[0].to(reals.device)], fakes[picks[1].to(fakes.device)]))
    return torch.stack(values).mean()


def _kernel_sum(left: Tensor, right: Tensor, chunk: int) -> Tensor:
    sums = [(part @ right.T / right.shape[1] + 1).pow(3).sum() for part in left.split(chunk)]
    return torch.stack(sums).sum()


def _diagonal_sum(rows: Tensor) -> Tensor:
    return (rows.square().mean(1) + 1).pow(3).sum()


class KernelDistance(RowsMetric):
    """Kernel distance of all ranks' samples to the reference rows `reals` [m, d], which every rank has.

    `kernel_distance` where a side has at most 1000 rows, else `subset_kernel_distance`.
    """

    higher_is_better = False

    def value(self, reals: Tensor, fakes: Tensor) -> Tensor:
        small = min(len(reals), len(fakes)) <= FULL_SAMPLE
        return kernel_distance(reals, fakes) if small else subset_kernel_distance(reals, fakes)
