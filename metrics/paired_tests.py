"""Is one model better than another? Tests on differences between pairs that share a seed."""

from collections.abc import Sequence
from typing import Any

from scipy.stats import permutation_test
from torch import Tensor

from core.errors import check_counts

MAX_EXACT = 16  # pairs up to which all signs are tried
DRAWS = 20_000  # of random signs above that


def paired_permutation(differences: Tensor) -> float:
    """Two-sided p-value of the mean of `differences` [n] under the hypothesis that the signs are random.

    All 2^n signs up to 16 pairs; above, 20,000 random ones, the same on every call, with the observed signs counted in
    (Phipson & Smyth 2010, arXiv 1603.05766, eq. 2).
    """
    check_counts("a paired test", 1, "pair", len(differences))
    if len(differences) == 1:
        return 1.0  # scipy needs two
    values = differences.double().cpu().numpy()
    scale = abs(values).max() or 1.0

    def distance_from_zero(x: Any, axis: int) -> Any:
        return abs(x.mean(axis) / scale).round(9)  # equal means may differ in their last digits

    resamples = 2**MAX_EXACT if len(values) <= MAX_EXACT else DRAWS
    options = {"permutation_type": "samples", "alternative": "greater", "vectorized": True, "rng": 0}
    return float(permutation_test((values,), distance_from_zero, n_resamples=resamples, **options).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for several tests at once, in the given order (Holm 1979)."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted
