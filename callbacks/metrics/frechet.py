"""Fréchet distance between feature sets (Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", 2017)."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


def frechet_distance(reals: Tensor, fakes: Tensor) -> Tensor:
    """|mu_r - mu_f|^2 + Tr(S_r) + Tr(S_f) - 2 Tr((S_r S_f)^(1/2)) of feature rows [m, d] and [n, d], float64 scalar.

    Covariances divide by N - 1. The trace of the root is the nuclear norm of X_r X_f^T / sqrt((m - 1)(n - 1)) with
    centred rows X: exact for any rank, so a few images against many features need no constant on the diagonal. The
    value is biased upwards by about c / N: compare only at equal m and n. ValueError below two rows a side.
    """
    if min(len(reals), len(fakes)) < 2:
        raise ValueError(f"the Fréchet distance needs two rows a side, got {len(reals)} and {len(fakes)}")
    reals, fakes = reals.double(), fakes.double()
    shift = reals.mean(0) - fakes.mean(0)
    reals, fakes = _scaled(reals), _scaled(fakes)
    root = torch.linalg.matrix_norm(_few_rows(reals) @ _few_rows(fakes).T, "nuc")
    return shift.square().sum() + reals.square().sum() + fakes.square().sum() - 2 * root


def _scaled(rows: Tensor) -> Tensor:
    """Centred rows over sqrt(N - 1): their Gram matrix over features is the covariance."""
    return (rows - rows.mean(0)) / (len(rows) - 1) ** 0.5


def _few_rows(rows: Tensor) -> Tensor:
    """At most d rows with the same Gram matrix: in X = QR the orthonormal Q leaves the nuclear norm as it is."""
    return torch.linalg.qr(rows, mode="r").R if rows.shape[0] > rows.shape[1] else rows


class FrechetDistance(Metric):
    """`frechet_distance` of all ranks' samples to the reference rows `reals` [m, d], which every rank has."""

    higher_is_better = False
    full_state_update = False
    fakes: list[Tensor]

    def __init__(self, reals: Tensor) -> None:
        super().__init__()
        self.reals = reals
        self.add_state("fakes", default=[], dist_reduce_fx="cat")

    def update(self, fakes: Tensor) -> None:
        """Adds rows [N, d], N may be 0; every rank has to update before `compute`."""
        self.fakes.append(fakes)

    def compute(self) -> Tensor:
        return frechet_distance(self.reals.cpu(), dim_zero_cat(self.fakes).cpu())
