"""Fréchet distance between feature sets (Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", 2017)."""

import torch
from torch import Tensor

from core.errors import check_counts
from metrics.feature_metric import FeatureDistance, FeatureMetric

MIN_REFERENCE, MIN_SAMPLES = 2000, 1000  # rows that the extrapolation needs


def frechet_distance(reals: Tensor, fakes: Tensor) -> Tensor:
    """|mu_r - mu_f|^2 + Tr(S_r) + Tr(S_f) - 2 Tr((S_r S_f)^(1/2)) of feature rows [m, d] and [n, d], float64 scalar.

    The trace of the root is the nuclear norm of X_r X_f^T with rows X centered and scaled: exact for any rank, without a
    constant on the diagonal. Biased upwards by about c / N: compare only at equal m and n.
    """
    check_counts("the Fréchet distance", 2, "rows", len(reals), len(fakes))
    reals, fakes = reals.double(), fakes.double()
    shift = reals.mean(0) - fakes.mean(0)
    reals, fakes = _scaled(reals), _scaled(fakes)
    root = torch.linalg.matrix_norm(_few_rows(reals) @ _few_rows(fakes).T, "nuc")
    return shift.square().sum() + reals.square().sum() + fakes.square().sum() - 2 * root


def _scaled(rows: Tensor) -> Tensor:
    """Centered rows over sqrt(N - 1): their Gram matrix over features is the covariance."""
    return (rows - rows.mean(0)) / (len(rows) - 1) ** 0.5


def _few_rows(rows: Tensor) -> Tensor:
    """At most d rows with the same Gram matrix: in X = QR the orthonormal Q leaves the nuclear norm as it is."""
    return torch.linalg.qr(rows, mode="r").R if rows.shape[0] > rows.shape[1] else rows


def extrapolated_frechet(reals: Tensor, fakes: Tensor, points: int = 15) -> tuple[Tensor, Tensor]:
    """Fréchet distance for infinitely many samples, and the standard error of the fit: float64 scalars (Chong and Forsyth,
    "Effectively Unbiased FID and Inception Score and Where to Find Them", 2020).

    The intercept of a line fitted to the distances of random subsets of n samples over 1 / n, n from a tenth of them, at
    least 500, up to all. The subsets are the same on every call. The bias of the reference [m, d] stays.
    """
    check_counts("the extrapolation", MIN_SAMPLES, "samples", len(fakes))
    generator = torch.Generator().manual_seed(0)
    numbers = torch.linspace(max(500, len(fakes) // 10), len(fakes), points).long()
    picks = (torch.randperm(len(fakes), generator=generator)[:number].to(fakes.device) for number in numbers)
    values = torch.stack([frechet_distance(reals, fakes[pick]).cpu() for pick in picks])
    design = torch.stack([torch.ones(points, dtype=torch.float64), 1 / numbers.double()], 1)
    inverse = (design.T @ design).inverse()
    line = inverse @ design.T @ values
    error = ((values - design @ line).square().sum() / (points - 2) * inverse[0, 0]).sqrt()
    return line[0], error


class FrechetDistance(FeatureDistance):
    value = staticmethod(frechet_distance)


class ExtrapolatedFrechet(FeatureMetric):
    min_samples, min_reference = MIN_SAMPLES, MIN_REFERENCE

    def value(self, reals: Tensor, fakes: Tensor) -> dict[str, Tensor]:
        return dict(zip(("fd_infinity", "fd_infinity_error"), extrapolated_frechet(reals, fakes), strict=True))
