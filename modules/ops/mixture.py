"""Gaussian mixtures in buffers, fitted by expectation maximization; random numbers come from a given generator."""

import math

import torch
from scipy.special import betaincinv
from torch import Tensor, nn

from modules.ops.kmeans import kmeans
from modules.ops.nearest import nearest

RESTARTS = 3
ITERATIONS = 50
TOLERANCE = 1e-4  # of the mean log-likelihood
RIDGE = 1e-6  # added to variances, as a share of the mean variance of the points


class GaussianMixture(nn.Module):
    """K components in D dimensions: `weights` [K], `means` [K, D] and lower `factors` [K, D, D] of the covariances, which are
    `full` matrices or diagonal."""

    def __init__(self, components: int, dim: int, full: bool) -> None:
        super().__init__()
        self.full = full
        self.register_buffer("weights", torch.full((components,), 1 / components))
        self.register_buffer("means", torch.zeros(components, dim))
        self.register_buffer("factors", torch.eye(dim).repeat(components, 1, 1))

    @torch.no_grad()
    def fit(self, points: Tensor, generator: torch.Generator) -> float:
        """Fits points [M, D], M ≥ K, from k-means, the best of some restarts; mean log-likelihood. `generator`: CPU."""
        starts = (kmeans(points, len(self.weights), generator) for _ in range(RESTARTS if len(self.weights) > 1 else 1))
        fits = [self._climb(points.double(), centers.double()) for centers in starts]
        likelihood, state = max(fits, key=lambda fit: fit[0])
        for buffer, value in zip((self.weights, self.means, self.factors), state, strict=True):
            buffer.copy_(value)
        return likelihood

    def _climb(self, points: Tensor, centers: Tensor) -> tuple[float, tuple[Tensor, Tensor, Tensor]]:
        members = nearest(points.float(), centers.float())[1]
        shares = torch.nn.functional.one_hot(members, len(centers)).double()
        previous = -math.inf
        for _ in range(ITERATIONS):
            state = self._maximize(points, shares)
            logs = _log_densities(points, *state)
            likelihood = float(logs.logsumexp(1).mean())
            shares = logs.softmax(1)
            if likelihood - previous < TOLERANCE:
                break
            previous = likelihood
        return likelihood, state

    def _maximize(self, points: Tensor, shares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        counts = shares.sum(0) + 1e-10
        means = shares.T @ points / counts[:, None]
        ridge = RIDGE * points.var(0, correction=0).mean() + 1e-12
        factors = torch.zeros(len(counts), points.shape[1], points.shape[1], dtype=points.dtype, device=points.device)
        for k, mean in enumerate(means):
            centered = points - mean
            if self.full:
                covariance = (shares[:, k, None] * centered).T @ centered / counts[k]
                covariance.diagonal().add_(ridge)
                factors[k] = torch.linalg.cholesky(covariance)
            else:
                factors[k] = torch.diag((shares[:, k] @ centered.square() / counts[k] + ridge).sqrt())
        return counts / counts.sum(), means, factors

    def draw(self, uniform: Tensor, normal: Tensor) -> Tensor:
        """Points [N, D] of uniform [N] and normal [N, D] random numbers."""
        ends = self.weights.cumsum(0)
        picks = torch.searchsorted(ends, uniform * ends[-1]).clamp(max=len(ends) - 1)
        return self.means[picks] + (self.factors[picks] @ normal[:, :, None]).squeeze(2)


def beta_quantiles(uniform: Tensor, alpha: float) -> Tensor:
    """Values of Beta(alpha, alpha) for uniform random numbers."""
    return torch.from_numpy(betaincinv(alpha, alpha, uniform.cpu().double().numpy())).to(uniform)


def _log_densities(points: Tensor, weights: Tensor, means: Tensor, factors: Tensor) -> Tensor:
    """Log of weight times density [M, K]."""
    columns = []
    for weight, mean, factor in zip(weights, means, factors, strict=True):
        white = torch.linalg.solve_triangular(factor, (points - mean).T, upper=False)
        log_root = factor.diagonal().log().sum() + 0.5 * len(mean) * math.log(2 * math.pi)
        columns.append(weight.log() - log_root - 0.5 * white.square().sum(0))
    return torch.stack(columns, 1)
