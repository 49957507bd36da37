"""Improved precision and recall (Kynkäänniemi et al., 2019), density and coverage (Naeem et al., "Reliable Fidelity and
Diversity Metrics for Generative Models", 2020)."""

import torch
from torch import Tensor

from core.errors import check_counts
from metrics.feature_metric import FeatureMetric
from metrics.nearest_psnr import exact_distances

NEIGHBORS = 3
MAX_ROWS = 10_000  # of either side: 2.4 GB
MIN_ROWS = 50  # of either side: with fewer the spheres are so large that everything is precise


def manifold_scores(reals: Tensor, fakes: Tensor, neighbors: int = NEIGHBORS) -> dict[str, Tensor]:
    """Shares of rows that lie in the spheres of the other side, from rows [m, d] and [n, d]; float64 scalars.

    The sphere of a row reaches to its k-th nearest other row of the same side. `precision`: samples in a sphere of a
    reference row, `recall`: the reverse, both with equality (<=). `density`: number of reference spheres around a sample over
    k, may exceed 1; `coverage`: reference rows with a sample in their sphere, both strictly (<). Compare only at equal m, n
    and k: two sets of one distribution do not reach 1.
    """
    check_counts(f"a sphere of {neighbors} neighbors", neighbors + 1, "rows", len(reals), len(fakes))
    reals, fakes = reals.double(), fakes.double()
    across = exact_distances(reals, fakes)
    real_radii, fake_radii = (_radii(rows, neighbors) for rows in (reals, fakes))
    inside = across < real_radii[:, None]
    return {
        "precision": (across <= real_radii[:, None]).any(0).double().mean(),
        "recall": (across <= fake_radii).any(1).double().mean(),
        "density": inside.double().sum(0).mean() / neighbors,
        "coverage": inside.any(1).double().mean(),
    }


def balanced_scores(reals: Tensor, fakes: Tensor, neighbors: int = NEIGHBORS) -> dict[str, Tensor]:
    """`manifold_scores` at equal numbers, since against many more samples coverage is trivially 1: the mean over 20 random
    choices from the larger side, the same on every call; of 1000 and more one choice does."""
    num_samples = min(len(reals), len(fakes), MAX_ROWS)
    if len(reals) == len(fakes) == num_samples:
        return manifold_scores(reals, fakes, neighbors)
    generator, draws = torch.Generator().manual_seed(0), []
    for _ in range(20 if num_samples < 1000 else 1):
        chosen = (rows[torch.randperm(len(rows), generator=generator)[:num_samples].to(rows.device)] for rows in (reals, fakes))
        draws.append(manifold_scores(*chosen, neighbors))
    return {name: torch.stack([scores[name] for scores in draws]).mean() for name in draws[0]}


def _radii(rows: Tensor, neighbors: int) -> Tensor:
    return exact_distances(rows, rows).fill_diagonal_(torch.inf).kthvalue(neighbors, 1).values


class ManifoldScores(FeatureMetric):
    value_names = ("precision", "recall", "density", "coverage")
    min_samples = min_reference = MIN_ROWS
    value = staticmethod(balanced_scores)
