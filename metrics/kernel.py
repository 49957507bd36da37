"""Kernel distance between feature sets (Bińkowski et al., "Demystifying MMD GANs", 2018)."""

from collections.abc import Callable

import torch
from torch import Tensor

from core.errors import check_counts
from metrics.feature_metric import FeatureDistance

FULL_SAMPLE = 1000  # up to this many rows on either side all pairs are used once
SUBSETS = 100  # of FULL_SAMPLE rows each, above it: the published protocol
MAX_KERNELS = 2**24  # computed at once: 128 MB


def kernel_distance(reals: Tensor, fakes: Tensor) -> Tensor:
    """Unbiased squared MMD of rows [m, d] and [n, d] under k(a, b) = (a.b / d + 1)^3: float64 scalar, may be negative."""
    check_counts("the kernel distance", 2, "rows", len(reals), len(fakes))
    reals, fakes = reals.double(), fakes.double()
    across = _kernel_sum(reals, fakes) / (len(reals) * len(fakes))
    return _mean_within(reals) + _mean_within(fakes) - 2 * across


def kernel_distance_of_subsets(reals: Tensor, fakes: Tensor) -> Callable[[Tensor], Tensor]:
    """`kernel_distance` of the reference to any subset of the samples, by their indices [k], from kernels computed once."""
    reals, fakes = reals.double(), fakes.double()
    across, among, constant = _kernel(fakes, reals).mean(1), _kernel(fakes, fakes), _mean_within(reals)

    def distance(picks: Tensor) -> Tensor:
        within = among[picks][:, picks].sum() - among.diagonal()[picks].sum()
        return constant + within / (len(picks) * (len(picks) - 1)) - 2 * across[picks].mean()

    return distance


def subset_kernel_distance(reals: Tensor, fakes: Tensor, subsets: int = SUBSETS, size: int = FULL_SAMPLE) -> Tensor:
    """Mean of `kernel_distance` over random subsets of `size` rows of each side, the same on every call."""
    generator = torch.Generator().manual_seed(0)
    values = []
    for _ in range(subsets):
        picks = [torch.randperm(len(x), generator=generator)[: min(size, len(x))] for x in (reals, fakes)]
        values.append(kernel_distance(reals[picks[0].to(reals.device)], fakes[picks[1].to(fakes.device)]))
    return torch.stack(values).mean()


def _kernel(left: Tensor, right: Tensor) -> Tensor:
    return (left @ right.T / right.shape[1] + 1).pow(3)


def _kernel_sum(left: Tensor, right: Tensor) -> Tensor:
    return torch.stack([_kernel(part, right).sum() for part in left.split(max(1, MAX_KERNELS // len(right)))]).sum()


def _mean_within(rows: Tensor) -> Tensor:
    """Mean kernel of two different rows."""
    diagonal = (rows.square().mean(1) + 1).pow(3).sum()
    return (_kernel_sum(rows, rows) - diagonal) / (len(rows) * (len(rows) - 1))


class KernelDistance(FeatureDistance):
    def value(self, reals: Tensor, fakes: Tensor) -> Tensor:
        small = min(len(reals), len(fakes)) <= FULL_SAMPLE
        return kernel_distance(reals, fakes) if small else subset_kernel_distance(reals, fakes)

    def of_subsets(self) -> Callable[[Tensor], Tensor]:
        return kernel_distance_of_subsets(self.reals.cpu(), self.rows)
